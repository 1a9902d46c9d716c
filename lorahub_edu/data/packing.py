"""Rows end to end in one sequence: positions, the mask that keeps rows apart, and attention that needs no mask."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_ATTENTION = "packed"


def packed_positions(lengths: Sequence[int], prefix: int = 0) -> Tensor:
    """The position of each token in its own row, (n,): a prefix of that many tokens, then rows that continue it."""
    rows = [torch.arange(prefix, prefix + length) for length in lengths]
    return torch.cat([torch.arange(prefix), *rows])


def visible_positions(lengths: Sequence[int], prefix: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Whether token i sees token j, (n, n) bool: the prefix and its own row, up to itself.

    Source: Krell et al. 2021, arXiv 2107.02027, section 3 (rows apart); the shared prefix as in Juravsky et al. 2024,
        "Hydragen", arXiv 2402.05099.
    """
    sizes = torch.tensor([prefix, *lengths], device=device)
    row = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)  # (n,); 0 is the prefix
    same_row = (row[None, :] == 0) | (row[None, :] == row[:, None])  # (n, n)
    return same_row.tril()


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """(1, 1, n, n) `dtype`: 0 where a token is visible, the lowest number of `dtype` elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[None, None]


def group_by_tokens(lengths: Sequence[int], prefix: int, most: int) -> list[list[int]]:
    """Row indices in their order, in groups of at most `most` tokens with the prefix; a longer row is a group alone."""
    groups: list[list[int]] = [[]]
    tokens = prefix
    for index, length in enumerate(lengths):
        if groups[-1] and tokens + length > most:
            groups.append([])
            tokens = prefix
        groups[-1].append(index)
        tokens += length
    return groups


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,  # (1, heads, T, head size)
    key: Tensor,  # (1, key heads, T, head size)
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,  # factor on query · key; None is 1/√(head size)
    cu_seq_lens_q: Tensor | None = None,  # (rows + 1,) where rows begin and end, 0 to T; the name is flash attention's
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each packed row, one fused call for each run of rows of equal length.

    A T x T mask costs T² however short the rows are; this costs the sum of their squares. transformers calls it in
    every layer of a model with the attention implementation "packed", and wants (1, T, heads, head size) and no
    weights. Without `cu_seq_lens_q` (padded batches, generation with a cache) it is transformers' own "sdpa".
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    groups = [(length, len(list(run))) for length, run in itertools.groupby(cu_seq_lens_q.diff().tolist())]
    sizes = [length * count for length, count in groups]
    outputs = []
    # One split, not slices: the gradient of a slice is as long as the whole sequence, that of a split is not.
    parts = zip(groups, query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    for (length, count), *states in parts:
        q, k, v = (state[0].unflatten(1, (count, length)).transpose(0, 1) for state in states)  # (rows, heads, L, D)
        out = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )  # (rows, heads, L, D)
        outputs.append(out.transpose(1, 2).flatten(0, 1))  # (rows x L, heads, D)
    return torch.cat(outputs)[None], None  # (1, T, heads, D)


# Registered on import, so that any model may be loaded with, or switched to, the attention implementation "packed".
# Masks are sdpa's: a packed batch brings its own, and everything else needs the ordinary one.
AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
