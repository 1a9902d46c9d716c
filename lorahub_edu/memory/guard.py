"""Before a run that would not fit, and after one that did not: the planner's advice instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch

from lorahub_edu.errors import CourseError
from lorahub_edu.memory.predict import Setting
from lorahub_edu.memory.report import GB, Report, in_words, report
from lorahub_edu.memory.shapes import read_config

MARGIN = 0.85  # of what a step that ran out was thought to need: what a change must get below


def available_memory(device: torch.device | str) -> int:
    """Bytes that a run may take on a device.

    On a GPU that is what is free, what torch holds there without using it, and no more than this process was allowed;
    on a CPU what the system can give without swapping.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return psutil.virtual_memory().available
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    allowed = round(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(free + torch.cuda.memory_reserved(device), allowed) - held


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on a GPU or on a CPU."""
    words = str(error)
    refused = "can't allocate memory" in words or "not enough memory" in words  # what torch's CPU allocator says
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and refused)


@contextmanager
def memory_watched(
    model: str,
    setting: Setting,
    device: torch.device | str,
    *,
    only: Sequence[str] = (),
    anyway: bool = False,
    override: str = "",
) -> Iterator[None]:
    """Refuse a run that would not fit on a GPU, and answer one that runs out of memory, both with advice.

    Args:
        model: a name that `shapes.read_config` knows.
        setting: of the run's step.
        device: where it runs. On a CPU nothing is predicted beforehand.
        only: the changes that the caller's user can make, keys of `advice.STEPS`; empty is all.
        anyway: run even if it does not seem to fit.
        override: what the user can do to run it anyway, for the message.

    Raises:
        CourseError: it does not fit, or memory ran out.
    """
    device = torch.device(device)
    available = available_memory(device)
    where = f"free on this {'GPU' if device.type == 'cuda' else 'machine'}"
    if device.type == "cuda" and not anyway:
        found = report(model, read_config(model), setting, available, where, only)
        if not found.plan.fits:
            raise CourseError(_refusal(found, override))
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CourseError(_after(model, setting, available, where, only)) from error


def _refusal(found: Report, override: str) -> str:
    plan = found.plan
    return (
        f"{found.model} ({in_words(plan.setting)}) needs about {plan.needed / GB:.1f} GB, and "
        f"{plan.available / GB:.1f} GB are {found.where}. {found.advice()}"
        + (f" To try it all the same: {override}." if override else "")
    )


def _after(model: str, setting: Setting, available: int, where: str, only: Sequence[str]) -> str:
    """What to say once memory ran out; where the plan had seemed to fit, less is assumed to be there."""
    config = read_config(model)
    found = report(model, config, setting, available, where, only)
    hopeful = ""
    if found.plan.fits:
        hopeful = f"The planner had expected {found.plan.needed / GB:.1f} GB: does another program use memory too? "
        found = report(model, config, setting, round(MARGIN * found.plan.needed), where, only)
    return (
        f"Out of memory: {model} ({in_words(setting)}) did not get what it needed of {available / GB:.1f} GB that were "
        f"{where}. {hopeful}{found.advice()} A checkpoint that was written stays."
    )
