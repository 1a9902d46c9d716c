"""What a method of fine-tuning does to a model before its first step, on a model without weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.methods import kinds
from lorahub_edu.methods.attach import attach

NONE, FULL, OWN = "none", "full", ("lora", "rslora")
# LLaMA-Adapter leaves the first two layers alone, so a model must have more of them to show what it does to a layer.
DEPTH, DEPTHS = 4, {"llama_adapter": 6}


@dataclass(frozen=True)
class Method:
    """A method by what it does to a model.

    `prepare` takes a base model on the meta device, may change or wrap it, and returns what is run; its parameters
    that require a gradient are those that are trained. `depth` is a number of layers at which a model shows all that
    the method does to a layer: more where it treats the first ones apart.
    """

    name: str
    prepare: Callable[[PreTrainedModel], nn.Module]
    depth: int = DEPTH


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer would get."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def names() -> tuple[str, ...]:
    """Every method that `get_method` knows; "none" is the base as it is, or with everything merged into it."""
    return NONE, *(name for name in kinds.METHODS if name != "qlora")


def get_method(name: str, config: LoRAConfig | None = None, **settings: object) -> Method:
    """A method that the course has.

    Args:
        name: "none", or a method of `lorahub_edu.methods`. A base in 4 bits is `Setting.quantisation`, for any method.
        config: rank, α, dropout and places of "lora" and "rslora", which are the course's own layers here.
        settings: those that `attach` takes for the other methods.

    Raises:
        CourseError: there is no such method; when prepared, it does not fit the model.
    """
    name = name.replace("-", "_").lower()
    if name == "qlora":
        raise CourseError("QLoRA is LoRA on a base in 4 bits: choose the method lora and the base nf4-dq.")
    if name not in names():
        raise CourseError(f"There is no method {name!r}. {near_matches(name, names())}")
    if name == NONE:
        return Method(NONE, lambda model: model.requires_grad_(False))
    if name in OWN:
        return injected(config or LoRAConfig(rank_stabilised=name == "rslora"), name)
    if name == FULL:
        settings["keep_base"] = False
    return Method(name, lambda model: attach(model, name, **settings).model, DEPTHS.get(name, DEPTH))


def injected(config: LoRAConfig, name: str = "lora") -> Method:
    """The course's own LoRA layers.

    Args:
        config: rank, α, dropout, places.
        name: of the method.
    """

    def prepare(model: PreTrainedModel) -> nn.Module:
        adapters.inject(model, config, seed=0)
        return model

    return Method(name, prepare)
