"""What a sweep of trials shows: tables, differences between two methods draw by draw, verdicts, and costs.

Exact match counts in points, 0 to 100; losses are in nats a token. A comparison is made within a draw, on the targets
that both methods were measured on, so that a hard draw or a hard target affects both alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd

from lorahub_edu import results
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.results import Finding, Table, spread
from lorahub_edu.show import findings
from lorahub_studies import engine
from lorahub_studies.approaches import METHODS
from lorahub_studies.baselines import TUNINGS

MEASURES = ("strict", "answer_only", "loss", "answer_loss", "seconds", "cpu_seconds", "prompt_tokens")
SHARES = ("strict", "answer_only")  # measures from 0 to 1, shown in percent
ROUNDING = 1e-9
FEWEST_DRAWS = 3  # one or two draws that agree agree too often by chance

Rows = Sequence[Mapping]


def shown(values: Mapping[str, float] | None, measure: str, digits: int = 0) -> str:
    """A spread as "mean (low–high)": exact match in percent with so many digits, any other measure with two."""
    if values is None:
        return "–"
    factor, digits = (100, digits) if measure in SHARES else (1, 2)
    mean, low, high = (f"{factor * values[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low}–{high})"


def summarise(rows: Rows) -> list[dict]:
    """Per target and method the `mean`, `low` and `high` of each measure over the draws, and the number of `draws`.

    One entry a method has the target "mean": the mean over targets, with the lowest and highest of the draws' means.
    """
    frame = pd.DataFrame(rows)
    entries = [
        {"target": target, "method": method, "draws": len(group), "test_items": int(group["test_items"].iloc[0])}
        | {measure: spread(list(group[measure])) for measure in MEASURES}
        for (target, method), group in frame.groupby(["target", "method"], sort=False)
    ]
    for method, group in frame.groupby("method", sort=False):
        targets = group["target"].nunique()
        whole = [draw for _, draw in group.groupby("draw") if draw["target"].nunique() == targets]
        if whole:
            entries.append(
                {"target": "mean", "method": method, "draws": len(whole), "targets": targets}
                | {measure: spread([statistics.fmean(draw[measure]) for draw in whole]) for measure in MEASURES}
            )
    return entries


def write(rows: Rows, name: str, settings: dict, into: Path | None = None) -> Path:
    """Write a sweep's rows and summary with their provenance to <results>/<name>.json."""
    kept = []
    for row in rows:
        top = [[module, round(weight, 3)] for module, weight in row.get("top", [])]
        kept.append({key: value for key, value in row.items() if key != "top"} | ({"top": top} if top else {}))
    return engine.write(kept, name, settings, summarise(rows), into)


def line(row: Mapping) -> str:
    """A row for a terminal."""
    return (
        f"{row['target']} draw {row['draw']}  {METHODS[row['method']].label}: strict {row['strict']:.0%}, answer only "
        f"{row['answer_only']:.0%}, loss {row['loss']:.2f}, {row['seconds']:.0f} s"
    )


def table(
    summary: Sequence[Mapping], measure: str = "strict", targets: Sequence[str] | None = None, caption: str = ""
) -> Table:
    """Methods down, targets (default all, the mean last) across: mean and range over the draws, exact match in %."""
    columns = list(targets or dict.fromkeys(e["target"] for e in summary if e["target"] != "mean"))
    columns += ["mean"] if targets is None else []
    cells = {(entry["target"], entry["method"]): entry[measure] for entry in summary}
    lines = [
        (approach.label, *(shown(cells.get((target, method)), measure) for target in columns))
        for method, approach in METHODS.items()
        if any((target, method) in cells for target in columns)
    ]
    return Table(("method", *columns), tuple(lines), caption)


def overview(summary: Sequence[Mapping], caption: str = "") -> Table:
    """Methods down, measures across, each as the mean over targets with its range over the draws.

    Time is the processor's, not the clock's: a sweep runs for hours beside other work.
    """
    means = {entry["method"]: entry for entry in summary if entry["target"] == "mean"}
    lines = [
        (
            approach.label,
            *(shown(means[name][measure], measure, 1) for measure in ("strict", "answer_only", "loss")),
            f"{means[name]['prompt_tokens']['mean']:.0f}",
            f"{means[name]['cpu_seconds']['mean']:.0f}",
            f"{means[name]['targets']} × {means[name]['draws']}",
        )
        for name, approach in METHODS.items()
        if name in means
    ]
    header = ("method", "strict (%)", "answer only (%)", "loss (nats)", "tokens a query", "processor seconds to adapt")
    return Table((*header, "targets × draws"), tuple(lines), caption)


