"""Searches for the weights of a composition, by name. Only the search called "gradient" sees a gradient.

A search is a generator. It yields candidates, a float64 array (P, N), and is sent their losses, (P,), with NaN where a
candidate failed. The same settings and losses give the same candidates, so a recorded search can be continued. Every
search takes a space, a budget (candidates in all) and a seed. The course's own also take a start, (N,), in the space.
Settings that a search can't work with are refused when its first candidates are asked for.
Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, sections 3.3 and 4.1; claims H4, H18, X3 and X5.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import torch

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.hub.cmaes import CMAES, default_population

Search = Generator[np.ndarray, np.ndarray, None]

FIRST_STEP = 0.5  # of the greedy search, in units of a weight
FIRST_GROWTH = 0.15  # of its scaling of all weights together
TURN = -0.6  # a step that did not improve is tried in the other direction, and shorter
FAILED_FIRST = 1e3  # sent for a failed candidate before any other: no loss in nats a token comes near it


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

    def clip(self, X: np.ndarray) -> np.ndarray:
        """Candidates (..., N) with every weight beyond a bound moved onto it."""
        return np.clip(X, self.lower, self.upper)


def cma(
    space: Space,
    budget: int,
    seed: int = 0,
    start: Sequence[float] | None = None,
    sigma: float = 0.3,
    population: int | None = None,
) -> Search:
    """CMA-ES, a generation at a time, from `start` (zero, as in the paper) and with first step size `sigma`.

    The last generation is cut to the budget and teaches nothing. `population` None is 4 + floor(3 ln N).
    Source: Hansen 2016, arXiv 1604.00772; claim H5.
    """
    size = default_population(space.dimension) if population is None else population
    if budget < size:
        raise CourseError(
            f"A budget of {budget} is below one generation of CMA-ES, which has {size} candidates at "
            f"{space.dimension} weights. Give a budget of at least {size}, or a smaller population."
        )
    strategy = CMAES(_start(space, start), sigma, size, (space.lower, space.upper), seed)
    for done in range(0, budget, size):
        X = strategy.ask()[: budget - done]  # (P, N)
        losses = yield X
        if len(X) == size:
            strategy.tell(X, losses)


def random_search(
    space: Space, budget: int, seed: int = 0, population: int = 20, start: Sequence[float] | None = None
) -> Search:
    """Candidates drawn uniformly, the first at the start, `population` together; losses change nothing. Claim X3."""
    if population < 1:
        raise CourseError(f"Random search yields at least one candidate at a time, but population is {population}.")
    generator = np.random.default_rng(seed)
    for done in range(0, budget, population):
        X = generator.uniform(space.lower, space.upper, (min(population, budget - done), space.dimension))  # (P, N)
        if done == 0 and start is not None:
            X[0] = _start(space, start)
        yield X


def greedy(space: Space, budget: int, seed: int = 0, start: Sequence[float] | None = None) -> Search:
    """A deterministic coordinate search: begin at the best single module and change one weight at a time.

    The N one-hot vectors come first. Then each round tries N + 1 moves: a step along every weight, and a scaling of all
    of them. It keeps the best move. It also tries the best two and the best three improving moves together. A move that
    did not improve is tried in the other direction, and shorter, in the next round.

    The last round is cut to the budget. The search begins at the start, if one is given, instead of the best one-hot
    vector. Claim X5.
    """
    first = space.clip(np.eye(space.dimension)) if start is None else _start(space, start)[None]  # (N, N) or (1, N)
    if budget < len(first):
        raise CourseError(
            f"A budget of {budget} is too small for the greedy search: it scores each of the {len(first)} modules "
            f"alone first. Give a budget above that, or a start."
        )
    losses = _failed_last((yield first))
    best = int(np.argmin(losses))
    w, lowest = first[best], losses[best]
    left = budget - len(first)
    steps = np.full(space.dimension + 1, FIRST_STEP)  # (N + 1,): one a weight, and the scaling's
    steps[-1] = FIRST_GROWTH
    while left > 0:
        moves = np.vstack([np.diag(steps[:-1]), steps[-1] * w])  # (N + 1, N)
        tried = space.clip(w + moves)[:left]  # (P, N)
        losses = _failed_last((yield tried))
        left -= len(tried)
        ranking = [i for i in np.argsort(losses, kind="stable") if losses[i] < lowest]
        steps[: len(tried)][losses >= lowest] *= TURN
        together = [w + (tried[ranking[:m]] - w).sum(0) for m in (2, 3) if m <= len(ranking)][:left]
        if ranking:
            w, lowest = tried[ranking[0]], losses[ranking[0]]
        if together:
            tried = space.clip(np.stack(together))  # (1 or 2, N)
            losses = _failed_last((yield tried))
            left -= len(tried)
            best = int(np.argmin(losses))
            if losses[best] < lowest:
                w, lowest = tried[best], losses[best]


def gradient_descent(
    space: Space, budget: int, seed: int = 0, start: Sequence[float] | None = None, learning_rate: float = 0.1
) -> Generator[np.ndarray, tuple[np.ndarray, np.ndarray], None]:
    """Adam on w, clipped to the bounds after each step: w has only N numbers, so it needs no hyper-network.

    The search is sent the losses (1,) and their slopes (1, N). It starts at 1/N by default. At w = 0 the paper's
    composition has no gradient: both factors are zero, and each factor's slope is a multiple of the other.
    Source: claim H18 (Huang et al. 2023, section 3.3, says that a hyper-network is needed); Kingma & Ba 2015.
    """
    start = np.full(space.dimension, 1 / space.dimension) if start is None else start
    w = torch.tensor(_start(space, start), requires_grad=True)  # (N,) float64
    optimizer = torch.optim.Adam([w], lr=learning_rate)
    for _ in range(budget):
        _, slopes = yield w.detach().numpy()[None].copy()
        w.grad = torch.as_tensor(np.nan_to_num(slopes[0]), dtype=torch.float64)
        optimizer.step()
        with torch.no_grad():
            w.clamp_(space.lower, space.upper)


def nevergrad_search(space: Space, budget: int, seed: int = 0, name: str = "NGOpt") -> Search:
    """One of nevergrad's optimizers as the paper's released code runs it: from zero, one candidate at a time.

    A failed candidate's loss is one nat above the worst so far. An optimizer that fits a model to the losses, as Cobyla
    does, could do nothing with an infinite one. Raises CourseError for an unknown optimizer, or when it breaks down.
    """
    # Cobyla and others run in a thread that nevergrad leaves waiting for the next loss. Python would wait for it at
    # exit, for ever if a search was given up. A thread that is started from a daemon (as a pool's are) is a daemon too.
    pool = ThreadPool(1)
    candidates = _ask_and_tell(_nevergrad(name, space, budget, seed), budget, pool)
    weakref.finalize(candidates, pool.terminate)  # also at exit, while multiprocessing is still whole
    return candidates


def _ask_and_tell(optimizer: Any, budget: int, pool: ThreadPool) -> Search:
    worst = None
    for _ in range(budget):
        try:
            candidate = pool.apply(optimizer.ask)
        except Exception as error:
            raise CourseError(
                f"{_described(optimizer)}: it broke down at {optimizer.dimension} weights and a budget of "
                f"{budget} ({error}). Try another optimizer, such as 'cma' or 'greedy', or another budget."
            ) from error
        losses = yield np.array(candidate.value, dtype=np.float64)[None]  # (1, N)
        loss = float(losses[0])
        if np.isfinite(loss):
            worst = loss if worst is None else max(worst, loss)
        else:
            loss = FAILED_FIRST if worst is None else worst + 1.0
        optimizer.tell(candidate, loss)


def _nevergrad(name: str, space: Space, budget: int, seed: int = 0) -> Any:
    """One of nevergrad's optimizers, by its name in any case, as the paper's released code sets it up: from zero."""
    import nevergrad  # here, not above: it takes seconds

    registry = nevergrad.optimizers.registry
    known = {key.lower(): key for key in registry}
    spelled = name if name in registry else known.get(name.lower())
    if spelled is None:
        hint = near_matches(name.lower(), {*SEARCHES, *PAPERS, *known})
        if not hint.startswith("Did"):  # hundreds of names are no help
            hint = near_matches("", {*SEARCHES, *PAPERS}) + " Every name in nevergrad.optimizers.registry is one."
        raise CourseError(f"There is no optimizer {name!r}. {hint}")
    # scipy corrects nevergrad's tolerance of 0 and its budget, and says so at every start
    warnings.filterwarnings("ignore", message="COBYLA: Invalid", category=UserWarning)
    state = np.random.get_state()  # an Array takes a draw from numpy's global generator, which is not ours to move
    lower, upper = ([bound] * space.dimension for bound in (space.lower, space.upper))
    weights = nevergrad.p.Array(init=[0.0] * space.dimension, lower=lower, upper=upper)
    np.random.set_state(state)
    weights.random_state = np.random.RandomState(seed)
    return registry[spelled](parametrization=weights, budget=budget, num_workers=1)


def _chosen(optimizer: Any) -> str:
    """The name of the algorithm that a choosing optimizer passes everything on to."""
    while (inner := getattr(optimizer, "optim", None)) is not None:  # its choice can be a choosing optimizer again
        optimizer = inner
    return optimizer.name


def _described(optimizer: Any) -> str:
    """What nevergrad runs, in words, for example "nevergrad NGOpt, which chose Cobyla"."""
    name = _chosen(optimizer)
    return f"nevergrad {optimizer.name}" + (f", which chose {name}" if name != optimizer.name else "")


# By name: the search, and the algorithm in words. Every other name is nevergrad's.
SEARCHES: dict[str, tuple[Callable[..., Search], str]] = {
    "cma": (cma, "CMA-ES"),
    "random": (random_search, "random search"),
    "greedy": (greedy, "greedy coordinate search"),
    "gradient": (gradient_descent, "gradient descent (Adam)"),
}
PAPERS = ("ngopt", "shiwa")  # nevergrad's optimizers that the paper and its released code name


def make_search(
    optimizer: str | Callable[..., Search], space: Space, budget: int, seed: int = 0, **options: Any
) -> tuple[Search, str]:
    """A search by name, and the algorithm in words, for example "nevergrad NGOpt, which chose Cobyla".

    `optimizer` is a name of `SEARCHES` or of nevergrad's registry, in any case, or a function of (space, budget, seed)
    that returns a search. `options` are the search's own, such as `start` or `sigma`.
    Raises CourseError: no such name, a budget below 1, or an option that the search does not have.
    """
    _check_budget(budget)
    if callable(optimizer):
        name = getattr(optimizer, "__name__", type(optimizer).__name__)
        return optimizer(space, budget, seed, **options), f"{name}, a function of the caller"
    if optimizer.lower() in SEARCHES:
        function, algorithm = SEARCHES[optimizer.lower()]
    else:
        function, algorithm = (
            partial(nevergrad_search, name=optimizer),
            _described(_nevergrad(optimizer, space, budget)),
        )
    known = set(inspect.signature(function).parameters) - {"space", "budget", "seed", "name"}
    for option in options.keys() - known:
        raise CourseError(f"The search {optimizer.lower()!r} has no option {option!r}. {near_matches(option, known)}")
    return function(space, budget, seed, **options), algorithm


def needs_gradient(optimizer: str | Callable) -> bool:
    """Whether a search must be sent (losses, slopes); a function says so by an attribute `needs_gradient`."""
    if isinstance(optimizer, str):
        return optimizer.lower() == "gradient"
    return bool(getattr(optimizer, "needs_gradient", False))


def chosen_optimizer(name: str, dimension: int, budget: int) -> str:
    """The algorithm that nevergrad runs under a name of its registry, for N weights within the paper's bounds.

    NGOpt, Shiwa, CMA and others choose one by dimension and budget, for example "Cobyla" (claim H5).
    Raises CourseError: there is no such optimizer.
    """
    _check_budget(budget)
    return _chosen(_nevergrad(name, Space(dimension), budget))


def _check_budget(budget: int) -> None:
    if budget < 1:
        raise CourseError(f"A search scores at least one candidate, but the budget is {budget}. Try 40.")


def _start(space: Space, start: Sequence[float] | None) -> np.ndarray:
    """The start as (N,) float64, zero without one."""
    w = np.zeros(space.dimension) if start is None else np.array(start, dtype=np.float64)
    if w.shape != (space.dimension,):
        raise CourseError(f"A start has one number a weight, {space.dimension} here, but its shape is {w.shape}.")
    if not (np.isfinite(w).all() and (w >= space.lower).all() and (w <= space.upper).all()):
        raise CourseError(
            f"The start must lie within [{space.lower}, {space.upper}], but it goes from {w.min()} to {w.max()}."
        )
    return w


def _failed_last(losses: np.ndarray) -> np.ndarray:
    losses = np.asarray(losses, dtype=np.float64)
    return np.where(np.isfinite(losses), losses, np.inf)
