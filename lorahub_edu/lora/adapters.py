"""A whole model with LoRA layers: inject, freeze, choose, route a batch, merge, count.

Source: Hu et al. 2021, "LoRA", arXiv 2106.09685, section 4.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.lora.layer import LoRAConfig, LoRALinear

ALL_LINEAR = "all-linear"


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Every adapted layer of the model with its name, in the model's order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear))


def layers_with(model: nn.Module, adapter: str | None, purpose: str = "") -> list[tuple[str, LoRALinear]]:
    """The layers that have an adapter, with their names. Raises CourseError, with near matches, when none has it."""
    layers = [(name, layer) for name, layer in lora_layers(model) if adapter in layer.configs]
    if not layers:
        known = {name for _, layer in lora_layers(model) for name in layer.configs}
        raise CourseError(f"The model has no adapter {adapter!r}{purpose}. {near_matches(str(adapter), known)}")
    return layers


def selects(target_modules: str | Sequence[str], name: str) -> bool:
    """Whether a pattern for whole names or a list of endings selects a linear layer of this name."""
    if isinstance(target_modules, str):
        return target_modules == ALL_LINEAR or re.fullmatch(target_modules, name) is not None
    return f".{name}".endswith(tuple(f".{ending}" for ending in target_modules))


def find_targets(model: nn.Module, target_modules: str | Sequence[str]) -> list[str]:
    """Names of the linear layers that a pattern selects, in the model's order; an adapted layer has its own name.

    Raises CourseError: a pattern selects nothing (near matches are listed).
    """
    inner = {f"{name}.base_layer" for name, _ in lora_layers(model)}
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | LoRALinear) and name not in inner
    ]
    conv = next((name for name, module in model.named_modules() if isinstance(module, Conv1D)), None)
    if conv:
        raise CourseError(
            f"{conv} of {type(model).__name__} is a Conv1D, whose weight is transposed; LoRA here adapts nn.Linear. "
            f"Take another model, or PEFT's LoRA: methods.attach(model, 'lora')."
        )
    if target_modules == ALL_LINEAR:
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        return [name for name in linear if model.get_submodule(name) is not head]
    patterns = [target_modules] if isinstance(target_modules, str) else [[ending] for ending in target_modules]
    for pattern in patterns:
        try:
            fits_any = any(selects(pattern, name) for name in linear)
        except re.error as error:
            raise CourseError(f"{target_modules!r} is not a regular expression: {error}.") from error
        if not fits_any:
            hint = near_matches("".join(pattern), sorted({name.rpartition(".")[2] for name in linear}))
            raise CourseError(
                f"No linear layer fits {pattern!r}. {hint} A list such as ['q_proj'] matches ends of names, and a "
                f"pattern matches whole names, such as {next(iter(linear), '')!r}."
            )
    return [name for name in linear if selects(target_modules, name)]


def fitting_layers(
    model: nn.Module, shapes: Mapping[str, tuple[int, int]], adapts: str, base: str | None
) -> dict[str, nn.Linear | LoRALinear]:
    """The layers of an adapter, by name, from the shapes (out, in) that it was made for on `base`.

    Raises CourseError: the model has no such layer, or of another shape; `adapts` begins the sentence.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | LoRALinear)}
    for name, shape in shapes.items():
        if name not in layers:
            difference = f"which this model does not have. {near_matches(name, layers)}"
        elif (own := (layers[name].out_features, layers[name].in_features)) != shape:
            difference = f"which is {own} in this model, but the adapter was made for {shape}."
        else:
            continue
        raise CourseError(f"{adapts} {name}, {difference} The adapter belongs to another base model: {base!r}.")
    return {name: layers[name] for name in shapes}


def check_free(layers: Mapping[str, nn.Module], adapter: str) -> None:
    """Raise CourseError if one of the layers, by name, has an adapter of that name."""
    for name, layer in layers.items():
        if isinstance(layer, LoRALinear) and adapter in layer.configs:
            raise CourseError(f"{name} has an adapter {adapter!r} already: choose another name.")


def inject(
    model: nn.Module, config: LoRAConfig, adapter: str = "default", seed: int | None = None
) -> list[tuple[str, LoRALinear]]:
    """Put an adapter on every layer that the config's pattern selects and freeze everything else, in place.

    Calling it again with another name adds a second adapter to the same base. `seed` fixes A; None draws from torch's
    global generator. Returned are the adapted layers with their names.
    Raises CourseError: the pattern selects nothing, the rank does not fit a layer (no layer is changed then), or the
        name is taken.
    Source: Hu et al. 2021, section 4.2.
    """
    layers = {name: model.get_submodule(name) for name in find_targets(model, config.target_modules)}
    check_free(layers, adapter)
    for name, layer in layers.items():  # all or nothing: every layer is checked before the first is touched
        largest = min(layer.in_features, layer.out_features)
        if config.rank > largest:
            raise CourseError(
                f"Rank {config.rank} is above the size of {name}: a ({layer.out_features}, {layer.in_features}) matrix "
                f"has rank {largest} at most. Choose a rank from 1 to {largest}, or leave that layer out."
            )
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for name, layer in layers.items():
        if isinstance(layer, LoRALinear):
            layer.add_adapter(adapter, config, generator)
        else:
            model.set_submodule(name, LoRALinear(layer, config, adapter, generator))
    freeze(model)
    set_adapter(model, adapter)
    return [(name, model.get_submodule(name)) for name in layers]


