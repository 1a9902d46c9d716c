"""Searches by nevergrad, and the algorithm that it really runs under a name.

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 3.3, and the authors' released code; claim H5.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.hub.space import Search, Space, check_budget

FAILED_FIRST = 1e3  # told for a failed candidate before any other: no loss in nats a token comes near it


def nevergrad_search(space: Space, budget: int, seed: int = 0, name: str = "NGOpt") -> Search:
    """Search by one of nevergrad's optimizers as the paper's released code does: from zero, one candidate at a time.

    A failed candidate is told to be one nat worse than the worst so far: an optimizer that fits a model to the losses,
    as Cobyla does, could do nothing with an infinite one.

    Args:
        space: dimension N and bounds.
        budget: candidates in all; nevergrad chooses its algorithm by it.
        seed: of the optimizer's own generator.
        name: an optimizer of nevergrad's registry, in any case.

    Returns:
        The search.

    Raises:
        CourseError: there is no such optimizer, or (while it runs) it breaks down.

    Source: Huang et al. 2023, section 3.3, and the released code; claim H5.
    """
    check_budget(budget)
    return _ask_and_tell(_make_optimizer(space, budget, seed, name), budget)


def _ask_and_tell(optimizer: Any, budget: int) -> Search:
    worst = None
    # Cobyla and others run in a thread that nevergrad leaves waiting for the next loss, and Python would wait for it at
    # exit, for ever where a search was given up. A thread that is started from a daemon (as a pool's are) is one.
    with ThreadPool(1) as pool:
        for _ in range(budget):
            try:
                candidate = pool.apply(optimizer.ask)
            except Exception as error:
                raise CourseError(
                    f"{_describe(optimizer)}: it broke down at {optimizer.dimension} weights and a budget of "
                    f"{budget} ({error}). Try another optimizer, such as 'cma' or 'greedy', or another budget."
                ) from error
            losses = yield np.array(candidate.value, dtype=np.float64)[None]  # (1, N)
            loss = float(losses[0])
            if np.isfinite(loss):
                worst = loss if worst is None else max(worst, loss)
            else:
                loss = FAILED_FIRST if worst is None else worst + 1.0
            optimizer.tell(candidate, loss)


def chosen_optimizer(name: str, dimension: int, budget: int) -> str:
    """The algorithm that nevergrad runs under a name: NGOpt, Shiwa, CMA and others choose one by dimension and budget.

    Args:
        name: an optimizer of nevergrad's registry, in any case.
        dimension: weights N, each within the paper's bounds.
        budget: candidates in all.

    Returns:
        Its name in nevergrad, for example "Cobyla".

    Raises:
        CourseError: there is no such optimizer.

    Source: claim H5.
    """
    check_budget(budget)
    return _chosen(_make_optimizer(Space(dimension), budget, 0, name))


def algorithm(name: str, space: Space, budget: int) -> str:
    """What nevergrad runs under a name, in words, for example "nevergrad NGOpt, which chose Cobyla"."""
    return _describe(_make_optimizer(space, budget, 0, name))


def find_optimizer(name: str, also: Iterable[str] = ()) -> str:
    """An optimizer's name as nevergrad's registry spells it.

    Args:
        name: in any case.
        also: other words that would have been right, for the error's suggestions.

    Raises:
        CourseError: there is none (near matches are listed).
    """
    import nevergrad  # here, not above: it takes seconds

    registry = nevergrad.optimizers.registry
    known = {key.lower(): key for key in registry}
    if name in registry or name.lower() in known:
        return name if name in registry else known[name.lower()]
    hint = near_matches(name.lower(), {*also, *known})
    if not hint.startswith("Did"):  # hundreds of names are no help
        ours = near_matches("", also) + " " if also else ""
        hint = ours + "Every name in nevergrad.optimizers.registry is one."
    raise CourseError(f"There is no optimizer {name!r}. {hint}")


def _chosen(optimizer: Any) -> str:
    # `optim` is what a choosing optimizer passes everything on to; what it chose can be a choosing one again.
    while (inner := getattr(optimizer, "optim", None)) is not None:
        optimizer = inner
    return optimizer.name


def _describe(optimizer: Any) -> str:
    chosen = _chosen(optimizer)
    return f"nevergrad {optimizer.name}" + (f", which chose {chosen}" if chosen != optimizer.name else "")


def _make_optimizer(space: Space, budget: int, seed: int, name: str) -> Any:
    key = find_optimizer(name)
    import nevergrad

    # scipy corrects nevergrad's tolerance of 0 and its budget, and says so at every start
    warnings.filterwarnings("ignore", message="COBYLA: Invalid", category=UserWarning)
    n = space.dimension
    state = np.random.get_state()  # an Array takes a draw from numpy's global generator, which is not ours to move
    weights = nevergrad.p.Array(init=[0.0] * n, lower=[space.lower] * n, upper=[space.upper] * n)
    np.random.set_state(state)
    weights.random_state = np.random.RandomState(seed)
    return nevergrad.optimizers.registry[key](parametrization=weights, budget=budget, num_workers=1)
