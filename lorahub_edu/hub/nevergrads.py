"""nevergrad's optimizers as searches, and the algorithm that nevergrad really runs under a name.

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 3.3, and the authors' released code; claim H5.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Generator, Iterable
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np

from lorahub_edu.errors import CourseError, near_matches

FAILED_FIRST = 1e3  # sent for a failed candidate before any other: no loss in nats a token comes near it


def make_optimizer(name: str, dimension: int, bounds: tuple[float, float], budget: int, seed: int = 0) -> Any:
    """One of nevergrad's optimizers, by its name in any case, as the paper's released code sets it up: from zero.

    Raises:
        CourseError: there is no such optimizer.
    """
    import nevergrad  # here, not above: it takes seconds

    # scipy corrects nevergrad's tolerance of 0 and its budget, and says so at every start
    warnings.filterwarnings("ignore", message="COBYLA: Invalid", category=UserWarning)
    state = np.random.get_state()  # an Array takes a draw from numpy's global generator, which is not ours to move
    lower, upper = ([bound] * dimension for bound in bounds)
    weights = nevergrad.p.Array(init=[0.0] * dimension, lower=lower, upper=upper)
    np.random.set_state(state)
    weights.random_state = np.random.RandomState(seed)
    registry = nevergrad.optimizers.registry
    return registry[registered(name)](parametrization=weights, budget=budget, num_workers=1)


def search(optimizer: Any, budget: int) -> Generator[np.ndarray, np.ndarray, None]:
    """A search by nevergrad, one candidate at a time; it raises a CourseError if the optimizer breaks down.

    A failed candidate's loss is one nat above the worst so far. An optimizer that fits a model to the losses, as
    Cobyla does, could do nothing with an infinite one.
    """
    # Cobyla and others run in a thread that nevergrad leaves waiting for the next loss. Python would wait for it at
    # exit, for ever if a search was given up. A thread that is started from a daemon (as a pool's are) is a daemon too.
    pool = ThreadPool(1)
    candidates = _ask_and_tell(optimizer, budget, pool)
    weakref.finalize(candidates, pool.terminate)  # also at exit, while multiprocessing is still whole
    return candidates


def _ask_and_tell(optimizer: Any, budget: int, pool: ThreadPool) -> Generator[np.ndarray, np.ndarray, None]:
    worst = None
    for _ in range(budget):
        try:
            candidate = pool.apply(optimizer.ask)
        except Exception as error:
            raise CourseError(
                f"{describe(optimizer)}: it broke down at {optimizer.dimension} weights and a budget of "
                f"{budget} ({error}). Try another optimizer, such as 'cma' or 'greedy', or another budget."
            ) from error
        losses = yield np.array(candidate.value, dtype=np.float64)[None]  # (1, N)
        loss = float(losses[0])
        if np.isfinite(loss):
            worst = loss if worst is None else max(worst, loss)
        else:
            loss = FAILED_FIRST if worst is None else worst + 1.0
        optimizer.tell(candidate, loss)


def registered(name: str, also: Iterable[str] = ()) -> str:
    """An optimizer's name as nevergrad's registry spells it; `also` are other names for the error's suggestions."""
    import nevergrad

    registry = nevergrad.optimizers.registry
    known = {key.lower(): key for key in registry}
    if name in registry or name.lower() in known:
        return name if name in registry else known[name.lower()]
    hint = near_matches(name.lower(), {*also, *known})
    if not hint.startswith("Did"):  # hundreds of names are no help
        hint = near_matches("", also) + " Every name in nevergrad.optimizers.registry is one."
    raise CourseError(f"There is no optimizer {name!r}. {hint}")


def chosen(optimizer: Any) -> str:
    """The name of the algorithm that a choosing optimizer passes everything on to."""
    while (inner := getattr(optimizer, "optim", None)) is not None:  # its choice can be a choosing optimizer again
        optimizer = inner
    return optimizer.name


def describe(optimizer: Any) -> str:
    """What nevergrad runs, in words, for example "nevergrad NGOpt, which chose Cobyla"."""
    name = chosen(optimizer)
    return f"nevergrad {optimizer.name}" + (f", which chose {name}" if name != optimizer.name else "")
