"""A model of any size without its memory: built on torch's meta device, then run on fake CPU tensors.

Fake tensors have a shape, a dtype and a device, and no data. A build of torch without CUDA refuses fake CUDA tensors,
so they say "cpu" whatever the target. bitsandbytes' kernels take no fake tensors: stand-ins hold as many bytes as its
4-bit layers and 8-bit AdamW, and compute nothing of use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from lorahub_edu.errors import CourseError
from lorahub_edu.models.pretrained import quiet_transformers
from lorahub_edu.training import losses

WHOLE_ROWS = "whole_rows"
BLOCK = 64  # weights that share one scale
SCALES_BLOCK = 256  # scales that share one scale of their own, with double quantisation
SMALLEST = 4096  # parameters with fewer entries keep 32-bit states
STATES_BLOCK = 256  # entries of an 8-bit state that share one scale


def meta_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The language model of a configuration with shapes and no weights, ready for rows of one length."""
    auto, attention = AutoModelForCausalLM, WHOLE_ROWS
    if config.is_encoder_decoder:
        auto, attention = AutoModelForSeq2SeqLM, "sdpa"
    try:
        with quiet_transformers(), torch.device("meta"):
            model = auto.from_config(config, dtype=dtype, attn_implementation=attention)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        kind = config.model_type
        raise CourseError(f"No language model can be built from this {kind} configuration: {error}") from error
    if config.model_type == "t5" and config.is_gated_act:
        # transformers ties every T5's head that no checkpoint fills; T5 1.1's and FLAN-T5's checkpoints fill it.
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def whole_rows(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_more: object,
) -> tuple[Tensor, None]:
    """Causal attention of rows without padding: what "packed" does once it has read where rows end.

    The query is (B, heads, T, head size), key and value (B, key heads, T, head size). Returned are (B, T, heads, head
    size), and None in place of attention weights.
    """
    out = F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=query.shape[2] > 1, scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    # "packed" joins what its runs of rows give. That is a copy, and a trained output projection keeps it beside `out`.
    return torch.cat([out.transpose(1, 2)]), None


AttentionInterface.register(WHOLE_ROWS, whole_rows)
AttentionMaskInterface.register(WHOLE_ROWS, lambda *_arguments, **_more: None)


@contextmanager
def fake_tensors(cuda: bool = False) -> Iterator[None]:
    """Inside the block new tensors are fake: they hold no memory and no numbers.

    Dropout keeps a mask in x's dtype on a CPU, and with `cuda` one of one byte an entry, as a GPU does. The loss goes
    through three chunks at most: each frees what it made before the next but one, so later ones change no peak.
    """
    dropout = mock.patch.object(F, "dropout", _fused_dropout) if cuda else nullcontext()
    few = mock.patch.object(losses, "chunk_starts", lambda rows: range(0, min(rows, 3 * losses.CHUNK), losses.CHUNK))
    with FakeTensorMode(allow_non_fake_inputs=True), dropout, few:
        yield


def _fused_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


def make_fake(model: nn.Module) -> None:
    """Make every meta parameter and buffer a fake CPU tensor, in place; ties and what is frozen stay as they are."""
    fakes: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in fakes:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                fakes[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            module._parameters[name] = fakes[id(parameter)]
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


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

    A parameter with fewer than 4,096 entries keeps 32-bit states.
    Source: Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861, section 2.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {})
        tables = {name: torch.empty(256) for name in ("table1", "table2")}
        for parameter in parameters:
            entries = parameter.numel()
            dtype = torch.float32 if entries < SMALLEST else torch.uint8
            state = {name: torch.empty_like(parameter, dtype=dtype) for name in ("state1", "state2")}
            if entries >= SMALLEST:
                state |= {name: torch.empty(-(-entries // STATES_BLOCK)) for name in ("scales1", "scales2")} | tables
            self.state[parameter] = state

    def step(self, closure: None = None) -> None:
        """The update works in place and makes no tensor."""