def per_draw(
    rows: Rows, method: str, measure: str = "strict", targets: Sequence[str] | None = None
) -> dict[int, float]:
    """A method's mean over targets by draw, in points for exact match, of the draws that have every target.

    Raises CourseError: no such method, or no whole draw.
    """
    return _by_draw(_values(rows, method, measure, targets), repr(method))


def difference(
    rows: Rows,
    method: str,
    other: str,
    measure: str = "strict",
    targets: Sequence[str] | None = None,
    *,
    other_measure: str | None = None,
) -> dict[int, float]:
    """By how much one method is above another, draw by draw: the mean over the targets that both were measured on.

    Exact match is in points. `other_measure` compares with another measure of the other method.
    Raises CourseError: no such method, or no draw in which both have all the targets.
    """
    others = _values(rows, other, other_measure or measure, targets)
    return _by_draw((_values(rows, method, measure, targets) - others).dropna(), f"{method!r} beside {other!r}")


def over_targets(
    rows: Rows, method: str, other: str, measure: str = "strict", *, resamples: int = 10_000
) -> dict[str, float]:
    """The mean of a difference with its 95 % interval over targets, and over draws within each target.

    The interval is a hierarchical bootstrap: targets are drawn again with their draws, then draws within each.
    Returns: "mean", "low", "high" in the measure's unit (points for exact match), and the targets "ahead" and "behind".
    Raises CourseError: no such method, or no draw in which both have all the targets.
    """
    draws = list(difference(rows, method, other, measure))
    differences = (_values(rows, method, measure) - _values(rows, other, measure)).dropna()
    frame = differences.unstack("draw")[draws].to_numpy()  # (targets, draws)
    targets, count = frame.shape
    generator = np.random.default_rng(0)
    chosen = generator.integers(targets, size=(resamples, targets, 1))
    means = frame[chosen, generator.integers(count, size=(resamples, targets, count))].mean(axis=(1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    of_target = frame.mean(axis=1)
    ahead, behind = int((of_target > ROUNDING).sum()), int((of_target < -ROUNDING).sum())
    return {"mean": float(frame.mean()), "low": float(low), "high": float(high), "ahead": ahead, "behind": behind}


def against(rows: Rows, pairs: Sequence[tuple[str, str]], caption: str) -> Table:
    """By pair of methods the difference in strict exact match, its interval over targets, and what it says."""
    lines = []
    for method, other in pairs:
        i = over_targets(rows, method, other)
        words = (f"{i['mean']:+.1f}", f"{i['low']:+.1f} to {i['high']:+.1f}", f"{i['ahead']} and {i['behind']}")
        lines.append((f"{METHODS[method].label} minus {METHODS[other].label}", *words, verdict_over_targets(i)))
    header = ("", "mean", "95 % interval over targets", "targets ahead and behind", "the first is above")
    return Table(header, tuple(lines), caption)


def largest_weights(rows: Rows, method: str) -> dict[int, float]:
    """By draw the mean over targets of the largest |w| that a search found. Claim H20."""
    tops = [row | {"largest": abs(row["top"][0][1]) if row.get("top") else 0.0} for row in rows]
    return _by_draw(_values(tops, method, "largest"), repr(method))


def _values(rows: Rows, method: str, measure: str, targets: Sequence[str] | None = None) -> pd.Series:
    """The values of one method by target and draw."""
    of_method = {
        (row["target"], row["draw"]): row[measure]
        for row in rows
        if row["method"] == method and (targets is None or row["target"] in targets)
    }
    if not of_method:
        known = {row["method"] for row in rows}
        raise CourseError(f"The sweep has no row of the method {method!r}. {near_matches(method, known)}")
    return pd.Series(of_method).rename_axis(["target", "draw"]) * (100 if measure in SHARES else 1)


def _by_draw(values: pd.Series, what: str) -> dict[int, float]:
    """Means over the targets, of the draws that have every target."""
    whole = values.unstack("draw").dropna(axis="columns")
    if whole.empty:
        raise CourseError(f"There is no draw in which {what} was measured on every target: run the sweep to its end.")
    return {int(draw): statistics.fmean(of_draw) for draw, of_draw in whole.items()}


def verdict_over_targets(interval: Mapping[str, float]) -> str:
    """The verdict on "the method is above the other": by the side of zero on which the whole 95 % interval lies.

    One comparison in twenty lies outside by luck, so a table says how many it holds.
    """
    return findings.verdict(interval["low"] > ROUNDING, interval["high"] < -ROUNDING)


def verdict(differences: Sequence[float] | Mapping[int, float]) -> str:
    """The verdict that repeats allow: "shown" if all are above zero, "refuted here" if all are below zero.

    Everything between, and fewer than three repeats, is "not shown here".
    """
    values = np.array(list(differences.values() if isinstance(differences, Mapping) else differences))
    enough = len(values) >= FEWEST_DRAWS
    # a mean of shares that cancel is not quite zero in floating point, and no reason for a verdict
    return findings.verdict(enough and all(values > ROUNDING), enough and all(values < -ROUNDING))


def break_even(evaluations: float, example_tokens: float, in_context_tokens: float, zero_shot_tokens: float) -> float:
    """After how many queries (not rounded) shorter prompts have paid back the search.

    Scoring one of the search's `evaluations` reads `example_tokens`; a prompt with and without the examples has the
    other two numbers of tokens.
    Raises CourseError: the prompt with the examples is not the longer one.
    Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 4; claim H11.
    """
    saved = in_context_tokens - zero_shot_tokens
    if saved <= 0:
        raise CourseError(
            f"A prompt with examples must be longer than one without, but they have {in_context_tokens:g} and "
            f"{zero_shot_tokens:g} tokens: are the two swapped?"
        )
    return evaluations * example_tokens / saved


def baseline_rates(*names: str) -> list[tuple[float, int]]:
    """The learning rate and the epochs of the baselines that tune on the examples; claim H8."""
    return [(TUNINGS[name].learning_rate, TUNINGS[name].epochs) for name in names]


def spread_by_modules(rows: Rows, method: str, measure: str = "strict") -> dict[int, dict[str, list[float]]]:
    """A method's values by number of modules (fewest first) and target, one a draw, exact match in points. H16."""
    return {
        count: _values(list(of_count), method, measure).sort_index().groupby("target").agg(list).to_dict()
        for count, of_count in groupby(sorted(rows, key=lambda row: row["modules"]), key=lambda row: row["modules"])
    }


def relatives_found(
    rows: Rows, method: str, relatives: Mapping[str, Sequence[str]], within: int = 3
) -> tuple[dict[int, float], float]:
    """How often the `within` largest weights include a module that was named for the target beforehand. Claim H13.

    `relatives`: modules by target that should matter; a target without any is left out.
    Returns: The share of targets in points, by draw, and the share that modules drawn at random would reach.
    """
    rows = [row for row in rows if relatives.get(row["target"])]
    _values(rows, method, "strict")  # there are some
    hits, chances = {}, []
    for row in (row for row in rows if row["method"] == method):
        named = set(relatives[row["target"]])
        largest = {name for name, _ in row.get("top", [])[:within]}
        hits[row["target"], row["draw"]] = 100.0 * bool(largest & named)
        chances.append(100 * (1 - math.comb(row["modules"] - len(named), within) / math.comb(row["modules"], within)))
    return _by_draw(pd.Series(hits).rename_axis(["target", "draw"]), repr(method)), statistics.fmean(chances)


def finding(
    content: Mapping, name: str, values: Sequence[float] | Mapping[int, float], unit: str, **more: str
) -> Finding:
    """A finding whose values (one a draw) come from a sweep: it carries the sweep's machine, versions and day.

    `content` is what `engine.read` gives. The name's part before its first dot is the claim.
    """
    by_draw = values if isinstance(values, Mapping) else {}
    numbers = tuple(float(value) for value in (by_draw.values() or values))
    return Finding(
        name, numbers, unit, claim=name.partition(".")[0], seeds=tuple(by_draw), device=content["device"],
        versions=dict(content["versions"]), date=content["date"],
        profile=str(content["settings"].get("profile", "")), **more,
    )  # fmt: skip


def benchmark(name: str, source: Path | None = None) -> dict | None:
    """The committed line of a benchmark, or None where it has not been run with --save."""
    try:
        return results.read_study(f"benchmark_{name}", "its command", source)
    except CourseError:
        return None
