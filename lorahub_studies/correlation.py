"""Rank correlations with intervals, also with other quantities held fixed, and what they say about fixed hypotheses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lorahub_edu.errors import CourseError

MEASURES = ("intruders", "spike_ratio", "relative_size", "nuclear_norm")
RESAMPLES = 4000
LEVEL = 95.0
FEWEST = 5


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho with its bootstrap interval over so many runs."""

    rho: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        return f"{self.rho:.2f} ({self.low:.2f} to {self.high:.2f})"


def partial_rho(x: np.ndarray, y: np.ndarray, given: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Spearman's rho of x and y; with `given`, of what is left of their ranks after a linear fit on the ranks of these.

    All are (..., n), and the result is (...). From -1 to 1; NaN where nothing is left to vary.
    """
    ranks = [stats.rankdata(values, axis=-1) for values in (x, y)]
    if given:
        design = np.stack([np.ones(x.shape), *(stats.rankdata(values, axis=-1) for values in given)], -1)  # (..., n, g)
        inverse = np.linalg.pinv(design)  # (..., g, n)
        ranks = [values - (design @ (inverse @ values[..., None]))[..., 0] for values in ranks]
    a, b = (values - values.mean(-1, keepdims=True) for values in ranks)
    scale = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    varies = scale > 1e-9 * x.shape[-1] ** 2
    return np.where(varies, (a * b).sum(-1) / np.where(varies, scale, 1.0), np.nan)[()]


def correlate(x: Sequence[float], y: Sequence[float], given: Sequence[Sequence[float]] = ()) -> Correlation:
    """Spearman's rho over at least 5 runs, with `given` held fixed, and the middle 95 % of bootstrap resamples.

    Raises CourseError: too few runs.
    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13 (percentile interval).
    """
    return _with_interval((x, y, *given), lambda c: partial_rho(c[0], c[1], c[2:]))


def compare(
    x: Sequence[float], other: Sequence[float], y: Sequence[float], given: Sequence[Sequence[float]] = ()
) -> Correlation:
    """How much more x correlates with y than `other` does: the difference of the two rhos, on the same resamples."""

    def difference(c: list[np.ndarray]) -> np.ndarray:
        return partial_rho(c[0], c[2], c[3:]) - partial_rho(c[1], c[2], c[3:])

    return _with_interval((x, other, y, *given), difference)


def _with_interval(
    values: Sequence[Sequence[float]], statistic: Callable[[list[np.ndarray]], np.ndarray]
) -> Correlation:
    """A statistic of columns (..., runs), with its middle 95 % over resampled runs in which something varies."""
    columns = [np.asarray(column, dtype=float) for column in values]
    if len(columns[0]) < FEWEST:
        raise CourseError(f"An interval needs at least {FEWEST} runs, but there are {len(columns[0])}.")
    runs = len(columns[0])
    chosen = np.random.default_rng(0).integers(0, runs, (RESAMPLES, runs))  # the same resamples for every statistic
    resampled = statistic([column[chosen] for column in columns])  # (RESAMPLES,)
    kept = resampled[~np.isnan(resampled)]
    low, high = np.percentile(kept, [(100 - LEVEL) / 2, (100 + LEVEL) / 2]) if len(kept) else (math.nan, math.nan)
    return Correlation(float(statistic(columns)), float(low), float(high), runs)


def judge(runs: Sequence[Mapping[str, float]]) -> dict[str, dict]:
    """What some runs say about H1 to H5 of `forgetting_sweep.HYPOTHESES`: whether each `held`, and why in numbers.

    Each run has `forgetting`, `loss`, and the four `MEASURES`.
    """
    column = {name: [float(run[name]) for run in runs] for name in (*MEASURES, "forgetting", "loss")}
    forgotten = column["forgetting"]
    raw = {name: correlate(column[name], forgotten) for name in MEASURES}
    best = max(raw, key=lambda name: raw[name].rho)
    given_size = correlate(column["intruders"], forgotten, [column["relative_size"]])
    lead = compare(column["nuclear_norm"], column["intruders"], forgotten, [column["loss"]])
    median = float(np.median(forgotten))
    clean = [f for f, count in zip(forgotten, column["intruders"], strict=True) if count == 0]
    most = max(clean, default=float("-inf"))
    verdicts = {
        "H1": (all(c.low > 0 for c in raw.values()), ", ".join(f"{n} {c}" for n, c in raw.items())),
        "H2": (best == "nuclear_norm", f"largest rho: {best} {raw[best]}"),
        "H3": (given_size.low <= 0 <= given_size.high, f"partial rho of the count {given_size}"),
        "H4": (lead.rho > 0, f"nuclear norm's partial rho minus the count's {lead}"),
        "H5": (
            most >= median,
            f"{len(clean)} of {len(runs)} runs without an intruder, the most forgetful of them {most:.3f} nats; "
            f"median of all {median:.3f}",
        ),
    }
    return {name: {"held": bool(held), "because": because} for name, (held, because) in verdicts.items()}
