"""Checks of lesson 10: a rank correlation, what one measure adds to another, a random update of the same spectrum.

Source: Spearman 1904 for the rank correlation; the references are SciPy's and torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds


def _numbers(count: int, generator: torch.Generator) -> np.ndarray:
    return torch.randn(count, generator=generator, dtype=torch.float64).numpy()


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def _order(x: np.ndarray) -> np.ndarray:
    return np.argsort(x, kind="stable")


@problem(
    "10.2",
    "a rank correlation",
    hints=(
        "One very large value must not decide. What is left of a value when only its place among the others counts?",
        "Replace every value by its rank, equal values by the mean of their ranks; then correlate the ranks.",
        "x = (10, 30, 30) has the ranks 1, 2.5, 2.5, which scipy.stats.rankdata gives. What follows is a plain "
        "correlation.",
    ),
)
def rank_correlation(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of rank_correlation(x, y) -> float."""
    count = int(torch.randint(12, 18, (1,), generator=generator))
    shared = _numbers(count, generator)
    x, y = np.exp(3 * (shared + 0.5 * _numbers(count, generator))), shared + 0.8 * _numbers(count, generator)
    for name, (a, b) in {
        "the rank correlation of two samples": (x, y),
        "the same with the samples' order turned": (x[::-1].copy(), y[::-1].copy()),
    }.items():
        ranks = (stats.rankdata(a), stats.rankdata(b))
        wrong = {
            "that is the correlation of the values: one very large value decides it; take ranks": _pearson(a, b),
            "argsort is used as a rank: it lists places, it does not give each value its own; sort twice": _pearson(
                _order(a), _order(b)
            ),
            "only one of the two samples was ranked": _pearson(ranks[0], b),
            "only the other one of the two samples was ranked": _pearson(a, ranks[1]),
            "the ranks run down in one sample and up in the other: the sign is turned": -_pearson(*ranks),
            "the absolute value was taken: the sign says which way": abs(_pearson(*ranks)),
            "that is the squared correlation": _pearson(*ranks) ** 2,
            "the ranks' products were summed without taking their means off": float(np.mean(ranks[0] * ranks[1])),
            "that is their covariance: divide by both standard deviations": float(np.cov(*ranks)[0, 1]),
            "that is Kendall's tau, which counts pairs": float(stats.kendalltau(a, b).statistic),
        }
        expected = float(stats.spearmanr(a, b).statistic)
        yield equals(name, answer(a, b), expected, misconceptions=wrong)
    ties = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 5.0, 5.0, 9.0, 30.0])
    other = _numbers(10, generator)
    expected = float(stats.spearmanr(ties, other).statistic)
    ordinal = _pearson(stats.rankdata(ties, "ordinal"), stats.rankdata(other))
    apart = stats.rankdata(ties) - stats.rankdata(other)
    wrong = {
        "equal values got different ranks, by the order in which they stand: give each the mean of its ranks": ordinal,
        "1 − 6 Σd² / (n³ − n) holds only without equal values: correlate the ranks": 1 - apart @ apart / 165,
        "equal values got their lowest rank: give each the mean of its ranks": _pearson(
            stats.rankdata(ties, "min"), stats.rankdata(other)
        ),
    }
    yield equals("equal values share the mean of their ranks", answer(ties, other), expected, misconceptions=wrong)
    yield equals("falling instead of rising turns the sign", answer(x, -y), -float(stats.spearmanr(x, y).statistic))


