"""What a sweep shows: differences between two methods draw by draw, the verdict they allow, and what adapting costs.

Exact match counts in points, 0 to 100; losses are in nats a token. A comparison is made within a draw, on the targets
that both methods were measured on, so that a hard draw or a hard target hits both alike.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorahub_edu import results
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.results import VERDICTS, Finding, Table
from lorahub_studies.hub.cells import METHODS
from lorahub_studies.hub.sweep import MEASURES

SHARES = ("strict", "answer_only")
ROUNDING = 1e-9
FEWEST_DRAWS = 3  # one or two draws that agree agree too often by chance

Rows = Sequence[Mapping]


def _cells(rows: Rows, method: str, measure: str, targets: Sequence[str] | None) -> dict[tuple[str, int], float]:
    """The values of one method by target and draw."""
    if measure not in MEASURES:
        raise CourseError(f"A sweep has no measure {measure!r}. {near_matches(measure, MEASURES)}")
    of_method = [row for row in rows if row["method"] == method]
    if not of_method:
        raise CourseError(
            f"The sweep has no row of the method {method!r}. {near_matches(method, {r['method'] for r in rows})}"
        )
    unknown = set(targets or ()) - {row["target"] for row in of_method}
    if unknown:
        raise CourseError(f"{method!r} was not measured on {', '.join(sorted(unknown))}: run the sweep on it first.")
    factor = 100 if measure in SHARES else 1
    return {
        (row["target"], row["draw"]): factor * row[measure]
        for row in of_method
        if targets is None or row["target"] in targets
    }


def _by_draw(values: Mapping[tuple[str, int], float], what: str) -> dict[int, float]:
    """Means over the targets, of the draws that have every target."""
    targets = {target for target, _ in values}
    draws = sorted({draw for _, draw in values})
    whole = [draw for draw in draws if all((target, draw) in values for target in targets)]
    if not whole:
        raise CourseError(f"There is no draw in which {what} was measured on every target: run the sweep to its end.")
    return {draw: statistics.fmean(values[target, draw] for target in targets) for draw in whole}


def per_draw(
    rows: Rows, method: str, measure: str = "strict", targets: Sequence[str] | None = None
) -> dict[int, float]:
    """A method's mean over targets, draw by draw.

    Args:
        rows: of a sweep.
        method: a key of `METHODS`.
        measure: one of `sweep.MEASURES`.
        targets: which; None takes all that the method was measured on.

    Returns:
        The mean by draw, in points for exact match, of the draws that have every target.

    Raises:
        CourseError: no such method or measure, or no whole draw.
    """
    return _by_draw(_cells(rows, method, measure, targets), repr(method))


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

    Args:
        rows: of a sweep.
        method: a key of `METHODS`.
        other: the one that is taken off.
        measure: one of `sweep.MEASURES`.
        targets: which; None takes all that both have.
        other_measure: of `other`, where it is to be another one.

    Returns:
        The mean difference by draw, in points for exact match.

    Raises:
        CourseError: no such method or measure, or no draw in which both have all the targets.
    """
    mine = _cells(rows, method, measure, targets)
    theirs = _cells(rows, other, other_measure or measure, targets)
    both = {cell: mine[cell] - theirs[cell] for cell in mine if cell in theirs}
    return _by_draw(both, f"{method!r} beside {other!r}")


def verdict(differences: Sequence[float] | Mapping[int, float], bar: float = 0.0) -> str:
    """What repeats allow to say: "shown" if all of them are above the bar, "refuted here" if all are below zero.

    Args:
        differences: one a draw (or another repeat).
        bar: what to be above; it may not be negative.

    Returns:
        A verdict; "not shown here" for everything between, and for fewer than three repeats.
    """
    values = list(differences.values()) if isinstance(differences, Mapping) else list(differences)
    shown, not_shown, refuted = VERDICTS
    if len(values) < FEWEST_DRAWS or any(math.isnan(value) for value in values):
        return not_shown
    # a mean of shares that cancel is not quite zero in floating point, and no reason for a verdict
    return shown if min(values) > bar + ROUNDING else refuted if max(values) < -ROUNDING else not_shown


def break_even(evaluations: float, example_tokens: float, in_context_tokens: float, zero_shot_tokens: float) -> float:
    """After how many queries shorter prompts have paid back the search.

    Args:
        evaluations: candidates that the search scored.
        example_tokens: tokens that the model reads to score one candidate.
        in_context_tokens: of a prompt that carries the examples.
        zero_shot_tokens: of the same prompt without them.

    Returns:
        Queries, not rounded.

    Raises:
        CourseError: the prompt with the examples is not the longer one.

    Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 4; claim H11.
    """
    saved = in_context_tokens - zero_shot_tokens
    if saved <= 0:
        raise CourseError(
            f"A prompt with examples must be longer than one without, but they have {in_context_tokens:g} and "
            f"{zero_shot_tokens:g} tokens: are the two swapped?"
        )
    return evaluations * example_tokens / saved


