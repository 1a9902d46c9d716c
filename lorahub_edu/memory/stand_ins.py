"""Stand-ins that hold as many bytes as bitsandbytes' 4-bit layers and 8-bit AdamW, and compute nothing of use.

bitsandbytes runs its own kernels, which no fake tensor passes; the planner needs their tensors only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 64  # weights that share one scale
SCALES_BLOCK = 256  # scales that share one scale of their own, with double quantisation
SMALLEST = 4096  # parameters with fewer entries keep 32-bit states
STATES_BLOCK = 256  # entries of an 8-bit state that share one scale


class _DequantisedProduct(torch.autograd.Function):
    """x @ W.T with W unpacked for the product and dropped at once, in the forward and in the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: FourBitLinear) -> Tensor:  # noqa: ANN001
        ctx.layer = layer
        return F.linear(x, layer.unpacked(x.dtype))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN001
        return gradient @ ctx.layer.unpacked(gradient.dtype), None


class FourBitLinear(nn.Linear):
    """The bytes of a frozen linear layer in 4-bit NormalFloat: half a byte a weight and the scales of its blocks.

    One 32-bit scale for 64 weights makes 4.5 bits a weight. With `double` quantisation the scales take 8 bits each and
    a 32-bit one for 256 of them, 4.127 bits a weight. `dtype` is what the layer computes in.

    Source: Dettmers et al. 2023, "QLoRA", arXiv 2305.14314, section 3.
    """

    def __init__(self, base: nn.Linear, double: bool, dtype: torch.dtype) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        entries = base.weight.numel()
        scales = -(-entries // BLOCK)
        self.bias, self.compute_dtype, self._scales = base.bias, dtype, scales
        with base.weight.device:
            self.weight = nn.Parameter(torch.empty(-(-entries // 2), 1, dtype=torch.uint8), requires_grad=False)
            self.register_buffer("codes", torch.empty(16))
            self.register_buffer("scales", torch.empty(scales, dtype=torch.uint8 if double else torch.float32))
            if double:
                self.register_buffer("scale_codes", torch.empty(256))
                self.register_buffer("scales_of_scales", torch.empty(-(-scales // SCALES_BLOCK)))

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weight as it is during a product, (out, in)."""
        if self.scales.dtype == torch.uint8:
            torch.empty(self._scales, device=self.weight.device)  # the scales in 32 bits, for a moment
        return torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        out = _DequantisedProduct.apply(x.to(self.compute_dtype), self)
        return out if self.bias is None else out + self.bias


def quantise(model: nn.Module, double: bool, dtype: torch.dtype) -> None:
    """Replace every linear layer but the output head by its 4-bit stand-in, in place, as transformers does."""
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and layer is not head:
            model.set_submodule(name, FourBitLinear(layer, double, dtype))


class EightBitAdamW(torch.optim.Optimizer):
    """The states of an 8-bit AdamW: two of one byte an entry, a 32-bit scale for 256 entries, two tables of 256 values.

    A parameter with fewer than 4,096 entries keeps 32-bit states. The update works in place and needs no more.

    Source: Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861, section 2.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Make the states, once."""
        tables = None
        for parameter in self.param_groups[0]["params"]:
            state, entries = self.state[parameter], parameter.numel()
            if parameter.grad is None or state:
                continue
            dtype = torch.float32 if entries < SMALLEST else torch.uint8
            state |= {name: torch.empty_like(parameter, dtype=dtype) for name in ("state1", "state2")}
            if entries >= SMALLEST:
                tables = tables or {name: torch.empty(256) for name in ("table1", "table2")}
                state |= {name: torch.empty(-(-entries // STATES_BLOCK)) for name in ("scales1", "scales2")} | tables
