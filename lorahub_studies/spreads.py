"""Spreads of repeated measurements in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorahub_edu import results

SHARES = ("strict", "answer_only")  # measures from 0 to 1, shown in percent


def shown(values: Mapping[str, float] | None, measure: str, digits: int = 0) -> str:
    """A spread as "mean (low–high)": exact match in percent with so many digits, any other measure with two."""
    if values is None:
        return "–"
    factor, digits = (100, digits) if measure in SHARES else (1, 2)
    mean, low, high = (f"{factor * values[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low}–{high})"


def in_words(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and lowest to highest where they differ."""
    mean, low, high = (f"{value:.{digits}f}" for value in results.spread(values).values())
    return mean if low == high else f"{mean} ({low} to {high})"
