"""The processes of one run, as torchrun and accelerate start them; with a single one everything here does nothing.

Each process holds the whole model and works off its share of every optimizer step. Gradients are added up before the
step, so that all processes make the same one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Item = TypeVar("Item")


@contextmanager
def started(device: str = "cpu") -> Iterator[None]:
    """Join the run's other processes while the block lasts, if the environment says that there are any.

    Args:
        device: "cpu" talks over gloo, "cuda" over NCCL, each process on the GPU of its local number.

    Source: the variables WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun documents them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    on_gpu = torch.device(device).type == "cuda" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def count() -> int:
    """How many processes make this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process writes files and shows bars."""
    return number() == 0


def share(items: Sequence[Item]) -> Sequence[Item]:
    """The items that this process works off: every `count()`-th."""
    return items[number() :: count()]


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process runs the block alone, then the others do."""
    if count() > 1 and not is_first():
        dist.barrier()
    yield
    if count() > 1 and is_first():
        dist.barrier()
    if count() > 1:
        dist.barrier()


def add_up(parameters: Iterable[nn.Parameter], loss: float) -> float:
    """Replace every gradient by its sum over all processes, in place.

    Args:
        parameters: the same in every process; one without a gradient here counts as zeros.

    Returns:
        The sum of all parts.
    """
    if count() == 1:
        return loss
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
    return _summed(loss, parameters[0].device)


def any_of(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether the flag is set in at least one process."""
    return _summed(float(flag), device) > 0 if count() > 1 else flag


def from_first(value: float, device: torch.device | str = "cpu") -> float:
    """The first process's value, in all of them: decisions that follow from it are then the same."""
    return _summed(value if is_first() else 0.0, device) if count() > 1 else value


def _summed(value: float, device: torch.device | str) -> float:
    total: Tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.item()
