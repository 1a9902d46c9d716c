"""Methods on a model: each is attached on top of the one before, and all are removed without a trace."""

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
from lorahub_edu.training.descent import seeded

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
    _required: dict[str, bool] = field(default_factory=dict, repr=False)  # which parameters required a gradient
    _weights: dict[str, Tensor] = field(default_factory=dict, repr=False)  # those that full fine-tuning changes
    _replaced: dict[str, nn.Module] = field(default_factory=dict, repr=False)  # layers that are held in 4 bits
    _lost: str = field(default="", repr=False)  # the method that did not keep the base
    _attributes: list[tuple[nn.Module, set[str]]] = field(default_factory=list, repr=False)  # of modules, before

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
    """Attach methods to a model, in place, when all their settings are known.

    Args:
        model: as for `attach.attach`, and so are `seed` and `dtype`.
        parts: as `kinds.parts_of` gives them.
        saved: folders in PEFT's layout that methods of PEFT take their settings and weights from.

    Raises:
        CourseError: the model carries a method already, or one does not fit it (the model is then as before).
    """
    if getattr(model, "peft_config", None) or isinstance(model, PeftModel):
        raise CourseError("The model carries a method of PEFT already: detach it first, or attach both in one call.")
    attached = Attached(model, model, {name: dict(values) for name, values in parts.items()})
    attached._required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    attached._attributes = [(module, set(vars(module))) for module in (model, model.get_decoder())]
    was_training = model.training
    try:
        with seeded(seed, model.device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, about merging, and about what is meant to be so here
            warnings.filterwarnings("error", "Found missing adapter keys")  # a damaged file
            model.requires_grad_(False)
            for name, settings in attached.parts.items():
                earlier = [parameter for parameter in model.parameters() if parameter.requires_grad]
                _attach_one(attached, name, settings, (saved or {}).get(name))
                for parameter in earlier:  # PEFT freezes whatever is not its own
                    parameter.requires_grad_(True)
    except (CourseError, *MISFITS) as error:
        attached._lost = ""
        detach(attached)
        if isinstance(error, CourseError):
            raise
        raise CourseError(
            f"{get_method(name).label} can't be attached to a {type(model).__name__} ({model.config.model_type}): "
            f"{error}"
        ) from error
    if dtype is not None and "full" not in parts:
        for parameter in attached.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    attached.model.train(was_training)
    return attached


def _attach_one(attached: Attached, name: str, settings: Mapping, folder: str | None) -> None:
    """Attach one method on top of those before it."""
    method, base = get_method(name), attached.base
    if settings.get("keep_base") is False:
        attached._lost = method.label
    if method.kind == WHOLE:
        base.requires_grad_(True)
        if settings["keep_base"]:
            attached._weights = {key: p.detach().clone() for key, p in base.named_parameters()}
    elif method.kind == BOTTLENECK:
        width = base.config.hidden_size
        if settings["bottleneck"] > width:
            raise CourseError(f"A bottleneck of {settings['bottleneck']} is none at width {width}: take at most that.")
        bottleneck.insert(base, settings["bottleneck"], after_attention=name == "houlsby")
    else:
        _wrap(attached, name, settings, folder)


def _wrap(attached: Attached, name: str, settings: Mapping, folder: str | None) -> None:
    """Attach a method of PEFT."""
    base = attached.base
    _check_fits(base, name, settings)
    config = None if folder else get_method(name).peft_config(base, settings)
    if name == "qlora":
        replaced = quantised.quantise(base)
        attached._replaced = replaced if settings["keep_base"] else {}
    wrapper = PeftModel.from_pretrained(base, folder) if folder else peft.get_peft_model(base, config)
    if hasattr(base, "peft_config"):
        del base.peft_config  # a second wrapper would take it for its own
    if name == "prefix" and not folder:
        wrapper.prompt_encoder["default"].embedding.weight.data.mul_(settings["scale"])
    attached.wrappers[name] = attached.model = wrapper


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


def detach(attached: Attached) -> PreTrainedModel:
    """Remove everything again and return the base: layers, weights and what requires a gradient as before, bit for bit.

    `attached` can't be used afterwards.

    Raises:
        CourseError: the base's weights were not kept (`keep_base=False`).
    """
    if attached._lost:
        raise CourseError(
            f"{attached._lost} was attached with keep_base=False, so the base's weights are gone: load it again."
        )
    base = attached.base
    bottleneck.remove(base)
    for name, layer in list(base.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            base.set_submodule(name, layer.base_layer)
        elif isinstance(layer, AdaptedAttention):
            base.set_submodule(name, layer.model)
    quantised.restore(base, attached._replaced)
    for module, before in attached._attributes:
        for trace in TRACES & set(vars(module)) - before:
            delattr(module, trace)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name in attached._weights:
                parameter.copy_(attached._weights[name])
            parameter.requires_grad_(attached._required[name])
    base.train(attached.model.training)
    attached.model = base
    return base
