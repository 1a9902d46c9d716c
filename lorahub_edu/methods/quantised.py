"""QLoRA's base: every frozen linear layer in 4-bit NormalFloat, by bitsandbytes.

Source: Dettmers et al. 2023, "QLoRA", arXiv 2305.14314, sections 2 and 3.
"""

from __future__ import annotations

import importlib.util

from torch import nn

from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapters


def quantise(model: nn.Module) -> dict[str, nn.Module]:
    """Replace every linear layer but the output head by its 4-bit form with double quantisation, in place.

    The model's dtype is what the layers compute in. Returned are the layers from before, by name; if you keep no
    reference, their memory is freed.
    Raises CourseError: bitsandbytes is not installed, or the model holds no weights.
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
