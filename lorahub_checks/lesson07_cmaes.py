"""What right answers of assignment 07 must satisfy on CMA-ES: its draw, its step size, its covariance, its generations.

Source: Hansen 2016, arXiv 1604.00772, equations 38 to 44 and 48.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from lorahub_checks.draws import normal
from lorahub_checks.predictions import number
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds


def _numbers(*shape: int, generator: torch.Generator) -> np.ndarray:
    return normal(generator, *shape).numpy()


def _share(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _covariance(size: int, generator: torch.Generator) -> np.ndarray:
    """A covariance whose axes are neither equal nor along the coordinates."""
    root = _numbers(size, size, generator=generator)
    return root @ root.T / size + 0.3 * np.eye(size)


def _spread_mistakes(C: np.ndarray, sigma: float) -> dict[str, np.ndarray]:
    L = np.linalg.cholesky(C)
    rows = np.sqrt(np.abs(C))
    return {
        "C stands where its root belongs: N(0, I) times R has the covariance RᵀR": C @ C,
        "the Cholesky factor is on the wrong side: a row z becomes z @ L.T": L.T @ L,
        "sigma is missing": C / sigma**2,
        "sigma counts squared": C * sigma**2,
        "C is not used: the cloud is a ball": np.eye(len(C)),
        "only the diagonal of C is used: the axes of the cloud may lie askew": np.diag(np.diag(C)),
        "the root was taken of each number of C: the matrix has to have a root": rows.T @ rows,
        "the inverse of C is used": np.linalg.inv(C),
    }


@problem(
    "07.4",
    "draw a generation",
    hints=(
        "What must a standard normal vector be multiplied by to have the covariance C?",
        "By a root of C, for example the Cholesky factor L with L Lᵀ = C: for a column L z, for a row z Lᵀ.",
        "C = diag(4, 1) has L = diag(2, 1), and the row (1, 1) becomes (2, 1). np.linalg.cholesky gives L. Then σ "
        "multiplies, and the mean is added.",
    ),
)
def sample(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of sample(mean, sigma, C, normals) -> (P, n)."""
    for size in (3, 5):
        mean, C = 1 + np.abs(_numbers(size, generator=generator)), _covariance(size, generator)
        sigma = 0.2 + 0.4 * _share(generator)
        second = answer(mean, sigma, C, np.zeros((2, size)))
        alike = not isinstance(second, np.ndarray) or second.shape != (2, size) or np.allclose(second[0], second[1])
        words = "numbers are drawn inside: use the normals that you are given and draw none yourself"
        yield holds("the same normals give the same candidate", alike, "", words)
        yield equals(
            f"without noise every candidate is the mean, {size} weights",
            second,
            np.stack([mean, mean]),
            misconceptions={"the mean is missing": np.zeros((2, size))},
        )
        seen = torch.as_tensor(answer(mean, sigma, C, np.eye(size))).double().numpy()
        root = (seen - mean) / sigma  # what a row of noise is multiplied by
        mistakes = _spread_mistakes(C, sigma)
        yield equals(f"the cloud has the covariance C, {size} weights", root.T @ root, C, misconceptions=mistakes)
        noise = _numbers(7, size, generator=generator)
        yield equals(
            f"every candidate has its own noise, {size} weights",
            answer(mean, sigma, C, noise),
            mean + sigma * noise @ root,
        )


def _random_length(size: int) -> float:
    return math.sqrt(2) * math.exp(math.lgamma((size + 1) / 2) - math.lgamma(size / 2))


def _sigma_mistakes(sigma: float, path: np.ndarray, c: float, d: float) -> dict[str, float]:
    size, length, chi = len(path), float(np.linalg.norm(path)), _random_length(len(path))
    change, by_root = length / chi - 1, c / d * (length / math.sqrt(size) - 1)
    changes = {
        "√n is a little more than the mean length of a random vector: use √n (1 − 1/(4n) + 1/(21n²))": by_root,
        "the length is compared with n": c / d * (length / size - 1),
        "the squared length is compared": c / d * (length**2 / chi**2 - 1),
        "the squared length is compared with n": c / d * (length**2 / size - 1),
        "1 is not taken off: σ would grow even along a random path": c / d * length / chi,
        "the sign is turned: a long path means that steps agree, so σ may grow": -c / d * change,
        "c is missing": change / d,
        "the damping d is missing": c * change,
        "multiplied by the damping d: it has to be divided by it": c * d * change,
        "upside down: the path's length by that of a random one": c / d * (chi / length - 1),
    }
    return {words: sigma * math.exp(wrong) for words, wrong in changes.items()} | {
        "the exponential is missing": sigma * (1 + c / d * change),
        "that is the factor: multiply σ by it": math.exp(c / d * change),
    }


