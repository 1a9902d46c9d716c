"""What a right answer of assignment 07 must satisfy: a search that changes one weight at a time and keeps to a budget.

Source: Huang et al. 2023, arXiv 2307.13269, section 3.3, for the black-box setting; lesson 07's greedy search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, holds

STEP = 0.4


class _Counted:
    """A loss that keeps what it was asked for."""

    def __init__(self, target: np.ndarray, curvature: np.ndarray) -> None:
        self.target, self.curvature = target, curvature
        self.points: list[np.ndarray] = []

    def of(self, weights: object) -> float:
        """The loss of a weight vector; not counted."""
        return float(self.curvature @ (np.asarray(weights, dtype=np.float64) - self.target) ** 2)

    def ask(self, weights: object) -> float:
        self.points.append(np.array(weights, dtype=np.float64))
        return self.of(weights)


def _why_not_best(made: np.ndarray, points: list[np.ndarray], losses: list[float]) -> str:
    """What an answer did that returned another candidate than the best one."""
    if np.allclose(made, points[int(np.argmax(losses))]):
        return "the loss is maximised: keep a change that lowers it"
    if np.allclose(made, points[-1]):
        return "the last candidate comes back, not the best of all that were tried"
    return "keep the best candidate and its loss, and return them"


def _why_far_away(points: list[np.ndarray], start: np.ndarray) -> str:
    """What an answer did that ended far from the lowest loss."""
    moves = np.stack(points) - start
    if len(points) < 10:
        return "the search ends long before the budget is used up: go round the weights again"
    if not moves.any(axis=0).all():
        return "some of the weights are never changed"
    if (moves >= -1e-12).all() or (moves <= 1e-12).all():
        return "only steps in one direction are tried"
    if np.allclose(np.round(moves / STEP), moves / STEP, atol=1e-6):
        return "the step never becomes smaller: halve it when a whole round brought nothing"
    return "keep what lowers the loss and go on from there"


@problem(
    "07.7",
    "a search that counts its evaluations",
    hints=(
        "What do you have to remember between two calls of loss, and what costs something?",
        "Remember the best weights and their loss. Try w[i] + step and w[i] − step for every i; keep what is lower; "
        "halve the step after a round without success; stop before the budget is exceeded.",
        "Count the calls. best = loss(start); while calls < budget: for i, for sign: if calls == budget, return; "
        "tried = w.copy(); tried[i] += sign * step; value = loss(tried); if value < best: w, best = tried, value …",
    ),
)
def coordinate_search(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of coordinate_search(loss, start, step, budget) -> the pair weights (n,), loss."""
    for size, budget in ((4, 150), (3, 61)):
        start, distance = (torch.rand(2, size, generator=generator, dtype=torch.float64)).numpy()
        # Not a whole number of steps away, and for some weights down, for others up.
        target = start + (0.55 + 0.13 * distance) * np.where(np.arange(size) % 2 == 0, -1.0, 1.0)
        counted, given = _Counted(target, np.linspace(1.0, 2.0, size)), start
        made = answer(counted.ask, given, STEP, budget)
        yield _is_pair(f"{size} weights and their loss come back", made, size)
        calls = len(counted.points)
        counts = "every call counts, also that for the start and those that brought nothing"
        yield holds(f"loss is called at most {budget} times", 1 <= calls <= budget, f"{calls} calls", counts)
        if not calls or not _is_pair("", made, size).passed:
            return
        yield from _outcome(np.asarray(made[0], dtype=np.float64), float(made[1]), counted, start)
    counted = _Counted(target, np.ones(size))
    made = answer(counted.ask, start, STEP, 1)
    yield holds(
        "with a budget of 1 it returns the start",
        len(counted.points) == 1 and _is_pair("", made, size).passed and np.allclose(made[0], start),
        f"{len(counted.points)} calls",
        "the start's own loss takes the first evaluation, and then the budget is used up",
    )
    for mirrored in (target, 2 * start - target):  # whichever way it goes first, one of the two is the wrong way
        counted = _Counted(mirrored, np.ones(size))
        made = answer(counted.ask, start, STEP, 2)
        seen = counted.of(made[0]) if _is_pair("", made, size).passed else math.inf
        best = min((counted.of(point) for point in counted.points), default=-math.inf)
        words = "the last candidate comes back, not the best of all that were tried"
        yield holds(
            "with a budget of 2 it returns the better of the two", abs(seen - best) < 1e-9, f"{seen:.4g}", words
        )


def _is_pair(name: str, made: object, size: int) -> Property:
    sound = isinstance(made, tuple | list) and len(made) == 2 and np.shape(made[0]) == (size,)
    return holds(name, sound, type(made).__name__, "return the pair weights, loss")


def _outcome(weights: np.ndarray, value: float, counted: _Counted, start: np.ndarray) -> Iterator[Property]:
    """The properties of what came back, given all that was tried."""
    points = counted.points
    alone = all(
        any((np.abs(now - then) > 1e-6).sum() <= 1 for then in [start, *points[:k]]) for k, now in enumerate(points)
    )
    yield holds("one weight changes at a time", alone, misconception="several weights were changed at once")
    losses, found = [counted.of(point) for point in points], counted.of(weights)
    best = abs(found - min(losses)) < 1e-9
    yield holds("the best of all comes back", best, f"{found:.4g}", _why_not_best(weights, points, losses))
    same = abs(found - value) < 1e-6
    yield holds("the loss belongs to the weights", same, f"{value:.4g}", "that is the loss of another candidate")
    near, seen = found < 0.01 * counted.of(start), f"loss {found:.3g}, {counted.of(start):.3g} at the start"
    yield holds("it comes near the lowest loss", near, seen, _why_far_away(points, start))
