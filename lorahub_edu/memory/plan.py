"""Does a step fit: its predicted tensors, what it takes beyond them, and the memory that there is."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from lorahub_edu.errors import CourseError
from lorahub_edu.memory.predict import Prediction, predict
from lorahub_edu.memory.setting import Setting
from lorahub_edu.memory.tracker import WEIGHTS

GIB, MIB = 1 << 30, 1 << 20
CONTEXT = GIB // 2  # what the driver, the CUDA context and loaded kernels take of a card before any tensor


@dataclass(frozen=True)
class Allowance:
    """Bytes beyond the tensors: workspaces of kernels, and what the allocator holds and can't hand out."""

    workspace: int
    allocator: int

    @property
    def total(self) -> int:
        """Both together, in bytes."""
        return self.workspace + self.allocator


@dataclass(frozen=True)
class Plan:
    """A step, what it is predicted to take, and what is available; everything in bytes."""

    config: PreTrainedConfig
    setting: Setting
    prediction: Prediction
    allowance: Allowance
    available: int

    @property
    def needed(self) -> int:
        """Tensors and allowance together."""
        return self.prediction.peak + self.allowance.total

    @property
    def room(self) -> int:
        """What stays free; below zero, what is missing."""
        return self.available - self.needed

    @property
    def fits(self) -> bool:
        """Whether the step is predicted to run."""
        return self.room >= 0


def capacity(gigabytes: float) -> int:
    """What a card sold with so many GB leaves for tensors, in bytes: sold GB are GiB, and the driver takes its part.

    Raises:
        CourseError: not above the driver's part.
    """
    if not gigabytes * GIB > CONTEXT:
        raise CourseError(f"No model fits on a GPU with {gigabytes:g} GB: give the size of the card, such as 24.")
    return round(gigabytes * GIB) - CONTEXT


def plan(config: PreTrainedConfig, setting: Setting, available: int) -> Plan:
    """Predict a step and compare it with the available bytes.

    Raises:
        CourseError: as `predict`.
    """
    prediction = predict(config, setting)
    return Plan(config, setting, prediction, allowance(config, setting, prediction), available)


def allowance(config: PreTrainedConfig, setting: Setting, prediction: Prediction) -> Allowance:
    """What to add to the predicted tensors of a step.

    On a GPU: cuBLAS takes 32 MiB at most (8 MiB before Hopper). Flash attention's backward pass sums the gradient of
    the queries in float32, four bytes for each of B x T x d entries. torch's allocator serves requests of 1 to 10 MiB
    from segments of 20 MiB and larger ones from segments in steps of 2 MiB; free pieces of the wrong size are lost:
    128 MiB and 2.5 % of the tensors. Both numbers come from playing the requests of a 7B's step, with 4 to 16 layers,
    through those rules; this project has not measured them on a GPU. `capacity` subtracts the driver's own memory.

    On a CPU: half precision multiplies the last position's hidden states by the output head row by row, and copies
    the head for each (a slice of a batch is not contiguous, and the kernel wants it so). glibc's malloc keeps freed
    pieces below 32 MiB for later and can't always use them. In the course's own runs that came to about a quarter of
    everything but the weights, and up to 64 MiB at the end of its heap; no rule was found that fits every run
    (`results/memory_plan.json` has them). With the environment variable MALLOC_MMAP_THRESHOLD_=65536 malloc gives
    pieces back at once, for some more time, and this allowance is not needed.
    """
    if setting.device == "cpu":
        copies = setting.task == "generation" and setting.dtype != "float32" and not config.is_encoder_decoder
        head = 2 * config.vocab_size * config.hidden_size if copies else 0
        others = prediction.peak - prediction.parts[WEIGHTS]
        return Allowance(setting.micro_batch * head, 64 * MIB + round(0.25 * others))
    sums = 4 * setting.micro_batch * setting.block * config.hidden_size if setting.task == "training" else 0
    return Allowance(32 * MIB + sums, 128 * MIB + round(0.025 * prediction.peak))
