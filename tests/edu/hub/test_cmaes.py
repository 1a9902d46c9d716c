"""CMA-ES against pycma, its author's own implementation: settings, single updates and whole searches."""

from __future__ import annotations

import statistics

import cma
import numpy as np
import pytest

from lorahub_edu.errors import CourseError
from lorahub_edu.hub.cmaes import CMAES, default_population


def pycma(mean: np.ndarray, sigma: float, **options) -> cma.CMAEvolutionStrategy:
    """Without negative weights, with a fresh decomposition each generation, and without any reason to stop."""
    never = {"tolfun": 0, "tolfunhist": 0, "tolx": 0, "tolstagnation": 10**9}
    return cma.CMAEvolutionStrategy(
        mean, sigma, {"CMA_active": False, "updatecovwait": 0, "verbose": -9, "seed": 1} | never | options
    )


def sphere(X: np.ndarray) -> np.ndarray:
    return (X**2).sum(1)


def ellipsoid(X: np.ndarray) -> np.ndarray:
    return (np.logspace(0, 4, X.shape[1]) * X**2).sum(1)


def rosenbrock(X: np.ndarray) -> np.ndarray:
    return (100 * (X[:, 1:] - X[:, :-1] ** 2) ** 2 + (1 - X[:, :-1]) ** 2).sum(1)


@pytest.mark.parametrize("dimension", [2, 5, 20, 200])
def test_settings_are_pycmas(dimension: int) -> None:
    ours, theirs = CMAES(np.zeros(dimension), 0.3), pycma(np.zeros(dimension), 0.3)
    assert ours.population == default_population(dimension) == theirs.popsize
    settings = theirs.sp
    np.testing.assert_allclose(ours.weights, settings.weights[: settings.mu])
    assert [ours.mu_eff, ours._rate_c, ours._rate_one, ours._rate_mu] == pytest.approx(
        [settings.weights.mueff, settings.cc, settings.c1, settings.cmu]
    )
    # The tutorial's c_sigma has 5 where today's pycma has 3, at 1/2 at most; it is a little more cautious.
    theirs.adapt_sigma.initialize(theirs)
    mu_eff = settings.weights.mueff
    assert theirs.adapt_sigma.cs == pytest.approx(min(0.5, (mu_eff + 2) / (dimension + mu_eff + 3)))
    assert ours._rate_sigma == pytest.approx((mu_eff + 2) / (dimension + mu_eff + 5))
    assert ours._damping - ours._rate_sigma == pytest.approx(theirs.adapt_sigma.damps - theirs.adapt_sigma.cs)


# The third starts so small that sigma races ahead and the path of C is held back for a while (h_sigma = 0).
@pytest.mark.parametrize(("function", "sigma"), [(ellipsoid, 0.3), (rosenbrock, 0.5), (sphere, 1e-4)])
def test_every_generation_updates_as_pycma_does(function, sigma: float) -> None:
    mean = np.linspace(0.5, 1.5, 6)
    ours, theirs = CMAES(mean, sigma), pycma(mean, sigma)
    theirs.sm.C = np.eye(6)  # pycma begins a hair off, so that its axes are unique
    theirs.sm.D = np.ones(6)
    theirs.adapt_sigma.initialize(theirs)
    theirs.adapt_sigma.cs, theirs.adapt_sigma.damps = ours._rate_sigma, ours._damping
    held_back = 0
    for generation in range(1, 31):
        X = np.array(theirs.ask())
        theirs.tell(X, function(X))
        ours.tell(X, function(X))
        held_back += not theirs.adapt_sigma.hsig(theirs)
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(ours.C, theirs.sm.covariance_matrix, rtol=1e-8, atol=1e-11)
        assert ours.sigma == pytest.approx(theirs.sigma, rel=1e-9)
        assert ours.generation == generation
    assert held_back >= 3 if sigma < 0.1 else held_back < 3


def evaluations(strategy, population: int, function, target: float = 1e-8, most: int = 12_000) -> int:
    for done in range(population, most, population):
        X = np.array(strategy.ask())
        losses = function(X)
        if losses.min() < target:
            return done
        strategy.tell(X, losses)
    return most