def spread_by_modules(rows: Rows, method: str, measure: str = "strict") -> dict[int, dict[str, list[float]]]:
    """What a method reaches with so many modules: by number of modules and target, one value a draw.

    Args:
        rows: of one or several sweeps over the same targets with different numbers of modules.
        method: a key of `METHODS`.
        measure: one of `sweep.MEASURES`.

    Returns:
        {modules: {target: values}}, fewest modules first; exact match in points.

    Raises:
        CourseError: no such method or measure.

    Source: claim H16.
    """
    found: dict[int, dict[str, list[float]]] = {}
    for count in sorted({row["modules"] for row in rows}):
        cells = _cells([row for row in rows if row["modules"] == count], method, measure, None)
        for (target, _), value in sorted(cells.items()):
            found.setdefault(count, {}).setdefault(target, []).append(value)
    return found


def relatives_found(
    rows: Rows, method: str, relatives: Mapping[str, Sequence[str]], within: int = 3
) -> tuple[dict[int, float], float]:
    """How often the modules of the largest weights hold one that was named for the target beforehand.

    Args:
        rows: of a sweep; each row's `top` has the largest weights first.
        method: a key of `METHODS`.
        relatives: modules by target that should matter; a target without any is left out.
        within: how many of the largest weights are looked at.

    Returns:
        The share of targets in points, by draw, and the share that modules drawn at random would reach.

    Raises:
        CourseError: no such method, or no target with relatives.

    Source: claim H13.
    """
    named = {target: set(names) for target, names in relatives.items() if names}
    asked = [row for row in rows if row["target"] in named]
    _cells(asked, method, "strict", None)
    hits, chances = {}, []
    for row in asked:
        if row["method"] != method:
            continue
        largest = {name for name, _ in row.get("top", [])[:within]}
        hits[row["target"], row["draw"]] = 100.0 * bool(largest & named[row["target"]])
        others = row["modules"] - len(named[row["target"]])
        chances.append(100 * (1 - math.comb(others, within) / math.comb(row["modules"], within)))
    return _by_draw(hits, repr(method)), statistics.fmean(chances)


def overview(summary: Sequence[Mapping], caption: str = "") -> Table:
    """Methods down, measures across, each as the mean over targets with its range over the draws.

    Time is the processor's, not the clock's: a sweep runs for hours beside other work.

    Args:
        summary: of `sweep.summarise`.
        caption: of the table.

    Returns:
        A table for a page.
    """
    means = {entry["method"]: entry for entry in summary if entry["target"] == "mean"}
    lines = [
        (
            METHODS[name].label,
            *(_range(means[name][measure], measure) for measure in ("strict", "answer_only", "loss")),
            f"{means[name]['prompt_tokens']['mean']:.0f}",
            f"{means[name]['cpu_seconds']['mean']:.0f}",
            f"{means[name]['targets']} × {means[name]['draws']}",
        )
        for name in METHODS
        if name in means
    ]
    header = (
        "method",
        "strict (%)",
        "answer only (%)",
        "loss (nats)",
        "tokens a query",
        "processor seconds to adapt",
        "targets × draws",
    )
    return Table(header, tuple(lines), caption)


def _range(values: Mapping[str, float], measure: str) -> str:
    """A mean with its range over the draws; exact match in points."""
    factor, digits = (100, 1) if measure in SHARES else (1, 2)
    mean, low, high = (f"{factor * values[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low}–{high})"


def finding(
    content: Mapping, name: str, values: Sequence[float] | Mapping[int, float], unit: str, **more: str
) -> Finding:
    """A finding whose values come from a sweep: it carries the sweep's machine, versions and day, not this run's.

    Args:
        content: of `sweep.read`.
        name: of the finding; what stands before its first dot is the claim.
        values: one a draw.
        unit: of the values.
        **more: `verdict`, `note` and `model` of the finding.
    """
    draws = tuple(values) if isinstance(values, Mapping) else ()
    numbers = tuple(float(v) for v in (values.values() if isinstance(values, Mapping) else values))
    return Finding(
        name, numbers, unit, claim=name.partition(".")[0], seeds=draws, device=content["device"],
        versions=dict(content["versions"]), date=content["date"],
        profile=str(content["settings"].get("profile", "")), **more,
    )  # fmt: skip


def benchmark(name: str, source: Path | None = None) -> dict | None:
    """The committed line of a benchmark, or None where it has not been run with --save."""
    path = (source or results.committed_folder()) / f"benchmark_{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
