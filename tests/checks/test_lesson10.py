"""The checks of lesson 10: right answers pass in whatever form, each plausible mistake is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lorahub_edu.checks import check
from lorahub_edu.errors import CourseError
from lorahub_edu.hub.composed_spectra import same_spectrum
from lorahub_edu.spectra.updates import Update

SEEDS = range(5)


def stub(*_arguments: object) -> None:
    raise NotImplementedError


def ranks(x: np.ndarray) -> np.ndarray:
    return stats.rankdata(x)


def ranks_by_counting(x: np.ndarray) -> np.ndarray:
    return np.array([(x < value).sum() + ((x == value).sum() + 1) / 2 for value in x])


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def rest(y: np.ndarray, given: np.ndarray) -> np.ndarray:
    return y - np.polyval(np.polyfit(given, y, 1), given)


def spearman_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    a, b = ranks_by_counting(np.asarray(x)), ranks_by_counting(np.asarray(y))
    a, b = a - a.mean(), b - b.mean()
    return a @ b / np.sqrt((a @ a) * (b @ b))


def partial_by_residuals(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    return pearson(rest(ranks(x), ranks(given)), rest(ranks(y), ranks(given)))


def partial_by_inverse(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> torch.Tensor:
    precision = np.linalg.inv(np.corrcoef([ranks(x), ranks(y), ranks(given)]))
    return torch.tensor(-precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1]))


def partial_by_formula(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, given), (y, given)))
    return (xy - xz * yz) / ((1 - xz**2) * (1 - yz**2)) ** 0.5


def basis(size: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, count, generator=generator)).Q


def twin(delta: Tensor, generator: torch.Generator) -> Tensor:
    S = torch.linalg.svdvals(delta)
    return (basis(delta.shape[0], len(S), generator) * S) @ basis(delta.shape[1], len(S), generator).T


def twin_by_rotation(delta: Tensor, generator: torch.Generator) -> Tensor:
    rows, columns = delta.shape
    return basis(rows, rows, generator) @ delta @ basis(columns, columns, generator)


def twin_of_the_package(delta: Tensor, generator: torch.Generator) -> Tensor:
    U, S, V = torch.linalg.svd(delta, full_matrices=False)
    return same_spectrum(Update("q", torch.zeros_like(delta), V, U * S), generator).dense()


RIGHT: dict[str, dict[str, Callable]] = {
    "10.2": {
        "reference": lambda x, y: pearson(ranks(x), ranks(y)),
        "scipy": lambda x, y: stats.spearmanr(x, y).statistic,
        "by hand": spearman_by_hand,
    },
    "10.3": {"reference": partial_by_residuals, "inverse": partial_by_inverse, "formula": partial_by_formula},
    "10.1": {"reference": twin, "rotation": twin_by_rotation, "the package": twin_of_the_package},
}


def by_order(x: np.ndarray, y: np.ndarray) -> float:
    return pearson(np.argsort(x, kind="stable"), np.argsort(y, kind="stable"))


def ordinal(x: np.ndarray, y: np.ndarray) -> float:
    return pearson(stats.rankdata(x, "ordinal"), stats.rankdata(y, "ordinal"))


def lowest(x: np.ndarray, y: np.ndarray) -> float:
    return pearson(stats.rankdata(x, "min"), stats.rankdata(y, "min"))


def added(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, given), (y, given)))
    return (xy + xz * yz) / ((1 - xz**2) * (1 - yz**2)) ** 0.5


def numerator(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, given), (y, given)))
    return xy - xz * yz


def same_norm(delta: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(delta.shape, generator=generator)
    return drawn * delta.norm() / drawn.norm()


def one_side(delta: Tensor, generator: torch.Generator, side: str) -> Tensor:
    U, S, V = torch.linalg.svd(delta, full_matrices=False)
    left = U if side == "left" else basis(delta.shape[0], len(S), generator)
    right = V if side == "right" else basis(delta.shape[1], len(S), generator).T
    return (left * S) @ right


def loose(delta: Tensor, generator: torch.Generator) -> Tensor:
    S = torch.linalg.svdvals(delta)
    drawn = (torch.randn(size, len(S), generator=generator) for size in delta.shape)
    return (next(drawn) * S) @ next(drawn).T


def squared(delta: Tensor, generator: torch.Generator) -> Tensor:
    S = torch.linalg.svdvals(delta)
    return (basis(delta.shape[0], len(S), generator) * S**2) @ basis(delta.shape[1], len(S), generator).T


def global_draw(delta: Tensor, generator: torch.Generator) -> Tensor:
    return twin(delta, torch.Generator().manual_seed(int(torch.randint(2**31, (1,)))))


def fixed_draw(delta: Tensor, generator: torch.Generator) -> Tensor:
    return twin(delta, torch.Generator().manual_seed(7))


# Named wrong answers: problem, the mistake, the answer, and words of the message that must name it.
WRONG: list[tuple[str, str, Callable, str]] = [
    ("10.2", "values", pearson, "correlation of the values"),
    ("10.2", "argsort", by_order, "argsort is used as a rank"),
    ("10.2", "one ranked", lambda x, y: pearson(ranks(x), y), "only one of the two"),
    ("10.2", "sign", lambda x, y: -pearson(ranks(x), ranks(y)), "sign is turned"),
    ("10.2", "squared", lambda x, y: pearson(ranks(x), ranks(y)) ** 2, "squared correlation"),
    ("10.2", "products", lambda x, y: np.mean(ranks(x) * ranks(y)), "without taking their means off"),
    ("10.2", "covariance", lambda x, y: np.cov(ranks(x), ranks(y))[0, 1], "covariance"),
    ("10.2", "Kendall", lambda x, y: stats.kendalltau(x, y).statistic, "Kendall"),
    ("10.2", "ordinal", ordinal, "got different ranks"),
    ("10.2", "lowest", lowest, "their lowest rank"),
    ("10.2", "no return", lambda x, y: None, "is a return missing"),
    ("10.3", "plain", lambda x, y, z: pearson(ranks(x), ranks(y)), "not taken out"),
    ("10.3", "values", lambda x, y, z: pearson(rest(x, z), rest(y, z)), "rank all three first"),
    ("10.3", "x only", lambda x, y, z: pearson(rest(ranks(x), ranks(z)), ranks(y)), "out of x only"),
    ("10.3", "y only", lambda x, y, z: pearson(ranks(x), rest(ranks(y), ranks(z))), "out of y only"),
    ("10.3", "numerator", numerator, "numerator alone"),
    ("10.3", "added", added, "was added"),
    ("10.3", "swapped", lambda x, y, z: partial_by_formula(x, z, y), "changed places"),
    ("10.1", "same norm", same_norm, "the norm is delta's"),
    ("10.1", "left kept", lambda d, g: one_side(d, g, "left"), "the left singular vectors are still delta's"),
    ("10.1", "right kept", lambda d, g: one_side(d, g, "right"), "the right singular vectors are still delta's"),
    ("10.1", "delta itself", lambda d, g: d, "still delta's"),
    ("10.1", "not orthonormal", loose, "not orthonormal"),
    ("10.1", "squared", squared, "are squared"),
    ("10.1", "global draw", global_draw, "does not come from the generator"),
    ("10.1", "fixed draw", fixed_draw, "the generator is not used"),
    ("10.1", "turned", lambda d, g: twin(d, g).T, "the shape must be that of delta"),
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
    with pytest.raises(CourseError, match=r"no problem '10\.4'"):
        check("10.4", stub)
