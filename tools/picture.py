"""Draw docs/course.png, the README's picture, from results/: what a learner will have seen by lesson 10.

python tools/picture.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from lorahub_edu import results
from lorahub_edu.show import figures
from lorahub_studies.adapting import METHODS

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "course.png"
TUNED = ("full", "lora", "houlsby", "bitfit", "ia3", "prompt")
ADAPTED = ("zero_shot", "average", "cma_40", "in_context", "auto", "lora_fast")

Bars = dict[str, tuple[float, ...]]  # the lowest, the middle and the highest, or all repeats


def bars() -> tuple[Bars, Bars, Bars]:
    """The three panels' bars: scores of tuning methods, scores of methods for a new task, intruder dimensions."""
    tuned = {entry["variant"]: entry for entry in results.read_study("methods", "methods sweep")["summary"]}
    one = {
        f"{tuned[name]['label']}\n{tuned[name]['trainable']:,} trained numbers": tuple(
            100 * sum(task["strict"][key] for task in tuned[name]["tasks"].values()) / len(tuned[name]["tasks"])
            for key in ("low", "mean", "high")
        )
        for name in TUNED
    }
    adapted = results.read_study("adapt_verdict", "adapt sweep")["summary"]
    means = {entry["method"]: entry["strict"] for entry in adapted if entry["target"] == "mean"}
    two = {METHODS[name].label: tuple(100 * means[name][k] for k in ("low", "mean", "high")) for name in ADAPTED}
    spectra = results.read_study("intruders_ranks", "intruders study")["summary"]
    arms = [arm for arm in spectra["arms"] if arm["task_loss"] == spectra["matched_loss"]]
    three = {f"LoRA, rank {arm['rank']}": tuple(arm["intruders"]) for arm in arms if arm["rule"] == "alpha = 2r"}
    three["full fine-tuning"] = next(tuple(arm["intruders"]) for arm in arms if not arm["rank"])
    return one, two, three


def draw(path: Path) -> None:
    """Draw the three panels into a PNG file."""
    figures.use_style()
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), dpi=100)
    titles = ("What do few numbers learn?", "Compose instead of train?", "What changes inside?")
    labels = (
        "right answers, % (lesson 04)",
        "right answers on a new task, % (lesson 07)",
        "intruder dimensions (lesson 08)",
    )
    for place, panel, title, label in zip(axes, bars(), titles, labels, strict=True):
        figures.plot_bars(place, panel, label, "{:.0f}")
        place.set_title(title, loc="left", fontweight="bold")
        place.tick_params(axis="y", labelsize=8)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
