"""What decides the memory of a step apart from the model: method, batch, dtypes, optimizer, quantisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.methods import kinds
from lorahub_edu.methods.attach import attach

NONE, FULL, OWN = "none", "full", ("lora", "rslora")
METHODS = (NONE, *kinds.METHODS)
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
    """What decides how much memory a step needs, apart from the model.

    Attributes:
        method: "none" (the base as it is, or with everything merged into it), or a method of `methods.kinds`.
        lora: rank, α, dropout and places of "lora", "rslora" and "qlora", which are the course's own layers here.
        options: settings that `attach` takes for the other methods.
        micro_batch: rows that go through the model at one time.
        block: tokens in a row.
        accumulation: micro-batches for one optimizer step.
        checkpointing: whether each layer runs again in the backward pass instead of keeping its activations.
        dtype: of frozen weights and, unless it is float32, of autocast.
        trained_dtype: of what is trained.
        optimizer: "adamw", "adamw-8bit" or "sgd".
        quantisation: of the frozen linear layers; "nf4-dq" with double quantisation.
        task: "training", "scoring" (the loss without a gradient) or "generation" (a prompt of `block` tokens and the
            first new one, with the cache of keys and values).
        loss: "course" (logits at labels, a chunk at a time) or "library" (all logits at one time).
        labelled: share of positions with a label.
        device: "cuda" or "cpu".
    """

    method: str = "lora"
    lora: LoRAConfig = LoRAConfig()
    options: Mapping[str, object] = field(default_factory=dict, hash=False)
    micro_batch: int = 4
    block: int = 512
    accumulation: int = 1
    checkpointing: bool = False
    dtype: str = "bfloat16"
    trained_dtype: str = "float32"
    optimizer: str = "adamw"
    quantisation: str = "none"
    task: str = "training"
    loss: str = "course"
    labelled: float = 1.0
    device: str = "cuda"

    def __post_init__(self) -> None:
        for name in ("micro_batch", "block", "accumulation"):
            if getattr(self, name) < 1:
                raise CourseError(f"{name} must be at least 1, but it is {getattr(self, name)}.")
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


def put_method(model: PreTrainedModel, setting: Setting) -> nn.Module:
    """The model with the setting's method on it, in the dtype that is trained; what is not trained is frozen.

    Raises:
        CourseError: the method does not fit the model.
    """
    if setting.method == NONE:
        model.requires_grad_(False)
    elif setting.method in (*OWN, "qlora"):
        adapters.inject(model, setting.lora, seed=0)
    else:
        options = {**setting.options, "keep_base": False} if setting.method == FULL else setting.options
        model = attach(model, setting.method, **options).model
    # Trained in full and then only used, a model has the base's dtype; an adapter keeps its own.
    if setting.task == "training" or setting.method != FULL:
        for parameter in trained_parameters(model):
            parameter.data = parameter.data.to(getattr(torch, setting.trained_dtype))
    return model


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer would get."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
