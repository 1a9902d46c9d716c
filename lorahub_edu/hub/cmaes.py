"""CMA-ES from scratch: search without gradients by moving a Gaussian, N(mean, sigma² C), towards better candidates.

Source: Hansen 2016, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772, appendix A, with its equation numbers
and without negative weights ("active" CMA-ES); the method is Hansen & Ostermeier 2001, Evolutionary Computation 9(2).
"""

from __future__ import annotations

import math

import numpy as np

from lorahub_edu.errors import CourseError


def default_population(dimension: int) -> int:
    """Candidates a generation, 4 + floor(3 ln n): equation 48."""
    return 4 + int(3 * math.log(dimension))


class CMAES:
    """A covariance matrix adaptation evolution strategy in float64: ask it for candidates, tell it their losses.

    `mean` (n,) is where the search starts. `sigma`, the first step size, is about how far candidates differ from the
    mean in every coordinate. A generation has `population` candidates, by default `default_population(n)`. `bounds` are
    (lower, upper) of every coordinate. `seed` fixes every candidate, given the losses.
    Raises CourseError: sigma is not positive or the population is below 2.
    """

    def __init__(
        self,
        mean: np.ndarray,
        sigma: float,
        population: int | None = None,
        bounds: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.mean, self.sigma = np.array(mean, dtype=np.float64), float(sigma)  # (n,)
        n = len(self.mean)
        self.population = default_population(n) if population is None else population
        if not self.sigma > 0 or self.population < 2:
            raise CourseError(
                f"CMA-ES needs a step size above 0 and at least 2 candidates to compare, but sigma is {sigma} and the "
                f"population {self.population}. Try 0.3 and {default_population(n)}."
            )
        self.bounds = bounds or (-math.inf, math.inf)
        self.generation = 0
        self.C = np.eye(n)  # (n, n)
        self._axes, self._lengths = np.eye(n), np.ones(n)  # the tutorial's B and D: C = axes · diag(lengths²) · axesᵀ
        self._path_sigma, self._path_c = np.zeros(n), np.zeros(n)  # where the mean has been going lately
        self._generator = np.random.default_rng(seed)

        mu = self.population // 2  # the better half is used
        weights = math.log((self.population + 1) / 2) - np.log(np.arange(1, mu + 1))  # (mu,), eq. 49
        self.weights = weights / weights.sum()  # eq. 53
        self.mu_eff = mu_eff = 1 / np.sum(self.weights**2)  # eq. 8: candidates that the mean really averages
        self._rate_sigma = (mu_eff + 2) / (n + mu_eff + 5)  # c_sigma, eq. 55
        self._damping = 1 + 2 * max(0, math.sqrt((mu_eff - 1) / (n + 1)) - 1) + self._rate_sigma  # d_sigma, 55
        self._rate_c = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n)  # c_c, eq. 56
        self._rate_one = 2 / ((n + 1.3) ** 2 + mu_eff)  # c_1, eq. 57
        rate_mu = 2 * (1 / 4 + mu_eff + 1 / mu_eff - 2) / ((n + 2) ** 2 + mu_eff)  # c_mu, eq. 58
        self._rate_mu = min(1 - self._rate_one, rate_mu)
        self._random_length = math.sqrt(2) * math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2))  # of N(0, I)

    def ask(self) -> np.ndarray:
        """A generation of candidates, (population, n); a candidate beyond a bound is moved onto it.

        `tell` learns from the moved candidates, which are those that were evaluated. A mean of unmoved candidates could
        leave the bounds, where no loss calls it back. A mean of reflected candidates is slow to reach a bound.
        """
        z = self._generator.standard_normal((self.population, len(self.mean)))  # (P, n), eq. 38
        y = (z @ self._axes * self._lengths) @ self._axes.T  # (P, n), z · C^(1/2): covariance C, eq. 39
        return np.clip(self.mean + self.sigma * y, *self.bounds)  # (P, n), eq. 40

    def tell(self, X: np.ndarray, losses: np.ndarray) -> None:
        """Move the mean, sigma and C towards the better candidates of X (population, n), by their losses (population,).

        A loss that isn't finite ranks last, and without a finite loss nothing changes. Raises CourseError for other
        shapes.
        """
        n, losses = len(self.mean), np.asarray(losses, dtype=np.float64)
        if np.shape(X) != (self.population, n) or losses.shape != (self.population,):
            raise CourseError(
                f"A generation is ({self.population}, {n}) with {self.population} losses, but the shapes are "
                f"{np.shape(X)} and {losses.shape}. Tell all the candidates of one `ask`."
            )
        self.generation += 1
        if not np.isfinite(losses).any():
            return
        ranking = np.argsort(np.where(np.isfinite(losses), losses, np.inf), kind="stable")  # (P,), the best first
        y = (np.asarray(X)[ranking[: len(self.weights)]] - self.mean) / self.sigma  # (mu, n)
        step = self.weights @ y  # (mu,) x (mu, n) -> (n,), eq. 41
        self.mean = self.mean + self.sigma * step  # eq. 42

        # Steps that keep their direction add up to a longer path than random ones would: then sigma grows.
        c, whitened = self._rate_sigma, self._axes @ (self._axes.T @ step / self._lengths)  # (n,), C^(-1/2) · step
        self._path_sigma = (1 - c) * self._path_sigma + math.sqrt(c * (2 - c) * self.mu_eff) * whitened  # eq. 43
        ratio = np.linalg.norm(self._path_sigma) / self._random_length
        self.sigma *= math.exp(min(1, c / self._damping * (ratio - 1)))  # eq. 44, at most e-fold, as pycma has it

        # C grows along the path (rank one) and along this generation's better steps (rank mu).
        # h_sigma: whether sigma is not growing fast
        calm = ratio / math.sqrt(1 - (1 - c) ** (2 * self.generation)) < 1.4 + 2 / (n + 1)
        c, c_1, c_mu = self._rate_c, self._rate_one, self._rate_mu
        self._path_c = (1 - c) * self._path_c + calm * math.sqrt(c * (2 - c) * self.mu_eff) * step  # (n,), eq. 45
        rank_mu = (self.weights * y.T) @ y  # (n, mu) x (mu, n) -> (n, n)
        kept = 1 - c_1 - c_mu + c_1 * (not calm) * c * (2 - c)
        self.C = kept * self.C + c_1 * np.outer(self._path_c, self._path_c) + c_mu * rank_mu  # (n, n), eq. 47
        eigenvalues, self._axes = np.linalg.eigh(self.C)  # (n,), (n, n)
        self._lengths = np.sqrt(np.maximum(eigenvalues, 1e-20))  # candidates moved onto a bound can flatten C
