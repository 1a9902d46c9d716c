"""Searches for the weights of a composition, by name. None of them sees a gradient but the one called "gradient".

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 3.3; claims H4, H5 and X5. `space.py` says what a search
is, `nevergrads.py` holds those of the released code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.hub.cmaes import CMAES, default_population
from lorahub_edu.hub.gradient import gradient_descent
from lorahub_edu.hub.nevergrads import algorithm, chosen_optimizer, find_optimizer, nevergrad_search
from lorahub_edu.hub.space import Search, Space, check_budget, start_of

__all__ = [
    "SEARCHES",
    "Search",
    "Space",
    "chosen_optimizer",
    "cma",
    "greedy",
    "make_search",
    "needs_gradient",
    "nevergrad_search",
    "random_search",
    "run_search",
]

FIRST_STEP = 0.5  # of the greedy search, in units of a weight
FIRST_GROWTH = 0.15  # of its scaling of all weights together
TURN = -0.6  # a step that did not improve comes back the other way, and shorter


def cma(
    space: Space,
    budget: int,
    seed: int = 0,
    start: Sequence[float] | None = None,
    sigma: float = 0.3,
    population: int | None = None,
) -> Search:
    """Search by CMA-ES, a generation at a time; the last one is cut to the budget and teaches nothing any more.

    Args:
        space: dimension N and bounds.
        budget: candidates in all.
        seed: fixes every candidate, given the losses.
        start: (N,) the first mean; None is zero, the paper's start.
        sigma: first step size, in units of a weight.
        population: candidates a generation; None is 4 + floor(3 ln N).

    Returns:
        The search.

    Raises:
        CourseError: the budget is below one generation, or the start does not fit the space.

    Source: Hansen 2016, arXiv 1604.00772; claim H5.
    """
    check_budget(budget)
    size = default_population(space.dimension) if population is None else population
    if budget < size:
        raise CourseError(
            f"A budget of {budget} is below one generation of CMA-ES, which has {size} candidates at "
            f"{space.dimension} weights. Give a budget of at least {size}, or a smaller population."
        )
    strategy = CMAES(start_of(space, start), sigma, size, (space.lower, space.upper), seed)

    def search() -> Search:
        for done in range(0, budget, size):
            X = strategy.ask()[: budget - done]  # (P, N)
            losses = yield X
            if len(X) == size:
                strategy.tell(X, losses)

    return search()


def random_search(
    space: Space, budget: int, seed: int = 0, population: int = 20, start: Sequence[float] | None = None
) -> Search:
    """Draw candidates uniformly within the bounds; losses change nothing.

    Args:
        space: dimension N and bounds.
        budget: candidates in all.
        seed: fixes every candidate.
        population: candidates yielded together; the draws don't depend on it.
        start: (N,) the first candidate; None draws it too.

    Returns:
        The search.

    Raises:
        CourseError: budget or population is below 1, or the start does not fit the space.

    Source: claim X3.
    """
    check_budget(budget)
    if population < 1:
        raise CourseError(f"Random search yields at least one candidate at a time, but population is {population}.")
    first = None if start is None else start_of(space, start)
    generator = np.random.default_rng(seed)

    def search() -> Search:
        for done in range(0, budget, population):
            X = generator.uniform(space.lower, space.upper, (min(population, budget - done), space.dimension))  # (P, N)
            if done == 0 and first is not None:
                X[0] = first
            yield X

    return search()


def greedy(space: Space, budget: int = 120, seed: int = 0, start: Sequence[float] | None = None) -> Search:
    """A deterministic coordinate search: begin at the best single module and change one weight at a time.

    The N one-hot vectors come first. Then each round tries N + 1 moves, a step along every weight and a scaling of all
    of them, keeps the best and tries the best two and the best three improving moves together. A move that did not
    improve is tried the other way, and shorter, in the next round.

    Args:
        space: dimension N and bounds.
        budget: candidates in all; the last round is cut to it.
        seed: not used; every search takes one.
        start: (N,) where to begin instead of the best one-hot vector.

    Returns:
        The search.

    Raises:
        CourseError: the budget is below N without a start, or the start does not fit the space.

    Source: claim X5.
    """
    check_budget(budget)
    first = space.clip(np.eye(space.dimension)) if start is None else start_of(space, start)[None]  # (N, N) or (1, N)
    if budget < len(first):
        raise CourseError(
            f"A budget of {budget} is too small for the greedy search: it scores each of the {len(first)} modules "
            f"alone first. Give a budget above that, or a start."
        )
    return _greedy(space, budget, first)


def _greedy(space: Space, budget: int, first: np.ndarray) -> Search:
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


SEARCHES: dict[str, Callable[..., Search]] = {
    "cma": cma,
    "random": random_search,
    "ngopt": partial(nevergrad_search, name="NGOpt"),
    "shiwa": partial(nevergrad_search, name="Shiwa"),
    "greedy": greedy,
    "gradient": gradient_descent,
}
_DESCRIPTIONS = {
    "cma": "CMA-ES",
    "random": "random search",
    "greedy": "greedy coordinate search",
    "gradient": "gradient descent (Adam)",
}


def needs_gradient(optimizer: str | Callable) -> bool:
    """Whether a search wants (losses, slopes) sent back; a function says so by an attribute `needs_gradient`."""
    if isinstance(optimizer, str):
        return optimizer.lower() == "gradient"
    return bool(getattr(optimizer, "needs_gradient", False))


def make_search(
    optimizer: str | Callable[..., Search], space: Space, budget: int, seed: int = 0, **options: Any
) -> tuple[Search, str]:
    """A search by name, and what it is.

    Args:
        optimizer: a name of `SEARCHES` or of nevergrad's registry, in any case, or a function of (space, budget, seed)
            that returns a search.
        space: dimension N and bounds.
        budget: candidates in all.
        seed: fixes every candidate, given the losses.
        **options: passed on, for example `start`.

    Returns:
        The search, and the algorithm really run in words, for example "nevergrad NGOpt, which chose Cobyla".

    Raises:
        CourseError: no such name, an option that the search does not have, or settings it can't work with.
    """
    check_budget(budget)
    if callable(optimizer):
        name = getattr(optimizer, "__name__", type(optimizer).__name__)
        return optimizer(space, budget, seed, **options), f"{name}, a function of the caller"
    name = str(optimizer).lower()
    function = SEARCHES.get(name) or partial(nevergrad_search, name=find_optimizer(str(optimizer), also=SEARCHES))
    _check_options(name, function, options)
    search = function(space, budget, seed, **options)
    return search, _DESCRIPTIONS.get(name) or algorithm(str(optimizer), space, budget)


def run_search(search: Search, objective: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Drive a search to its end.

    Args:
        search: fresh, of this module or of the same protocol.
        objective: losses (P,) of candidates (P, N).

    Returns:
        All M candidates in order, (M, N), and their losses, (M,).
    """
    candidates, losses = [], []
    batch = next(search, None)
    while batch is not None:
        candidates.append(batch)
        losses.append(np.asarray(objective(batch), dtype=np.float64))
        try:
            batch = search.send(losses[-1])
        except StopIteration:
            break
    return np.concatenate(candidates), np.concatenate(losses)


def _failed_last(losses: np.ndarray) -> np.ndarray:
    losses = np.asarray(losses, dtype=np.float64)
    return np.where(np.isfinite(losses), losses, np.inf)


def _check_options(name: str, function: Callable, options: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = set(parameters) - {"space", "budget", "seed", "name"}
    for option in options.keys() - known:
        raise CourseError(f"The search {name!r} has no option {option!r}. {near_matches(option, known)}")
