"""Methods on a model: `attach` puts one or several on, at a size that fits a budget, `detach` restores the model."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import peft
import torch
from peft import PeftModel
from peft.tuners.adaption_prompt import AdaptedAttention
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapters
from lorahub_edu.methods import bottleneck
from lorahub_edu.methods.kinds import BOTTLENECK, PROMPT, WHOLE, get_method, parts_of
from lorahub_edu.training.descent import seeded

# What PEFT raises where a method doesn't fit a model.
MISFITS = (ValueError, TypeError, LookupError, AttributeError, RuntimeError)
TRACES = {"peft_config", "prepare_inputs_for_generation", "generation_config"}  # what PEFT leaves on a base
FACTOR = 2  # the nearest count must lie within this factor of the budget


@dataclass
class Attached:
    """A method, or a combination, on a model."""

    model: nn.Module  # what is trained, run and generated with: PEFT's wrapper, or the base itself
    base: PreTrainedModel  # the model that was given; its layers are changed until `detach`
    parts: dict[str, dict]  # the methods with all their settings, in the order they were attached
    wrappers: dict[str, PeftModel] = field(default_factory=dict)  # of each method that PEFT has
    _required: dict[str, bool] = field(default_factory=dict, repr=False)  # which parameters required a gradient
    _weights: dict[str, Tensor] = field(default_factory=dict, repr=False)  # those that full fine-tuning changes
    _replaced: dict[str, nn.Module] = field(default_factory=dict, repr=False)  # layers that are held in 4 bits
    _lost: str = field(default="", repr=False)  # the method that did not keep the base
    _attributes: list[tuple[nn.Module, set[str]]] = field(default_factory=list, repr=False)  # of modules, before

    @property
    def trainable(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def attach(
    model: PreTrainedModel,
    method: str | Sequence[str] | Mapping[str, Mapping],
    *,
    budget: float | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **settings: object,
) -> Attached:
    """Attach a method of fine-tuning to a model, in place; whatever is not the method's own is frozen.

    Args:
        model: a model of transformers; it may be on the meta device, except for "qlora".
        method: a key of `kinds.METHODS`; several are combined (["lora", "prefix"]), with settings of their own in a
            mapping: {"lora": {"rank": 4}, "prefix": {"length": 10}}.
        budget: the wished number of trainable parameters, or their share of the model's (below 1); it fixes each
            method's size (rank, length, bottleneck). A combination shares it evenly.
        seed: fixes what is drawn at random; the caller's generators stay as they were.
        dtype: of the added parameters. None is float32 where PEFT computes so on a half-precision base, else
            (LLaMA-Adapter, norm tuning) the base's. Under autocast float32 always works. Full fine-tuning keeps the
            base's.
        settings: of a single method, as in its `kinds.Method.settings`.
    Raises CourseError: unknown method or setting, a size below 1, methods that can't stand together, a method that does
        not fit the model (the model is as before), or a budget that no size meets.
    """
    parts = parts_of(method, settings)
    if budget is not None:
        parts = fit_budget(model, parts, budget)
    return attach_parts(model, parts, seed, dtype)


@contextmanager
def attached(
    model: PreTrainedModel, method: str | Sequence[str] | Mapping[str, Mapping], **options: object
) -> Iterator[Attached]:
    """A model with a method while the block runs, with `attach`'s options; afterwards the model is as it was."""
    result = attach(model, method, **options)
    try:
        yield result
    finally:
        detach(result)


