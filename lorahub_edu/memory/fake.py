"""A model of any size without its memory: built on torch's meta device, then run on fake CPU tensors.

Fake tensors have a shape, a dtype and a device, and no data. A build of torch without CUDA refuses fake CUDA tensors,
so they say "cpu" whatever the target; `like_cuda` does what a GPU does otherwise.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
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

from lorahub_edu.models.pretrained import quiet_transformers

WHOLE_ROWS = "whole_rows"


def meta_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The language model of a configuration with shapes and no weights, ready for rows of one length."""
    encoder_decoder = config.is_encoder_decoder
    auto = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    with quiet_transformers(), torch.device("meta"):
        model = auto.from_config(config, dtype=dtype, attn_implementation="sdpa" if encoder_decoder else WHOLE_ROWS)
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

    Args:
        query: (B, heads, T, head size).
        key: (B, key heads, T, head size).
        value: (B, key heads, T, head size).

    Returns:
        (B, T, heads, head size), and None in place of attention weights.
    """
    out = F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=query.shape[2] > 1, scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    # "packed" joins what its runs of rows give. That is a copy, and a trained output projection keeps it beside `out`.
    return torch.cat([out.transpose(1, 2)]), None


AttentionInterface.register(WHOLE_ROWS, whole_rows)
AttentionMaskInterface.register(WHOLE_ROWS, lambda *_arguments, **_more: None)


def fake_tensors() -> AbstractContextManager:
    """Inside the block new tensors are fake: they hold no memory and no numbers."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def make_fake(model: nn.Module) -> None:
    """Replace every meta parameter and buffer by a fake CPU tensor, in place; call it inside `fake_tensors`.

    Tied parameters stay tied, and what is frozen stays frozen.
    """
    fakes: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in fakes:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                    fakes[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = fakes[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def _fused_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


def like_cuda() -> AbstractContextManager:
    """Inside the block dropout keeps a mask of one byte an entry, as on a GPU; on a CPU it keeps one in x's dtype."""
    return mock.patch.object(torch.nn.functional, "dropout", _fused_dropout)
