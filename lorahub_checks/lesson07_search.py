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
        "Budget 3, start (0, 0), step 1: call 1 scores (0, 0), call 2 (1, 0), call 3 (-1, 0), and there is no fourth. "
        "Copy the weights before you change one.",
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
    counted = _Counted(target, np.linspace(0.0, 2.0, size))  # the first weight changes nothing
    answer(counted.ask, start, STEP, budget)
    yield _as_told("a weight that does not matter stays as it is", counted, start)
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
    yield _as_told("every candidate follows from the best so far", counted, start)


def _as_told(name: str, counted: _Counted, start: np.ndarray) -> Property:
    """Whether the candidates are those of the search that the problem describes, in whatever order it takes weights."""
    fault = next(_faults(counted, start), "")
    return holds(name, not fault, "another search", fault)


def _faults(counted: _Counted, start: np.ndarray) -> Iterator[str]:
    """What candidates say of a search that does something else, the first thing first.

    Rounding in an answer's own numbers hides steps that are much smaller than the first one; they are not looked at.
    """
    points, step, failed = counted.points, STEP, 0
    best = earlier = points[0]
    if not np.allclose(best, start):
        yield "loss is asked for another point before the start: begin at the start"
    for k, point in enumerate(points[1:], 1):
        move = point - best
        moved = np.flatnonzero(np.abs(move) > step / 100)
        if len(moved) != 1:
            equal = any(counted.of(then) == counted.of(best) for then in points[:k] if (then != best).any())
            yield (
                "a candidate with the same loss is kept: keep what lowers it, or a flat direction is walked for ever"
                if equal
                else "a candidate does not differ from the best so far in one weight: keep what lowers the loss at once"
            )
            return
        length = abs(move[moved[0]])
        if math.isclose(length, 2 * step, rel_tol=0.01):  # both ways from where the weight stood before the first one
            length = np.abs(point - earlier).max()
        if math.isclose(length, step / 2, rel_tol=0.01):
            around = [best + way * step * unit for unit in np.eye(len(start)) for way in (1, -1)]
            if not all(any(np.allclose(then, place, atol=step / 100) for then in points) for place in around):
                yield "the step is halved before a whole round has brought nothing"
            step, failed = step / 2, 0
        if step < STEP / 200:
            return
        if not math.isclose(length, step, rel_tol=0.01):
            yield f"a step of {length:.3g} stands where {step:.3g} or its half belongs: both ways alike, and halve it"
            return
        lower = counted.of(point) < counted.of(best)
        best, earlier, failed = (point, best, 0) if lower else (best, earlier, failed + 1)
        if failed > 4 * len(start):
            yield "the step never becomes smaller, or too late: halve it after a round that brought nothing"
            return
