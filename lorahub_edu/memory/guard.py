"""Before a run that would not fit, and after one that did not: the planner's advice instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch

from lorahub_edu.errors import CourseError
from lorahub_edu.memory.advice import GB, Advice, advise, in_words
from lorahub_edu.memory.setting import Setting
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
    message = str(error)
    refused = "can't allocate memory" in message or "not enough memory" in message  # what torch's CPU allocator says
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
    """Refuse a run that would not fit on a GPU, and answer a run that runs out of memory, both with advice.

    Args:
        model: a name that `shapes.read_config` knows.
        device: where it runs. On a CPU nothing is predicted beforehand.
        only: the changes that the caller's user can make, members of `advice.KINDS`; empty is all.
        anyway: run even if it does not seem to fit.
        override: what the user can do to run it anyway, for the message.

    Raises:
        CourseError: it does not fit, or memory ran out.
    """
    cuda = torch.device(device).type == "cuda"
    available = available_memory(device)
    where = f"free on this {'GPU' if cuda else 'machine'}"

    def advised(bytes_: int) -> Advice:
        return advise(model, read_config(model), setting, bytes_, where, only)

    if cuda and not anyway:
        advice = advised(available)
        if not advice.plan.fits:
            raise CourseError(
                f"{model} ({in_words(setting)}) needs about {advice.plan.needed / GB:.1f} GB, and "
                f"{available / GB:.1f} GB are {where}. {advice.remedy()}"
                + (f" To try it all the same: {override}." if override else "")
            )
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice, expected = advised(available), ""
        if advice.plan.fits:  # what a change must get below is then less than was available
            needed = advice.plan.needed
            expected = f"The planner had expected {needed / GB:.1f} GB: does another program use memory too? "
            advice = advised(round(MARGIN * needed))
        raise CourseError(
            f"Out of memory: {model} ({in_words(setting)}) did not get what it needed of {available / GB:.1f} GB that "
            f"were {where}. {expected}{advice.remedy()} A checkpoint that was written stays."
        ) from error
