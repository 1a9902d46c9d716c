"""What every search for the weights of a composition shares: the protocol, the space, the checks.

A search is a generator: it yields candidates, a float64 array (P, N), and is sent back their losses, (P,), with NaN
where a candidate failed. The same settings and losses give the same candidates, so a recorded run can be gone on with.

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 4.1, for the bounds.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from lorahub_edu.errors import CourseError

Search = Generator[np.ndarray, np.ndarray, None]


@dataclass(frozen=True)
class Space:
    """The weights to search: how many, and the bounds of each (the paper's by default)."""

    dimension: int
    lower: float = -1.5
    upper: float = 1.5

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise CourseError(
                f"A search needs at least one weight, but got {self.dimension}: give at least one module."
            )
        if not self.lower < self.upper:
            raise CourseError(f"The bounds of a weight must go up, but they are {self.lower} and {self.upper}.")

    def clip(self, X: np.ndarray) -> np.ndarray:
        """Candidates (..., N) with every weight beyond a bound moved onto it."""
        return np.clip(X, self.lower, self.upper)


def check_budget(budget: int) -> None:
    if budget < 1:
        raise CourseError(f"A search scores at least one candidate, but the budget is {budget}. Try 40.")


def start_of(space: Space, start: Sequence[float] | None) -> np.ndarray:
    """The start as (N,) float64, zero without one."""
    w = np.zeros(space.dimension) if start is None else np.array(start, dtype=np.float64)
    if w.shape != (space.dimension,):
        raise CourseError(f"A start has one number a weight, {space.dimension} here, but its shape is {w.shape}.")
    if not (np.isfinite(w).all() and (w >= space.lower).all() and (w <= space.upper).all()):
        raise CourseError(
            f"The start must lie within [{space.lower}, {space.upper}], but it goes from {w.min()} to {w.max()}."
        )
    return w