def freeze(model: nn.Module) -> None:
    """Make A and B of every adapter trainable and everything else not."""
    model.requires_grad_(False)
    for _, layer in lora_layers(model):
        layer.lora_A.requires_grad_(True)
        layer.lora_B.requires_grad_(True)


def set_adapter(model: nn.Module, adapter: str | None) -> None:
    """Choose the adapter that a whole batch passes through and that is trained; None is the plain base model."""
    if adapter is not None:
        layers_with(model, adapter)
    for _, layer in lora_layers(model):
        layer.active = adapter if adapter in layer.configs else None
        for name in layer.configs:
            layer.lora_A[name].requires_grad_(name == adapter)
            layer.lora_B[name].requires_grad_(name == adapter)


def remove(model: nn.Module, adapter: str) -> None:
    """Take an adapter off; a layer that has no other is the plain linear layer again. Without it nothing changes."""
    for name, layer in list(lora_layers(model)):
        if adapter in layer.configs:
            if layer.merged == adapter:
                layer.unmerge()
            layer.active = None if layer.active == adapter else layer.active
            for held in (layer.configs, layer.lora_A, layer.lora_B):
                del held[adapter]
            if not layer.configs:
                model.set_submodule(name, layer.base_layer)


@contextmanager
def route(model: nn.Module, adapters: Sequence[str | None]) -> Iterator[None]:
    """One batch, a different customer's adapter for every row: one name a row, None for the plain base model.

    Raises CourseError: a name is unknown, or an adapter is merged into the weights.
    Source: claim R6 (one base serves many customers); the same result as PEFT's `adapter_names=`.
    """
    layers = [layer for _, layer in lora_layers(model)]
    for name in dict.fromkeys(adapters):
        if name is not None:
            layers_with(model, name)
    if any(layer.merged for layer in layers):
        raise CourseError("An adapter is merged into the base weights, so rows can't differ: call unmerge() first.")
    for layer in layers:
        names = tuple(sorted({name for name in adapters if name in layer.configs}))
        row_adapter = [names.index(name) if name in names else len(names) for name in adapters]
        layer._routing = (names, torch.tensor(row_adapter, device=layer.weight.device))
    try:
        yield
    finally:
        for layer in layers:
            layer._routing = None


def merge(model: nn.Module, adapter: str | None = None) -> None:
    """Add an adapter's update to the weights of every layer that has it, so that inference costs nothing extra.

    A second call changes nothing; `unmerge` restores the base weights bit for bit. The old weights are kept for
    that, so memory grows by the adapted matrices; `merge_and_unload` keeps nothing. A tied head is untied.
    Raises CourseError: the model has no such adapter, another one is merged, or an update is not finite (nothing is
        merged then).
    Source: Hu et al. 2021, section 4.1, "No Additional Inference Latency".
    """
    adapter = adapter or next((layer.active for _, layer in lora_layers(model) if layer.active), None)
    layers = [layer for _, layer in layers_with(model, adapter, " to merge")]
    merged_before = [layer.merged for layer in layers]
    try:
        for layer in layers:
            layer.merge(adapter)
    except CourseError:
        for layer, before in zip(layers, merged_before, strict=True):
            if before is None:
                layer.unmerge()
        raise


def unmerge(model: nn.Module) -> None:
    """Restore the base weights of every merged layer, bit for bit."""
    for _, layer in lora_layers(model):
        layer.unmerge()


def merge_and_unload(model: nn.Module, adapter: str | None = None) -> nn.Module:
    """Merge for good: every LoRA layer becomes the plain linear layer it wrapped, with the update added.

    A head that was tied to the embeddings no longer is, and the model's config says so when it is saved. Raises as
    `merge`.
    """
    merge(model, adapter)
    for name, layer in list(lora_layers(model)):
        layer._before_merge = ()
        model.set_submodule(name, layer.base_layer)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False
    return model


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters: those that training changes, those of adapters, and all of them."""

    trainable: int
    adapter: int
    total: int

    @property
    def trainable_share(self) -> float:
        return self.trainable / self.total


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count a model's parameters; a tied weight counts once. Claim R5."""
    adapter = sum(
        parameter.numel()
        for _, layer in lora_layers(model)
        for parameter in (*layer.lora_A.values(), *layer.lora_B.values())
    )
    parameters = list(model.parameters())  # torch lists a shared parameter once
    return ParameterCount(
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        adapter=adapter,
        total=sum(p.numel() for p in parameters),
    )


def lora_parameter_count(in_features: int, out_features: int, rank: int) -> int:
    """Parameters of one adapter: A has rank x in, B has out x rank. Claim R5 (100 x 500 at rank 5: 3,000)."""
    return rank * (in_features + out_features)
