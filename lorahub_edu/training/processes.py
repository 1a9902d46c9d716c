"""The processes of one run, as torchrun and accelerate start them; with a single one everything here does nothing.

Each process holds the whole model and processes its share of every step's micro-batches. Gradients are added up before
the step, so all processes make the same step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn


@contextmanager
def started(device: str = "cpu") -> Iterator[None]:
    """Join the run's other processes while the block lasts, if the environment says that there are any.

    On "cpu" they talk over gloo, on "cuda" over NCCL, each process on the GPU of its local number.

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


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process runs the block alone, then the others do."""
    if not is_first():
        dist.barrier()
    yield
    if is_first() and count() > 1:
        dist.barrier()


def add_up(parameters: Sequence[nn.Parameter], loss: float) -> float:
    """Replace every gradient by its sum over all processes, in place; the sum of their losses.

    The parameters are the same in every process; where one has no gradient, it counts as zeros.
    """
    if count() == 1:
        return loss
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
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.item()
