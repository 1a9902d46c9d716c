"""QLoRA's base: every frozen linear layer in 4-bit NormalFloat, by bitsandbytes.

Source: Dettmers et al. 2023, "QLoRA", arXiv 2305.14314, sections 2 and 3.
"""

from __future__ import annotations

import importlib.util

from torch import nn

from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapters


def check_available(model: nn.Module) -> None:
    """Raise a CourseError unless bitsandbytes is here and the model holds weights that it can quantise."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise CourseError(
            "QLoRA quantises the base with bitsandbytes, which is not installed: install the extra 'gpu' "
            "(pip install 'lorahub-edu[gpu]'; its 4-bit layers run on a CPU too), or choose lora."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise CourseError("QLoRA quantises real weights, and this model has only their shapes: load it first.")


def quantise(model: nn.Module) -> dict[str, nn.Module]:
    """Replace every linear layer but the output head by its 4-bit form with double quantisation, in place.

    Args:
        model: its dtype is what the layers compute in.

    Returns:
        The layers that were there before, by name; who keeps none of them has their memory back.

    Raises:
        CourseError: as `check_available`.
    """
    check_available(model)
    from bitsandbytes.nn import Linear4bit, Params4bit

    replaced = {}
    for name in adapters.find_targets(model, adapters.ALL_LINEAR):
        layer = model.get_submodule(name)
        made = Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=layer.weight.dtype, quant_type="nf4",
            compress_statistics=True, device="meta",
        )  # fmt: skip
        made.weight = Params4bit(
            layer.weight.detach().clone(), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        made.bias = layer.bias
        # bitsandbytes 0.50 repacks a layer when a CPU first evaluates it, and passes wrong gradients ever after.
        made.support_avx512bf16_for_cpu = False
        model.set_submodule(name, made.to(layer.weight.device))  # it is quantised as it is moved
        replaced[name] = layer
    return replaced


def restore(model: nn.Module, replaced: dict[str, nn.Module]) -> None:
    """Put the layers that `quantise` returned back."""
    for name, layer in replaced.items():
        model.set_submodule(name, layer)