@pytest.mark.parametrize("dimension", [5, 10])
@pytest.mark.parametrize("function", [sphere, ellipsoid, rosenbrock])
def test_searches_cost_what_pycmas_cost(function, dimension: int) -> None:
    ours, theirs = [], []
    for seed in range(5):
        mean = np.random.default_rng(seed).uniform(0, 0.5, dimension)
        strategy = CMAES(mean, 0.5, seed=seed)
        ours.append(evaluations(strategy, strategy.population, function))
        other = pycma(mean, 0.5, seed=seed + 1)
        theirs.append(evaluations(other, other.popsize, function))
    assert statistics.median(theirs) < 12_000
    assert 1 / 1.5 < statistics.median(ours) / statistics.median(theirs) < 1.5


def test_candidates_have_the_mean_and_covariance_that_are_shown() -> None:
    strategy = CMAES([1.0, -1.0], 0.5, population=100_000)
    strategy.tell(X := strategy.ask(), (X @ [[1.0], [3.0]])[:, 0])
    assert abs(strategy.C[0, 1]) > 0.001  # no longer round
    X = strategy.ask()
    np.testing.assert_allclose(X.mean(0), strategy.mean, atol=0.02)
    np.testing.assert_allclose(np.cov(X.T), strategy.sigma**2 * strategy.C, rtol=0.05, atol=0.01 * strategy.sigma**2)


def test_only_the_ranking_of_losses_counts() -> None:
    one, other = CMAES(np.ones(4), 0.5), CMAES(np.ones(4), 0.5)
    for _ in range(10):
        X = one.ask()
        np.testing.assert_array_equal(X, other.ask())
        one.tell(X, sphere(X))
        other.tell(X, np.exp(sphere(X)) - 7)


def test_a_seed_fixes_the_candidates_and_the_global_generator_stays() -> None:
    before = np.random.get_state()[1].copy()
    first, again, another = (CMAES(np.zeros(3), 0.3, seed=seed).ask() for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != another).all()
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_failed_candidates_rank_last() -> None:
    nan, worst = CMAES(np.ones(4), 0.5), CMAES(np.ones(4), 0.5)
    X = nan.ask()
    nan.tell(X, np.where(np.arange(8) % 2, sphere(X), np.nan))
    worst.tell(X, np.where(np.arange(8) % 2, sphere(X), 1e9))
    np.testing.assert_array_equal(nan.mean, worst.mean)
    np.testing.assert_array_equal(nan.C, worst.C)


def test_a_generation_of_failures_teaches_nothing() -> None:
    strategy = CMAES(np.ones(4), 0.5)
    strategy.tell(strategy.ask(), np.full(8, np.nan))
    assert (strategy.mean == 1).all() and np.array_equal(strategy.C, np.eye(4)) and strategy.sigma == 0.5
    assert strategy.generation == 1


@pytest.mark.parametrize("dimension", [1, 2, 8])
def test_an_optimum_on_a_bound_is_found(dimension: int) -> None:
    strategy = CMAES(np.zeros(dimension), 0.3, bounds=(-1.5, 1.5), seed=2)
    for _ in range(150):
        X = strategy.ask()
        assert (np.abs(X) <= 1.5).all()
        strategy.tell(X, ((X - 2.0) ** 2).sum(1) + X[:, 0])
    assert X[0] == pytest.approx(np.full(dimension, 1.5), abs=1e-3)
    assert np.isfinite(strategy.C).all()


@pytest.mark.parametrize(
    ("settings", "seen"), [({"sigma": 0.0}, "sigma is 0.0"), ({"sigma": 0.3, "population": 1}, "population 1")]
)
def test_settings_that_can_not_search_are_refused(settings: dict, seen: str) -> None:
    with pytest.raises(CourseError, match=seen):
        CMAES(np.zeros(3), **settings)


def test_half_a_generation_is_refused() -> None:
    strategy = CMAES(np.zeros(3), 0.3)
    X = strategy.ask()
    with pytest.raises(CourseError, match=r"\(7, 3\) with 7 losses.*\(4, 3\) and \(4,\)"):
        strategy.tell(X[:4], np.zeros(4))