@problem(
    "07.5",
    "the step size",
    hints=(
        "When steps keep their direction, is the path longer or shorter than one of random steps? What should σ do?",
        "Compare the path's length with that of a random vector; c/d times (ratio − 1) is the change of log σ.",
        "A random vector of n entries is about √n (1 − 1/(4n) + 1/(21n²)) long: 0.80 for n = 1. A path of twice that "
        "length, at c/d = 0.5, multiplies σ by e to the power of 0.5.",
    ),
)
def new_sigma(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of new_sigma(sigma, path, c, d) -> number."""
    for size, stretch in ((2, 2.2), (11, 1.7)):
        sigma, d = 0.2 + 0.3 * _share(generator), 1.3
        c = 0.8 + 0.08 * _share(generator)  # here each mistake has a value of its own
        direction = _numbers(size, generator=generator)
        path = stretch * _random_length(size) * direction / np.linalg.norm(direction)
        expected = sigma * math.exp(c / d * (stretch - 1))
        mistakes = _sigma_mistakes(sigma, path, c, d)
        yield equals(
            f"a long path of {size} weights", answer(sigma, path, c, d), expected, misconceptions=mistakes, rtol=3e-3
        )
    one = np.array([2 * _random_length(1)])
    expected = sigma * math.exp(c / d)
    yield equals("a path of a single weight", answer(sigma, one, c, d), expected, rtol=3e-3)
    calm = answer(sigma, path / stretch, c, d)
    yield equals("a path as long as a random one changes nothing", calm, sigma, rtol=3e-3)
    short = answer(sigma, path / 10, c, d)
    yield equals("a short path makes σ smaller", short, sigma * math.exp(c / d * (stretch / 10 - 1)), rtol=3e-3)


def _learning_mistakes(
    C: np.ndarray, y: np.ndarray, best: np.ndarray, sigma: float, shares: np.ndarray, c_mu: float
) -> dict[str, np.ndarray]:

    def learned(steps: np.ndarray, weights: np.ndarray = shares) -> np.ndarray:
        return np.einsum("i,ij,ik->jk", weights, steps, steps)

    changes = {
        "the steps are taken from the new mean: how the mean moved is forgotten, and the cloud collapses": learned(
            y - shares @ y
        ),
        "the steps are not divided by sigma": learned(sigma * y),
        "the steps are divided by sigma once, in one of the two factors: both are steps": sigma * learned(y),
        "the mean is not taken off": learned(best / sigma),
        "every candidate counts alike: the shares are not used": learned(y, np.full(len(y), 1 / len(y))),
        "the candidates are summed without shares": learned(y, np.ones(len(y))),
        "only the mean step was used: that is the rank-one part": np.outer(shares @ y, shares @ y),
        "only the diagonal was learned": np.diag(np.diag(learned(y))),
    }
    return {words: (1 - c_mu) * C + c_mu * wrong for words, wrong in changes.items()} | {
        "the old C is kept whole: 1 − c_mu of it stays": C + c_mu * learned(y),
        "c_mu and 1 − c_mu have changed places": c_mu * C + (1 - c_mu) * learned(y),
        "the old C is gone": learned(y),
    }


@problem(
    "07.6",
    "the shape of the cloud",
    hints=(
        "Which steps were good, and what has the outer product of a step with itself to do with a covariance?",
        "y = (x − mean) / σ for the better candidates, with the *old* mean; Σ shareᵢ yᵢyᵢᵀ is their covariance.",
        "One candidate with y = (1, 2) and share 1 gives the matrix 1 2, 2 4. The old C keeps the part 1 − c_mu.",
    ),
)
def rank_mu(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of rank_mu(C, mean, sigma, best, shares, c_mu) -> (n, n)."""
    for size, good in ((4, 3), (5, 5)):
        C, mean = _covariance(size, generator), _numbers(size, generator=generator)
        sigma, c_mu = 0.3 + 0.2 * _share(generator), 0.3
        best = mean + sigma * (0.8 + _numbers(good, size, generator=generator))
        shares = np.log(good + 1) - np.log(np.arange(1, good + 1))
        shares /= shares.sum()
        expected = (1 - c_mu) * C
        for share, candidate in zip(shares, best, strict=True):
            expected = expected + c_mu * share * np.outer(candidate - mean, candidate - mean) / sigma**2
        mistakes = _learning_mistakes(C, (best - mean) / sigma, best, sigma, shares, c_mu)
        seen = answer(C, mean, sigma, best, shares, c_mu)
        yield equals(f"{good} steps of {size} weights", seen, expected, misconceptions=mistakes)
    none = answer(C, mean, sigma, np.stack([mean] * good), shares, c_mu)
    yield equals("candidates that did not move only let C fade", none, (1 - c_mu) * C)


@problem(
    "07.8",
    "generations for a budget",
    hints=(
        "How many candidates has one generation? The formula stands in the problem.",
        "ln is the natural logarithm, and ⌊ ⌋ cuts the fraction off. The last generation must be whole.",
        "ln 20 is 2.996, three times that 8.99, so 12 candidates a generation; how often do 12 go into 40?",
    ),
)
def generations(answer: object, _generator: torch.Generator) -> Iterator[Property]:
    """Specification of generations, a number."""
    mistakes = {
        "that would be with as many candidates as weights": 2,
        "a generation has more than one candidate": 40,
        "the last one would be cut short: CMA-ES learns from whole generations only": 4,
        "ln is the natural logarithm, not the one to the base 10": 5,
        "the logarithm is missing: a population of 4 is for a single weight": 10,
        "a part of a generation teaches nothing: cut the fraction off": 40 / 12,
    }
    yield from number(answer, "the number of whole generations", 3, mistakes, rtol=1e-2)
