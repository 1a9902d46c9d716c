"""What decides the memory of a step apart from the model, and the guard around a run.

The guard refuses a run that would not fit, and answers one that ran out of memory with the planner's advice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import torch

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.methods import kinds

GB = 1e9  # bytes; cards are sold in GiB, figures of frameworks and papers are in these
MARGIN = 0.85  # of what a step that ran out was thought to need: what a change must get below
NONE, FULL, OWN = "none", "full", ("lora", "rslora")
METHODS = (NONE, *kinds.METHODS)
MOST_TOKENS = 2**31  # in one micro-batch; above it torch can't count the bytes of one tensor
DTYPES = ("float32", "bfloat16", "float16")
KNOWN = {
    "method": METHODS,
    "task": ("training", "generation", "scoring"),
    "optimizer": ("adamw", "adamw-8bit", "sgd"),
    "quantisation": ("none", "nf4", "nf4-dq"),
    "device": ("cuda", "cpu"),
    "dtype": DTYPES,
    "trained_dtype": DTYPES,
    "loss": ("course", "library"),
}


@dataclass(frozen=True)
class Setting:
    """What decides how much memory a step needs, apart from the model."""

    method: str = "lora"  # "none" (the base as it is, or with everything merged into it), or one of `methods.kinds`
    lora: LoRAConfig = LoRAConfig()  # of "lora", "rslora" and "qlora", which are the course's own layers here
    options: Mapping[str, object] = field(default_factory=dict, hash=False)  # `attach`'s settings of the other methods
    micro_batch: int = 4  # rows that go through the model at one time
    block: int = 512  # tokens in a row
    accumulation: int = 1  # micro-batches for one optimizer step
    checkpointing: bool = False  # each layer runs again in the backward pass instead of keeping its activations
    dtype: str = "bfloat16"  # of frozen weights and, unless it is float32, of autocast
    trained_dtype: str = "float32"
    optimizer: str = "adamw"
    quantisation: str = "none"  # of the frozen linear layers; "nf4-dq" with double quantisation
    # "training", "scoring" (the loss without a gradient) or "generation" (a prompt of `block` tokens and the first new
    # one, with the cache of keys and values)
    task: str = "training"
    loss: str = "course"  # logits at labels, a chunk at a time; "library": all logits at one time
    labelled: float = 1.0  # share of positions with a label
    device: str = "cuda"

    def __post_init__(self) -> None:
        for name in ("micro_batch", "block", "accumulation"):
            if getattr(self, name) < 1:
                raise CourseError(f"{name} must be at least 1, but it is {getattr(self, name)}.")
        if self.micro_batch * self.block > MOST_TOKENS:
            raise CourseError(
                f"{self.micro_batch} x {self.block} tokens at one time are more than any machine holds: give at most "
                f"{MOST_TOKENS:,} together."
            )
        if not 0 < self.labelled <= 1:
            raise CourseError(f"labelled is a share above 0 and at most 1, but it is {self.labelled}.")
        for name, known in KNOWN.items():
            value = getattr(self, name)
            if value not in known:
                raise CourseError(f"There is no {name.replace('_', ' ')} {value!r}. {near_matches(str(value), known)}")
        if self.method == NONE and self.task == "training":
            raise CourseError("The method none trains nothing: choose the task scoring or generation.")
        if self.method == "qlora" and self.quantisation == "none":
            raise CourseError("QLoRA is LoRA on a base in 4 bits: choose the base nf4-dq.")
        if self.method == FULL and self.quantisation != "none":
            raise CourseError("A 4-bit base can't be trained in full: take a method that freezes it, such as lora.")

    def __str__(self) -> str:
        words = [self.method, self.task, f"{self.micro_batch} x {self.block} tokens", self.dtype]
        if self.task == "training":
            words += [f"trained in {self.trained_dtype}", self.optimizer]
            words += [f"{self.accumulation} micro-batches a step"] if self.accumulation > 1 else []
            words += ["checkpointing"] if self.checkpointing else []
        words += [f"frozen weights in {self.quantisation}"] if self.quantisation != "none" else []
        return ", ".join(words)


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

    `model` is a name that `shapes.read_config` knows. On a CPU nothing is predicted beforehand. `only` are the changes
    that the caller's user can make, members of `plan.KINDS`. `override` says how the user can run it `anyway`.
    Raises CourseError: it does not fit, or memory ran out.
    """
    cuda = torch.device(device).type == "cuda"
    available = available_memory(device)
    where = f"free on this {'GPU' if cuda else 'machine'}"

    def advised(bytes_: int):  # noqa: ANN202 - plan.Advice
        # Imported here: a run that fits needs no planner, and the planner needs this file's `Setting`.
        from lorahub_edu.memory.plan import advise
        from lorahub_edu.memory.shapes import read_config

        return advise(model, read_config(model), setting, bytes_, where, only)

    if cuda and not anyway:
        advice = advised(available)
        if not advice.plan.fits:
            raise CourseError(
                f"{model} ({setting}) needs about {advice.plan.needed / GB:.1f} GB, and {available / GB:.1f} GB are "
                f"{where}. {advice.remedy()}" + (f" To try it all the same: {override}." if override else "")
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
            f"Out of memory: {model} ({setting}) did not get what it needed of {available / GB:.1f} GB that were "
            f"{where}. {expected}{advice.remedy()} A checkpoint that was written stays."
        ) from error
