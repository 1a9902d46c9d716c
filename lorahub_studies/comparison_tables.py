"""What the comparison of methods shows: rates, scores and costs, and who is better beyond the spread of the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import pandas as pd

from lorahub_edu.results import Table, spread
from lorahub_edu.show.findings import verdict
from lorahub_studies import engine
from lorahub_studies.adapting_tables import shown
from lorahub_studies.variants import get_variant

MEASURES = ("strict", "answer_only", "loss", "answer_loss", "cpu_seconds")


def chosen_rates(rows: Sequence[Mapping]) -> dict[tuple[str, str], float]:
    """Per (task, line) the rate with the lowest validation loss at the first seed; lines that do not run have none."""
    frame = pd.DataFrame(rows, columns=["task", "variant", "rate", "seed", "validation_loss"])
    searched = frame[frame["seed"] == frame["seed"].min()].dropna(subset="validation_loss")
    runs = searched.rename(columns={"rate": "learning_rate"})
    return engine.best_rates(runs, ["task", "variant"], "validation_loss")


def summarise(rows: Sequence[Mapping]) -> list[dict]:
    """One entry a line of the comparison: what it trains and costs, and per task its rate and scores.

    Returns: Entries with `variant`, `label`, the fields of `comparison.cost`, `error` where it does not run, and
        `tasks`: per task `rate`, `seeds`, `edge` (whether the rate is the lowest or highest that was tried), and for
        each measure `mean`, `low` and `high` over the seeds.
    """
    rates = chosen_rates(rows)
    running = {name for _, name in rates}
    entries: dict[str, dict] = {}
    for row in rows:
        name = row["variant"]
        entry = entries.setdefault(name, {"variant": name, "label": get_variant(name).label, "tasks": {}})
        entry |= {"trainable": row["trainable"]} if "trainable" in row else {}
        if "task" not in row:
            entry |= row
        elif "error" in row and (name not in running or rates.get((row["task"], name)) == row["rate"]):
            entry["error"] = row["error"]  # not where another rate runs: then this one was too high
    for (task, name), rate in rates.items():
        of_rate = [row for row in rows if (row.get("task"), row["variant"], row.get("rate")) == (task, name, rate)]
        finished = [row for row in of_rate if "error" not in row]
        tried = get_variant(name).rates
        edge = rate in (min(tried), max(tried))
        entries[name]["tasks"][task] = {"rate": rate, "seeds": len(finished), "edge": edge} | {
            measure: spread([row[measure] for row in finished]) for measure in MEASURES
        }
    return list(entries.values())


def line(row: Mapping) -> str:
    """A row for a terminal."""
    where = f"{row['task']}, rate {row['rate']:g}, seed {row['seed']}" if "task" in row else "cost"
    name = f"{get_variant(row['variant']).label}, {where}: "
    if "error" in row:
        return name + row["error"]
    if "task" not in row:
        return name + f"{row['step_cpu_seconds']:.2f} s/step, {row['peak_bytes'] / 1e9:.2f} GB"
    return name + (
        f"strict {row['strict']:.0%}, answer only {row['answer_only']:.0%}, loss {row['loss']:.2f}, "
        f"{row['cpu_seconds']:.0f} s of the processor"
    )


def table(summary: Sequence[Mapping], measure: str = "strict", caption: str = "") -> Table:
    """Lines down; what each trains and costs, and a measure on each task (exact match in percent), across.

    A method that does not run keeps its line, and its error stands in the last column.
    """
    tasks = list(dict.fromkeys(task for entry in summary for task in entry["tasks"]))
    costs = {  # column: key, format, factor
        "trains": ("trainable", ",.0f", 1.0),
        "MB on disk": ("disk_bytes", ",.2f", 1e-6),
        "GB at the peak": ("peak_bytes", ".2f", 1e-9),
        "s/step": ("step_cpu_seconds", ".2f", 1.0),
        "tokens/s": ("tokens_per_cpu_second", ".1f", 1.0),
    }
    lines = [
        (
            entry["label"],
            *(format(entry[key] * factor, form) if key in entry else "–" for key, form, factor in costs.values()),
            *(shown(entry["tasks"].get(task, {}).get(measure), measure) for task in tasks),
        )
        for entry in summary
    ]
    header = ("method", *costs, *tasks)
    if any("error" in entry for entry in summary):
        header = (*header, "does not run")
        lines = [(*cells, entry.get("error", "")) for cells, entry in zip(lines, summary, strict=True)]
    return Table(header, tuple(lines), caption)


def by_variant(summary: Sequence[Mapping]) -> dict[str, Mapping]:
    """The entries of a summary by their line, without those that do not run."""
    return {entry["variant"]: entry for entry in summary if entry["tasks"]}


def mean_score(entry: Mapping, measure: str = "strict", over_seeds: str = "mean") -> float:
    """A line's mean over its tasks, of the "mean", "low" or "high" over the seeds."""
    return statistics.fmean(scores[measure][over_seeds] for scores in entry["tasks"].values())