def attach_parts(
    model: PreTrainedModel,
    parts: Mapping[str, Mapping],
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Attached:
    """As `attach`, when all settings are known, as `kinds.parts_of` gives them.

    Raises CourseError: the model carries a method already, or one does not fit it (the model is then as before).
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
            model.requires_grad_(False)
            for name, settings in attached.parts.items():
                earlier = [parameter for parameter in model.parameters() if parameter.requires_grad]
                _attach_one(attached, name, settings)
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


def _attach_one(attached: Attached, name: str, settings: Mapping) -> None:
    """Attach one method on top of those before it."""
    method, base = get_method(name), attached.base
    if settings.get("keep_base") is False:
        attached._lost = method.label
    if method.kind == WHOLE:
        base.requires_grad_(True)
        if settings["keep_base"]:
            attached._weights = {key: p.detach().clone() for key, p in base.named_parameters()}
        return
    if method.kind == BOTTLENECK:
        width = base.config.hidden_size
        if settings["bottleneck"] > width:
            raise CourseError(f"A bottleneck of {settings['bottleneck']} is none at width {width}: take at most that.")
        bottleneck.insert(base, settings["bottleneck"], after_attention=name == "houlsby")
        return
    _check_fits(base, name, settings)
    task = "SEQ_2_SEQ_LM" if base.config.is_encoder_decoder else "CAUSAL_LM"
    config = getattr(peft, method.config)(task_type=task, **method.fields(base, settings))
    if name == "qlora":
        replaced = _quantise(base)
        attached._replaced = replaced if settings["keep_base"] else {}
    wrapper = peft.get_peft_model(base, config)
    if hasattr(base, "peft_config"):
        del base.peft_config  # a second wrapper would take it for its own
    if name == "prefix":
        wrapper.prompt_encoder["default"].embedding.weight.data.mul_(settings["scale"])
    attached.wrappers[name] = attached.model = wrapper


def _quantise(model: nn.Module) -> dict[str, nn.Module]:
    """Replace every linear layer but the output head by its 4-bit form, in place: QLoRA's base, by bitsandbytes.

    The model's dtype is what the layers compute in. Returned are the layers from before, by name; if you keep no
    reference, their memory is freed.
    Source: Dettmers et al. 2023, "QLoRA", arXiv 2305.14314, section 3 (NormalFloat with double quantisation).
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise CourseError(
            "QLoRA quantises the base with bitsandbytes, which is not installed: install the extra 'gpu' "
            "(pip install 'lorahub-edu[gpu]'; its 4-bit layers run on a CPU too), or choose lora."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise CourseError("QLoRA quantises real weights, and this model has only their shapes: load it first.")
    from bitsandbytes.nn import Linear4bit, Params4bit

    replaced = {}
    for name in adapters.find_targets(model, adapters.ALL_LINEAR):
        layer = model.get_submodule(name)
        quantised = Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=layer.weight.dtype, quant_type="nf4",
            compress_statistics=True, device="meta",
        )  # fmt: skip
        quantised.weight = Params4bit(
            layer.weight.detach().clone(), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        quantised.bias = layer.bias
        # bitsandbytes 0.50 repacks a layer when a CPU first evaluates it, and passes wrong gradients ever after.
        quantised.support_avx512bf16_for_cpu = False
        model.set_submodule(name, quantised.to(layer.weight.device))  # it is quantised as it is moved
        replaced[name] = layer
    return replaced


def _check_fits(model: PreTrainedModel, name: str, settings: Mapping) -> None:
    """Refuse what PEFT would accept and this course can't run."""
    method = get_method(name)
    if method.kind == PROMPT and model.config.is_encoder_decoder:
        raise CourseError(
            f"{method.label} is trained here on decoder-only models, and a {type(model).__name__} is an "
            f"encoder-decoder: take lora, ia3, bitfit or houlsby."
        )
    context, length = _context_of(model.config), settings.get("length", 0)
    if length >= context:
        raise CourseError(
            f"{method.label} with length {length} leaves no room for a text: the model's context is {context} tokens."
        )


def _context_of(config: PreTrainedConfig) -> int:
    """The most tokens that a model takes."""
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 512)


def detach(attached: Attached) -> PreTrainedModel:
    """Remove everything again and return the base: layers, weights and what requires a gradient as before, bit for bit.

    `attached` can't be used afterwards.
    Raises CourseError: the base's weights were not kept (`keep_base=False`).
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
    for name, layer in attached._replaced.items():
        base.set_submodule(name, layer)
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


def fit_budget(model: PreTrainedModel, parts: Mapping[str, Mapping], budget: float) -> dict[str, dict[str, object]]:
    """The same methods at the sizes whose numbers of trainable parameters come nearest to a budget, shared evenly.

    The budget is a number of parameters (1 and above) or a share of the model's (below 1). The model is not touched.
    Raises CourseError: the budget is not a number above 0, or a method can only train less than half or more than twice
        as many parameters (the nearest number is given).
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < float("inf"):
        raise CourseError(
            f"A budget is a number of parameters (1 and above) or a share of the model's (below 1), not {budget!r}."
        )
    count = budget if budget >= 1 else budget * sum(p.numel() for p in _shapes_of(model).parameters())
    return {name: _fit(model, name, values, count / len(parts)) for name, values in parts.items()}


def _fit(model: PreTrainedModel, name: str, settings: Mapping, budget: float) -> dict[str, object]:
    size_name = get_method(name).size
    if size_name:
        one, two = (_on_shapes(model, {name: {**settings, size_name: size}}) for size in (1, 2))
        step = two.trainable - one.trainable  # every size adds as many as the one before: rows, tokens or neurons
        size = min(max(1, round((budget - one.trainable) / step) + 1), _largest(one, name))
        count = one.trainable + (size - 1) * step
        fitted, words = {**settings, size_name: size}, f" with {size_name}={size}"
    else:
        count = count_trainable(model, {name: settings})
        fitted, words = dict(settings), ", a number that is fixed"
    if not budget / FACTOR <= count <= budget * FACTOR:
        raise CourseError(
            f"{get_method(name).label} can't train about {budget:,.0f} parameters of this model: the nearest possible "
            f"is {count:,}{words}. Choose a budget near that, or another method."
        )
    return fitted


def _largest(attached: Attached, name: str) -> int:
    """The largest size that makes sense: a full rank, the model's width, or all of its context but one token."""
    layers = [layer for layer in attached.model.modules() if isinstance(layer, LoraLayer)]
    if layers:
        return min(min(layer.in_features, layer.out_features) for layer in layers)
    config = attached.base.config
    return config.hidden_size if get_method(name).kind == BOTTLENECK else _context_of(config) - 1


def count_trainable(model: PreTrainedModel, parts: Mapping[str, Mapping]) -> int:
    """How many parameters methods would train on a model, without touching it."""
    return _on_shapes(model, parts).trainable


def _on_shapes(model: PreTrainedModel, parts: Mapping[str, Mapping]) -> Attached:
    """Methods on the shapes of a model; "qlora" trains what "lora" does."""
    parts = {name: {**values, **({"keep_base": False} if name == "full" else {})} for name, values in parts.items()}
    if "qlora" in parts:
        parts["lora"] = parts.pop("qlora")
    return attach_parts(_shapes_of(model), parts)


def _shapes_of(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same shapes without numbers."""
    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config))
