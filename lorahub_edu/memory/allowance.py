"""What a step takes beyond its tensors: workspaces of kernels, and what the allocator holds and can't hand out."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from lorahub_edu.memory.predict import Prediction, Setting
from lorahub_edu.memory.tracker import WEIGHTS

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True)
class Allowance:
    """Bytes beyond the tensors, by reason."""

    workspace: int
    allocator: int

    @property
    def total(self) -> int:
        """Both together, in bytes."""
        return self.workspace + self.allocator


def allowance(config: PreTrainedConfig, setting: Setting, prediction: Prediction) -> Allowance:
    """What to add to the predicted tensors.

    On a GPU: cuBLAS takes 32 MiB at most (8 MiB before Hopper); flash attention's backward pass adds up the gradient
    of the queries in float32, four bytes for each of B x T x d entries. torch's allocator serves requests of 1 to 10
    MiB from segments of 20 MiB and larger ones from segments in steps of 2 MiB, and what is free in pieces of the
    wrong size is lost: 128 MiB and 2.5 % of the tensors. These two numbers come from playing the requests of a 7B's
    step, with 4 to 16 layers, through those rules; they have not been measured on a GPU by this project.
    The driver's own memory is not among them: it comes off the card's capacity (`advice.CONTEXT`).

    On a CPU: half precision multiplies the last position's hidden states by the output head row by row, and copies
    the head for each (a slice of a batch is not contiguous, and the kernel wants it so). glibc's malloc keeps freed
    pieces below 32 MiB for later and can't always use them. In the course's own runs that came to about a quarter of
    everything but the weights, and it keeps up to 64 MiB free at the end of its heap; no rule was found that fits
    every run (`results/memory_plan.json` has them). With the environment variable MALLOC_MMAP_THRESHOLD_=65536 it
    gives pieces back at once, for some more time, and this allowance falls away.

    Args:
        config: of the model.
        setting: of the step.
        prediction: of its tensors.
    """
    others = prediction.peak - prediction.parts[WEIGHTS]
    if setting.device == "cpu":
        copies = setting.task == "generation" and setting.dtype != "float32" and not config.is_encoder_decoder
        head = 2 * config.vocab_size * config.hidden_size if copies else 0
        return Allowance(setting.micro_batch * head, 64 * MIB + round(0.25 * others))
    tokens = setting.micro_batch * setting.block
    accumulators = 4 * tokens * config.hidden_size if setting.task == "training" else 0
    return Allowance(32 * MIB + accumulators, 128 * MIB + round(0.025 * prediction.peak))