def apart(one: Mapping, other: Mapping, task: str, measure: str = "strict") -> int:
    """1 where the worst seed of `one` is better than the best of `other`, -1 the other way round, else 0."""
    a, b = one["tasks"][task][measure], other["tasks"][task][measure]
    sign = -1 if measure.endswith("loss") else 1
    if a["low"] > b["high"]:
        return sign
    return -sign if b["low"] > a["high"] else 0


def duels(summary: Sequence[Mapping], champion: str = "lora", measure: str = "strict") -> dict[str, dict[str, int]]:
    """Per rival and task whether the champion is better (1), worse (-1), or neither beyond the spread (0)."""
    entries = by_variant(summary)
    return {
        name: {task: apart(entries[champion], entry, task, measure) for task in entry["tasks"]}
        for name, entry in entries.items()
        if name != champion
    }


def gains(summary: Sequence[Mapping], pairs: Sequence[str], measure: str = "strict") -> dict[str, float]:
    """The gain of combining: per pair ("lora+prefix") its mean score minus that of its better part alone.

    A pair is left out where it, or none of its parts, was measured.
    """
    scores = {name: mean_score(entry, measure) for name, entry in by_variant(summary).items()}
    parts = {pair: [scores[name] for name in pair.split("+") if name in scores] for pair in pairs}
    return {pair: scores[pair] - max(parts[pair]) for pair in pairs if pair in scores and parts[pair]}


def ratio(summary: Sequence[Mapping], one: str, other: str, key: str) -> float | None:
    """A cost ("step_cpu_seconds", "peak_bytes", …) of one line divided by another's; None where either is missing."""
    costs = {entry["variant"]: entry[key] for entry in summary if key in entry}
    return costs[one] / costs[other] if one in costs and other in costs else None


def best_verdict(by_rival: Mapping[str, Mapping[str, int]]) -> str:
    """The verdict on "the champion is at least as good as every rival", given the `duels`.

    Returns: "refuted here" where a rival is better beyond the spread on every task; "not shown here" where one is so on
        some task, or no rival anywhere is worse beyond it; else "shown".
    """
    every = [value for tasks in by_rival.values() for value in tasks.values()]
    better = any(all(value < 0 for value in tasks.values()) for tasks in by_rival.values())
    return verdict(bool(every) and min(every) >= 0 and max(every) > 0, better)


def points(summary: Sequence[Mapping], measure: str = "strict") -> dict[str, tuple[int, float, float, float]]:
    """Per line (by its label) trained parameters, and mean over the tasks of the measure's mean, low and high."""
    return {
        entry["label"]: (entry["trainable"], *(mean_score(entry, measure, key) for key in ("mean", "low", "high")))
        for entry in by_variant(summary).values()
    }
