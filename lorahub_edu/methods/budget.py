"""How large a method must be to train about so many parameters: counted on the model's shapes, without its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from lorahub_edu.errors import CourseError
from lorahub_edu.methods.attached import Attached, attach_parts, context_of
from lorahub_edu.methods.kinds import BOTTLENECK, get_method

FACTOR = 2  # the nearest count must lie within this factor of the budget


def fit_budget(model: PreTrainedModel, parts: Mapping[str, Mapping], budget: float) -> dict[str, dict[str, object]]:
    """The same methods at the sizes whose numbers of trainable parameters come nearest to a budget.

    Args:
        model: whose shapes count; it is not touched.
        parts: as `kinds.parts_of` gives them; each gets an equal share of the budget.
        budget: number of parameters (1 and above) or share of the model's parameters (below 1).

    Raises:
        CourseError: the budget is not a number above 0, or a method can only train less than half or more than twice
            as many parameters (the nearest number is given).
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < float("inf"):
        raise CourseError(
            f"A budget is a number of parameters (1 and above) or a share of the model's (below 1), not {budget!r}."
        )
    count = budget if budget >= 1 else budget * sum(p.numel() for p in _skeleton(model).parameters())
    return {name: _fit(model, name, values, count / len(parts)) for name, values in parts.items()}


def count_trainable(model: PreTrainedModel, parts: Mapping[str, Mapping]) -> int:
    """How many parameters methods would train on a model, without touching it."""
    return _on_shapes(model, parts).trainable


def _fit(model: PreTrainedModel, name: str, settings: Mapping, budget: float) -> dict[str, object]:
    size_name = get_method(name).size
    if not size_name:
        _check_near(name, count_trainable(model, {name: settings}), budget, ", a number that is fixed")
        return dict(settings)
    one, two = (_on_shapes(model, {name: {**settings, size_name: size}}) for size in (1, 2))
    step = two.trainable - one.trainable  # every size adds as many as the one before: rows, tokens or neurons
    size = min(max(1, round((budget - one.trainable) / step) + 1), _largest(one, name))
    _check_near(name, one.trainable + (size - 1) * step, budget, f" with {size_name}={size}")
    return {**settings, size_name: size}


def _check_near(name: str, count: int, budget: float, size: str) -> None:
    if not budget / FACTOR <= count <= budget * FACTOR:
        raise CourseError(
            f"{get_method(name).label} can't train about {budget:,.0f} parameters of this model: the nearest possible "
            f"is {count:,}{size}. Choose a budget near that, or another method."
        )


def _largest(attached: Attached, name: str) -> int:
    """The largest size that makes sense: a full rank, the model's width, or all of its context but one token."""
    layers = [layer for layer in attached.model.modules() if isinstance(layer, LoraLayer)]
    if layers:
        return min(min(layer.in_features, layer.out_features) for layer in layers)
    config = attached.base.config
    return config.hidden_size if get_method(name).kind == BOTTLENECK else context_of(config) - 1


def _on_shapes(model: PreTrainedModel, parts: Mapping[str, Mapping]) -> Attached:
    """Methods on the shapes of a model; "qlora" trains what "lora" does."""
    parts = {name: {**values, **({"keep_base": False} if name == "full" else {})} for name, values in parts.items()}
    if "qlora" in parts:
        parts["lora"] = parts.pop("qlora")
    return attach_parts(_skeleton(model), parts)


def _skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """The model's shapes without numbers, in an instance of its own."""
    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config))
