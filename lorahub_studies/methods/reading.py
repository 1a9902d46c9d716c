"""What a comparison of methods shows: who is better beyond the spread of the seeds, and what combining brings."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def by_variant(summary: Sequence[dict]) -> dict[str, dict]:
    """The entries of a summary by their line, without those that do not run."""
    return {entry["variant"]: entry for entry in summary if entry["tasks"]}


def mean_score(entry: dict, measure: str = "strict") -> float:
    """A line's mean over its tasks, of the means over the seeds."""
    return statistics.fmean(found[measure]["mean"] for found in entry["tasks"].values())


def apart(one: dict, other: dict, task: str, measure: str = "strict") -> int:
    """Which of two lines is better on a task beyond the spread of the seeds.

    Args:
        one: an entry of a summary.
        other: another.
        task: on which both were measured.
        measure: "strict" or "answer_only", or a loss, of which less is better.

    Returns:
        1 where the worst seed of `one` is better than the best of `other`, -1 the other way round, else 0.
    """
    a, b = one["tasks"][task][measure], other["tasks"][task][measure]
    sign = -1 if measure.endswith("loss") else 1
    if a["low"] > b["high"]:
        return sign
    return -sign if b["low"] > a["high"] else 0


def duels(summary: Sequence[dict], champion: str = "lora", measure: str = "strict") -> dict[str, dict[str, int]]:
    """Per rival and task whether the champion is better (1), worse (-1), or neither beyond the spread (0)."""
    entries = by_variant(summary)
    return {
        name: {task: apart(entries[champion], entry, task, measure) for task in entry["tasks"]}
        for name, entry in entries.items()
        if name != champion
    }


def gains(summary: Sequence[dict], pairs: Sequence[str], measure: str = "strict") -> dict[str, float]:
    """What combining brings: per pair ("lora+prefix") its mean score less that of its better part alone.

    A pair is left out where it, or none of its parts, was measured.
    """
    entries = by_variant(summary)
    found = {}
    for pair in pairs:
        parts = [mean_score(entries[name], measure) for name in pair.split("+") if name in entries]
        if pair in entries and parts:
            found[pair] = mean_score(entries[pair], measure) - max(parts)
    return found


def ratio(summary: Sequence[dict], one: str, other: str, key: str) -> float | None:
    """A cost ("step_cpu_seconds", "peak_bytes", …) of one line divided by another's; None where either is missing."""
    costs = {entry["variant"]: entry[key] for entry in summary if key in entry}
    return costs[one] / costs[other] if one in costs and other in costs else None


def best_verdict(found: dict[str, dict[str, int]]) -> str:
    """The verdict on "the champion is at least as good as every rival".

    Args:
        found: of `duels`.

    Returns:
        "refuted here" where a rival is better beyond the spread on every task; "not shown here" where one is so on
        some task, or no rival anywhere is worse beyond it; else "shown".
    """
    if any(all(value < 0 for value in tasks.values()) for tasks in found.values()):
        return "refuted here"
    every = [value for tasks in found.values() for value in tasks.values()]
    return "shown" if every and min(every) >= 0 and max(every) > 0 else "not shown here"


def points(summary: Sequence[dict], measure: str = "strict") -> dict[str, tuple[int, float, float, float]]:
    """Per line (by its label) trained parameters, and mean over the tasks of the measure's mean, low and high."""
    return {
        entry["label"]: (
            entry["trainable"],
            *(statistics.fmean(t[measure][key] for t in entry["tasks"].values()) for key in ("mean", "low", "high")),
        )
        for entry in by_variant(summary).values()
    }
