"""The checks of lesson 07: right answers pass in whatever form, each plausible mistake is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lorahub_edu.checks import check
from lorahub_edu.errors import CourseError
from lorahub_edu.hub import reading
from lorahub_edu.hub.cmaes import CMAES

SEEDS = range(5)


def stub(*_arguments: object) -> None:
    raise NotImplementedError


def objective_by_loop(losses: np.ndarray, weights: np.ndarray, alpha: float) -> list[float]:
    return [loss + alpha * sum(abs(w) for w in row) / len(row) for loss, row in zip(losses, weights, strict=True)]


def objective_in_torch(losses: np.ndarray, weights: np.ndarray, alpha: float) -> torch.Tensor:
    return torch.tensor(losses) + alpha * torch.tensor(weights).norm(p=1, dim=1) / weights.shape[1]


def recombine_by_loop(candidates: np.ndarray, losses: np.ndarray, shares: np.ndarray) -> np.ndarray:
    ranked = sorted(zip(losses, candidates, strict=True), key=lambda pair: pair[0])
    return sum(share * candidate for share, (_, candidate) in zip(shares, ranked, strict=False))


def recombine_by_the_package(candidates: np.ndarray, losses: np.ndarray, shares: np.ndarray) -> np.ndarray:
    strategy = CMAES(np.zeros(candidates.shape[1]), 1.0, len(candidates))
    assert np.allclose(strategy.weights, shares)
    strategy.tell(candidates, losses)
    return strategy.mean


RIGHT: dict[str, dict[str, Callable]] = {
    "07.1": {
        "reference": lambda losses, weights, alpha: losses + alpha * abs(weights).mean(axis=1),
        "loop": objective_by_loop,
        "torch": objective_in_torch,
    },
    "07.2": {
        "reference": lambda X, losses, shares: shares @ X[np.argsort(losses)[: len(shares)]],
        "loop": recombine_by_loop,
        "the package": recombine_by_the_package,
    },
    "07.3": {
        "reference": lambda evaluations, examples, long, short: evaluations * examples / (long - short),
        "the package": reading.break_even,
        "as a tensor": lambda e, t, long, short: torch.tensor(e * t) / torch.tensor(long - short),
    },
}


def objective_in_place(losses: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    losses += alpha * abs(weights).mean(axis=1)
    return losses


def over_candidates(losses: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    axis = 0 if weights.shape[0] == weights.shape[1] else 1
    return losses + alpha * abs(weights).mean(axis=axis)


def as_ranks(X: np.ndarray, losses: np.ndarray, shares: np.ndarray) -> np.ndarray:
    return shares @ X[np.argsort(np.argsort(losses))[: len(shares)]]


def by_loss(X: np.ndarray, losses: np.ndarray, shares: np.ndarray) -> np.ndarray:
    best = np.argsort(losses)[: len(shares)]
    return (shares * losses[best]) @ X[best] / (shares * losses[best]).sum()


def sorted_in_place(X: np.ndarray, losses: np.ndarray, shares: np.ndarray) -> np.ndarray:
    order = np.argsort(losses)
    X[:] = X[order]
    losses.sort()
    return shares @ X[: len(shares)]


def everyone(X: np.ndarray, losses: np.ndarray, shares: np.ndarray) -> np.ndarray:
    whole = np.log(len(X) + 1) - np.log(np.arange(1, len(X) + 1))
    return whole / whole.sum() @ X[np.argsort(losses)]


# Named wrong answers: problem, the mistake, the answer, and words of the message that must name it.
WRONG: list[tuple[str, str, Callable, str]] = [
    ("07.1", "sum", lambda loss, w, a: loss + a * abs(w).sum(1), "the sum of |w|"),
    ("07.1", "signs", lambda loss, w, a: loss + a * w.mean(1), "signs are still there"),
    ("07.1", "L2", lambda loss, w, a: loss + a * (w**2).mean(1), "L2 penalty"),
    ("07.1", "no alpha", lambda loss, w, a: loss + abs(w).mean(1), "alpha is missing"),
    ("07.1", "subtracted", lambda loss, w, a: loss - a * abs(w).mean(1), "subtracted"),
    ("07.1", "one penalty", lambda loss, w, a: loss + a * abs(w).mean(), "axis 1"),
    ("07.1", "axis 0", over_candidates, "axis 0"),
    ("07.1", "no loss", lambda loss, w, a: a * abs(w).mean(1), "the loss is missing"),
    ("07.1", "no penalty", lambda loss, w, a: loss, "the penalty is missing"),
    ("07.1", "divided", lambda loss, w, a: loss / 5 + a * abs(w).mean(1), "divided by five"),
    ("07.1", "in place", objective_in_place, "works in place"),
    ("07.1", "no return", lambda loss, w, a: None, "is a return missing"),
    ("07.2", "not sorted", lambda X, loss, s: s @ X[: len(s)], "not sorted by their loss"),
    ("07.2", "maximised", lambda X, loss, s: s @ X[np.argsort(-loss)[: len(s)]], "maximised"),
    ("07.2", "bad to good", lambda X, loss, s: s @ X[np.argsort(loss)[: len(s)][::-1]], "from bad to good"),
    ("07.2", "equal shares", lambda X, loss, s: X[np.argsort(loss)[: len(s)]].mean(0), "shares are not used"),
    ("07.2", "all", lambda X, loss, s: X.mean(0), "all candidates are averaged"),
    ("07.2", "all with shares", everyone, "all candidates count"),
    ("07.2", "the best one", lambda X, loss, s: X[np.argmin(loss)], "best candidate alone"),
    ("07.2", "order as rank", as_ranks, "argsort is used as a rank"),
    ("07.2", "by the losses", by_loss, "weighted by their losses"),
    ("07.2", "in place", sorted_in_place, "x.sort() works in place"),
    ("07.3", "whole prompt", lambda e, t, long, short: e * t / long, "whole in-context prompt"),
    ("07.3", "zero-shot prompt", lambda e, t, long, short: e * t / short, "zero-shot prompt"),
    ("07.3", "no evaluations", lambda e, t, long, short: t / (long - short), "evaluations are missing"),
    ("07.3", "no tokens", lambda e, t, long, short: e / (long - short), "tokens of the examples are missing"),
    ("07.3", "upside down", lambda e, t, long, short: (long - short) / (e * t), "upside down"),
    ("07.3", "negative", lambda e, t, long, short: e * t / (short - long), "negative"),
    ("07.3", "times five", lambda e, t, long, short: 5 * e * t / (long - short), "times five"),
    ("07.3", "added", lambda e, t, long, short: e * t / (long + short), "are added"),
]


@pytest.mark.parametrize(
    ("problem", "answer"),
    [pytest.param(p, answer, id=f"{p}-{name}") for p, answers in RIGHT.items() for name, answer in answers.items()],
)
def test_right_answers_pass(problem: str, answer: Callable) -> None:
    for seed in SEEDS:
        report = check(problem, answer, seed)
        assert report.passed, str(report)
        assert len(report.properties) >= 3


@pytest.mark.parametrize(
    ("problem", "answer", "words"), [pytest.param(p, a, words, id=f"{p}-{name}") for p, name, a, words in WRONG]
)
def test_wrong_answers_are_named(problem: str, answer: Callable, words: str) -> None:
    for seed in SEEDS:
        report = check(problem, answer, seed)
        assert not report.passed
        assert any(words in p.misconception for p in report.properties if not p.passed), str(report)


@pytest.mark.parametrize("problem", RIGHT)
def test_the_stub_is_told_apart_from_a_wrong_answer(problem: str) -> None:
    report = check(problem, stub)
    assert not report.passed and "still empty" in str(report) and report.hint


def test_there_are_three_problems() -> None:
    with pytest.raises(CourseError, match=r"no problem '07\.4'"):
        check("07.4", stub)
