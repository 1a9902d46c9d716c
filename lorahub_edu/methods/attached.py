"""Methods on a model: how they are put on, each on top of the one before, and taken off without a trace."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import peft
import torch
from peft import PeftModel
from peft.tuners.adaption_prompt import AdaptedAttention
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lorahub_edu.errors import CourseError
from lorahub_edu.methods import bottleneck, quantised
from lorahub_edu.methods.kinds import BOTTLENECK, PROMPT, WHOLE, get_method
from lorahub_edu.training.contexts import seeded

# What PEFT raises where a method doesn't fit a model, or a file doesn't.
MISFITS = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OSError, SafetensorError, UserWarning)
TRACES = {"peft_config", "prepare_inputs_for_generation", "generation_config"}  # what PEFT leaves on a base


@dataclass
class Attached:
    """A method, or a combination, on a model.

    Attributes:
        model: what is trained, run and generated with: PEFT's wrapper, or the base itself.
        base: the model that was given; its layers are changed until `detach`.
        parts: the methods with all their settings, in the order they were attached.
        wrappers: PEFT's wrapper of each method that PEFT has.
    """

    model: nn.Module
    base: PreTrainedModel
    parts: dict[str, dict]
    wrappers: dict[str, PeftModel] = field(default_factory=dict)
    _required: dict[str, bool] = field(default_factory=dict, repr=False)
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False)  # weights that full fine-tuning changes
    _replaced: dict[str, nn.Module] = field(default_factory=dict, repr=False)  # layers that stand in 4 bits
    _lost: str = field(default="", repr=False)  # the method after which the base can't be had back
    _untouched: list[tuple[nn.Module, set[str]]] = field(default_factory=list, repr=False)  # attributes from before

    @property
    def label(self) -> str:
        """What is attached, for a page."""
        return " + ".join(get_method(name).label for name in self.parts)

    @property
    def trainable(self) -> int:
        """Number of parameters that training changes; a tied weight counts once."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def attach_parts(
    model: PreTrainedModel,
    parts: Mapping[str, Mapping],
    seed: int = 0,
    dtype: torch.dtype | None = None,
    saved: Mapping[str, str] | None = None,
) -> Attached:
    """Put methods on a model, in place, when all their settings are known.

    Args:
        model: as for `attach.attach`.
        parts: as `kinds.parts_of` gives them.
        seed: as for `attach.attach`.
        dtype: as for `attach.attach`.
        saved: folders in PEFT's layout that methods of PEFT take their settings and weights from.

    Raises:
        CourseError: the model carries a method already, or one does not fit it (it is as before then).
    """
    if getattr(model, "peft_config", None) or isinstance(model, PeftModel):
        raise CourseError("The model carries a method of PEFT already: detach it first, or attach both in one call.")
    made = Attached(model, model, {name: dict(values) for name, values in parts.items()})
    made._required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    made._untouched = [(module, set(vars(module))) for module in (model, model.get_decoder())]
    was_training = model.training
    try:
        with seeded(seed, model.device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, about merging, and about what is meant to be so here
            warnings.filterwarnings("error", "Found missing adapter keys")  # a damaged file
            model.requires_grad_(False)
            for name, values in made.parts.items():
                _attach_one(made, name, values, (saved or {}).get(name))
    except (CourseError, *MISFITS) as error:
        made._lost = ""
        detach(made)
        if isinstance(error, CourseError):
            raise
        raise CourseError(
            f"{get_method(name).label} can't be attached to a {type(model).__name__} ({model.config.model_type}): "
            f"{error}"
        ) from error
    if dtype is not None:
        _cast_added(made, dtype)
    made.model.train(was_training)
    return made


def _attach_one(made: Attached, name: str, settings: Mapping, folder: str | None) -> None:
    """Attach one method on top of those before it, whose parameters stay trainable."""
    method, base = get_method(name), made.base
    earlier = [parameter for parameter in base.parameters() if parameter.requires_grad]
    if method.kind == WHOLE:
        base.requires_grad_(True)
        if settings["keep_base"]:
            made._kept = {key: p.detach().clone() for key, p in base.named_parameters()}
        else:
            made._lost = method.label
    elif method.kind == BOTTLENECK:
        width = base.config.hidden_size
        if settings["bottleneck"] > width:
            raise CourseError(f"A bottleneck of {settings['bottleneck']} is none at width {width}: take at most that.")
        bottleneck.insert(base, settings["bottleneck"], after_attention=name == "houlsby")
    else:
        _wrap(made, name, settings, folder)
    for parameter in earlier:
        parameter.requires_grad_(True)


def _wrap(made: Attached, name: str, settings: Mapping, folder: str | None) -> None:
    """Attach a method of PEFT, which freezes whatever is not its own."""
    base = made.base
    _check_fits(base, name, settings)
    config = None if folder else get_method(name).config(base, settings)
    if name == "qlora":
        replaced = quantised.quantise(base)
        if settings["keep_base"]:
            made._replaced = replaced
        else:
            made._lost = get_method(name).label
    wrapper = PeftModel.from_pretrained(base, folder) if folder else peft.get_peft_model(base, config)
    if hasattr(base, "peft_config"):
        del base.peft_config  # a second wrapper would take it for its own
    if name == "prefix" and not folder:
        wrapper.prompt_encoder["default"].embedding.weight.data.mul_(settings["scale"])
    made.wrappers[name] = made.model = wrapper


def _check_fits(model: PreTrainedModel, name: str, settings: Mapping) -> None:
    """Refuse what PEFT would accept and this course can't run."""
    method = get_method(name)
    if method.kind == PROMPT and model.config.is_encoder_decoder:
        raise CourseError(
            f"{method.label} is trained here on decoder-only models, and a {type(model).__name__} is an "
            f"encoder-decoder: take lora, ia3, bitfit or houlsby."
        )
    context, length = context_of(model.config), settings.get("length", 0)
    if length >= context:
        raise CourseError(
            f"{method.label} with length {length} leaves no room for a text: the model's context is {context} tokens."
        )


def context_of(config: PreTrainedConfig) -> int:
    """The most tokens that a model of this configuration takes."""
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 512)


def _cast_added(made: Attached, dtype: torch.dtype) -> None:
    """Bring what was added, and is trained, to a dtype."""
    if any(get_method(name).kind == WHOLE for name in made.parts):
        return
    for parameter in made.model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def detach(made: Attached) -> PreTrainedModel:
    """Take everything off again: layers, weights and which of them are trained are those from before, bit for bit.

    Args:
        made: what `attach` returned; it can't be used afterwards.

    Returns:
        The base model.

    Raises:
        CourseError: the base's weights were not kept (`keep_base=False`).
    """
    if made._lost:
        raise CourseError(
            f"{made._lost} was attached with keep_base=False, so the base's weights are gone: load it again."
        )
    base = made.base
    bottleneck.remove(base)
    for name, layer in list(base.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            base.set_submodule(name, layer.base_layer)
        elif isinstance(layer, AdaptedAttention):
            base.set_submodule(name, layer.model)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name in made._kept:
                parameter.copy_(made._kept[name])
    quantised.restore(base, made._replaced)
    for module, before in made._untouched:
        for trace in TRACES & set(vars(module)) - before:
            delattr(module, trace)
    for name, parameter in base.named_parameters():
        parameter.requires_grad_(made._required[name])
    base.train(made.model.training)
    made.model = base
    return base