def _partial(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """The correlation of x and y that is left, given a third, by the three plain ones."""
    xy, xz, yz = _pearson(x, y), _pearson(x, given), _pearson(y, given)
    return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


def _rest(y: np.ndarray, given: np.ndarray) -> np.ndarray:
    """What of y a straight line in `given` leaves."""
    slope, intercept = np.polyfit(given, y, 1)
    return y - slope * given - intercept


@problem(
    "10.3",
    "what one measure adds to another",
    hints=(
        "If two measures rise together, how can one tell which of them forgetting follows?",
        "Take out of both what a straight line in the third one explains, and correlate what is left. Do it on ranks.",
        "Rank all three; fit a line of each of the first two against the third; correlate the two residuals.",
    ),
)
def partial_rank_correlation(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of partial_rank_correlation(x, y, given) -> float."""
    for name in ("the correlation of x and y that is left, given a third", "the same on another sample"):
        count = 30 if name != "the same on another sample" else 12
        given = _numbers(count, generator)
        x, y = np.exp(given + 0.7 * _numbers(count, generator)), given + 0.9 * _numbers(count, generator)
        rx, ry, rz = (stats.rankdata(v) for v in (x, y, given))
        xy, xz, yz = _pearson(rx, ry), _pearson(rx, rz), _pearson(ry, rz)
        expected = _partial(rx, ry, rz)
        wrong = {
            "that is the plain rank correlation: the third measure is not taken out": xy,
            "the values were used as they are: rank all three first": _pearson(_rest(x, given), _rest(y, given)),
            "the third measure was taken out of x only: that is a semi-partial correlation": _pearson(
                _rest(rx, rz), ry
            ),
            "the third measure was taken out of y only: that is a semi-partial correlation": _pearson(
                rx, _rest(ry, rz)
            ),
            "the numerator alone: divide by what x and y have left": xy - xz * yz,
            "the product was added: it must be taken off": (xy + xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)),
            "the root in the denominator is missing": (xy - xz * yz) / ((1 - xz**2) * (1 - yz**2)),
            "x and the third measure have changed places": (xz - xy * yz) / np.sqrt((1 - xy**2) * (1 - yz**2)),
            "the values' residuals were ranked: rank first, then fit": _pearson(
                stats.rankdata(_rest(x, given)), stats.rankdata(_rest(y, given))
            ),
        }
        yield equals(
            name, answer(x, y, given), expected,
            misconceptions=wrong,
        )  # fmt: skip
    turned = answer(x, y, -given)
    yield equals("a third measure that falls instead of rises changes nothing", turned, expected)
    tied = [np.round(values) for values in (y, given, _numbers(count, generator))]
    right = _partial(*(stats.rankdata(v) for v in tied))
    ordinal = _partial(*(stats.rankdata(v, "ordinal") for v in tied))
    words = "equal values got different ranks, by the order in which they stand: give each the mean of its ranks"
    yield equals("equal values share the mean of their ranks", answer(*tied), right, misconceptions={words: ordinal})


@problem(
    "10.1",
    "a random update of the same spectrum",
    hints=(
        "What of an update do you want to keep, and what must be drawn anew?",
        "Keep the singular values. Draw two random orthonormal bases, one a side, by the QR of random matrices.",
        "delta is (5, 3): three singular values. The QR of a random (5, 3) gives three orthonormal columns, that of a "
        "random (3, 3) the other side.",
    ),
)
def random_twin(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of random_twin(delta, generator) -> a matrix of delta's shape."""
    for name, (rows, columns, rank) in {"wide": (60, 90, 3), "tall": (80, 50, 2)}.items():
        delta = torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
        twin = _drawn(answer, delta, 1)
        if twin is None or tuple(getattr(twin, "shape", ())) != tuple(delta.shape):
            seen = getattr(twin, "shape", type(twin).__name__)
            yield holds(f"{name}: it has delta's shape", False, seen, "the shape must be that of delta: (U * S) @ V.T")
            return
        twin = twin.detach().double()
        yield _same_values(name, delta.double(), twin)
        sides = {side: _sides(matrix, rank) for side, matrix in (("old", delta.double()), ("new", twin))}
        again = _sides(_drawn(answer, delta, 2).detach().double(), rank)
        for i, side in enumerate(("left", "right")):
            words = f"the {side} singular vectors are still delta's, all or some of them: draw both sides"
            yield _unlike(f"{name}: the {side} directions are new", sides["old"][i], sides["new"][i], words)
            words = "each draw points the same way: the generator is not used, or torch.rand has a mean: take randn"
            yield _unlike(f"{name}: another seed gives other {side} directions", sides["new"][i], again[i], words)
        words = "both sides are made of the same numbers: draw the second basis anew, from the same generator"
        yield _unlike(f"{name}: left and right have nothing to do with each other", *sides["new"], words)
    yield holds(
        "the same seed gives the same matrix",
        torch.equal(_drawn(answer, delta, 1), _drawn(answer, delta, 1)),
        "",
        "the draw does not come from the generator: pass generator=generator to torch.randn",
    )
    yield holds(
        "another seed gives another matrix",
        not torch.allclose(_drawn(answer, delta, 1), _drawn(answer, delta, 2)),
        "",
        "the generator is not used: pass generator=generator to torch.randn",
    )


def _drawn(answer: Callable, delta: Tensor, seed: int) -> Tensor:
    return answer(delta, torch.Generator().manual_seed(seed))


def _sides(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The strongest left and right singular vectors, (out, rank) and (in, rank)."""
    U, _, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank], Vh[:rank].T


def _unlike(name: str, one: Tensor, other: Tensor, words: str) -> Property:
    """Whether no direction in one space is near to one in the other; of a longer side its first numbers count.

    Two or three random directions among 50 numbers or more have a largest cosine of about 0.4.
    """
    rows = min(len(one), len(other))
    bases = [torch.linalg.qr(side[:rows]).Q for side in (one, other)]
    cosine = float(torch.linalg.matrix_norm(bases[0].T @ bases[1], 2))
    return holds(name, cosine < 0.75, f"cosine {cosine:.3f}", words)


def _same_values(name: str, delta: Tensor, twin: Tensor) -> Property:
    expected = torch.linalg.svdvals(delta)
    seen = torch.linalg.svdvals(twin)
    norms = float(twin.norm() / delta.norm())
    words = ""
    if abs(norms - 1) < 1e-3:
        words = "the norm is delta's, the singular values are not: a matrix of random numbers spreads them out"
    elif torch.allclose(seen, expected**2, rtol=1e-3, atol=1e-3):
        words = "the singular values are squared"
    elif torch.allclose(seen, expected.sqrt(), rtol=1e-3, atol=1e-3):
        words = "the root of the singular values was taken"
    elif torch.allclose(seen[: len(expected)] / seen[0].clamp_min(1e-12), torch.ones_like(seen), atol=1e-3):
        words = "every singular value is the same: multiply by delta's"
    elif norms > 1.2 or norms < 0.8:
        words = "the bases are not orthonormal: take the Q of a QR decomposition, not the random matrix itself"
    result = equals(f"{name}: the singular values are delta's", seen, expected, rtol=1e-3)
    return Property(result.name, result.passed, result.seen, "" if result.passed else words)
