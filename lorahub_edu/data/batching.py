"""Three ways to cut one optimizer step's rows into batches (padded, grouped, packed), with the same summed loss.

Packed rows lie end to end in one sequence: their positions, the mask that keeps them apart, and attention without it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lorahub_edu.data.alpaca import IGNORED, Encoded
from lorahub_edu.errors import CourseError, near_matches

STRATEGIES = ("padded", "grouped", "packed")
PACKED_ATTENTION = "packed"


@dataclass(frozen=True)
class Batch:
    """Rows that go through the model together.

    Padded: B rows of T tokens, short ones filled up on the right. Packed: B = 1, the rows stand one after the other.
    """

    input_ids: Tensor  # (B, T) int64
    labels: Tensor  # (B, T) int64, not shifted; -100 takes no loss
    position_ids: Tensor  # (B, T) int64, from 0 in every row, also inside a packed sequence
    attention_mask: Tensor | None = None  # (B, T) int64, 1 at tokens, 0 at padding; None in a packed batch
    segment_lengths: list[int] | None = None  # of the rows in a packed sequence; None in a padded batch

    @property
    def num_tokens(self) -> int:
        """Useful tokens: all that are not padding."""
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    @property
    def num_labels(self) -> int:
        """Positions that a next-token loss is taken at (token 0 of a row has nothing before it to predict it)."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def to(self, device: torch.device | str) -> Batch:
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def model_inputs(self, config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """Keyword arguments for a causal language model or its decoder, without the labels and without a cache.

        `dtype` is of the additive mask that "sdpa" and "eager" need for a packed batch. Raises CourseError when the
        model's attention cannot keep packed rows apart.
        """
        attention = config._attn_implementation
        inputs = {"input_ids": self.input_ids, "position_ids": self.position_ids, "use_cache": False}
        if self.segment_lengths is None:
            return inputs | {"attention_mask": self.attention_mask}
        device = self.input_ids.device
        if attention in ("sdpa", "eager"):
            visible = visible_positions(self.segment_lengths, device=device)
            return inputs | {"attention_mask": attention_masks(config, visible, self.position_ids[0], dtype)}
        ends = torch.tensor([0, *itertools.accumulate(self.segment_lengths)], dtype=torch.int32)  # (rows + 1,)
        longest = max(self.segment_lengths)
        if attention == PACKED_ATTENTION:
            # transformers hands a 4-dimensional mask on as it is. This one holds nothing, so no T x T mask is made,
            # and any other attention function fails on its shape instead of mixing the rows without a word.
            inputs["attention_mask"] = torch.empty(1, 1, 0, 0, device=device)
            # The ends stay on the CPU, where the attention reads them: no layer has to wait for the accelerator.
        elif "flash" in attention:
            ends = ends.to(device)
        else:
            hint = near_matches(attention, ("packed", "sdpa", "eager", "flash_attention_2"))
            raise CourseError(f"The attention {attention!r} cannot keep the rows of a packed batch apart. {hint}")
        return inputs | {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def step_rows(num_rows: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The indices of the `batch_size` rows of an optimizer step (from 0).

    They follow from the arguments alone, so a resumed run sees the same rows. Every epoch is a new permutation of all
    rows; a step that begins at the end of an epoch continues in the next.
    """
    drawn = range(step * batch_size, (step + 1) * batch_size)
    return [_epoch_order(num_rows, number // num_rows, seed)[number % num_rows] for number in drawn]


@lru_cache(maxsize=4)
def _epoch_order(num_rows: int, epoch: int, seed: int) -> tuple[int, ...]:
    """The order of one epoch; kept, because shuffling 50,000 rows anew in every step would cost more than the step."""
    order = list(range(num_rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # a text seed mixes both numbers, so seed 1 is not seed 0 shifted
    return tuple(order)


def make_batches(
    rows: Sequence[Encoded],
    strategy: Literal["padded", "grouped", "packed"],
    micro_batch_size: int,
    pad_token_id: int,
) -> list[Batch]:
    """One optimizer step's rows as micro-batches on the CPU: every row once, the same summed loss for each strategy.

    "padded" takes the rows in their order and fills each micro-batch up to its longest row. "grouped" sorts them by
    length first, so that there is less padding. "packed" lays rows end to end in sequences without padding, each with
    at most `micro_batch_size` x the longest row's tokens: the largest that a padded micro-batch can get.
    Raises CourseError: unknown strategy, no rows, or a size below 1.
    Source: best-fit decreasing: Johnson et al. 1974, "Worst-case performance bounds for simple one-dimensional
        packing algorithms"; packing without cross-contamination: Krell et al. 2021, arXiv 2107.02027, section 3.
    """
    if strategy not in STRATEGIES:
        raise CourseError(f"There is no batching strategy {strategy!r}. {near_matches(str(strategy), STRATEGIES)}")
    if not rows or micro_batch_size < 1:
        raise CourseError(f"{len(rows)} rows in micro-batches of {micro_batch_size}: both must be at least 1.")
    lengths = [len(row.input_ids) for row in rows]
    if strategy == "packed":
        bins = _even_bins(lengths, micro_batch_size * max(lengths))
        return [_pack([rows[index] for index in chosen]) for chosen in bins]
    ordered = sorted(rows, key=lambda row: len(row.input_ids)) if strategy == "grouped" else rows
    starts = range(0, len(ordered), micro_batch_size)
    return [_pad(ordered[start : start + micro_batch_size], pad_token_id) for start in starts]


def _pad(rows: Sequence[Encoded], pad_token_id: int) -> Batch:
    width = max(len(row.input_ids) for row in rows)
    gaps = [width - len(row.input_ids) for row in rows]
    pairs = list(zip(rows, gaps, strict=True))
    return Batch(
        input_ids=torch.tensor([row.input_ids + [pad_token_id] * gap for row, gap in pairs]),  # (B, T)
        labels=torch.tensor([row.labels + [IGNORED] * gap for row, gap in pairs]),  # (B, T)
        position_ids=torch.arange(width).repeat(len(rows), 1),  # (B, T)
        attention_mask=torch.tensor([[1] * (width - gap) + [0] * gap for gap in gaps]),  # (B, T)
    )


def _pack(rows: Sequence[Encoded]) -> Batch:
    lengths = [len(row.input_ids) for row in rows]
    # A row's first token is no label: the token before it in the sequence belongs to another row.
    labels = [label for row in rows for label in [IGNORED, *row.labels[1:]]]
    return Batch(
        input_ids=torch.tensor([[token for row in rows for token in row.input_ids]]),  # (1, T)
        labels=torch.tensor([labels]),  # (1, T)
        position_ids=packed_positions(lengths)[None],  # (1, T)
        segment_lengths=lengths,
    )


def _even_bins(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit bins of at most `capacity`, with the smallest of 16 tried capacities that needs no more bins.

    The fullest bin sets the peak memory, so two bins of 800 tokens are better than one of 1,000 and one of 600.
    """
    bins = _best_fit(lengths, capacity)
    lowest = max(*lengths, -(-sum(lengths) // len(bins))) if len(lengths) > 1 else capacity
    for smaller in range(lowest, capacity, max(1, (capacity - lowest) // 16)):
        evener = _best_fit(lengths, smaller)
        if len(evener) <= len(bins):
            return evener
    return bins


def _best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Row indices by bin: longest row first, each into the fullest bin that it fits into."""
    bins: list[list[int]] = []
    free: list[int] = []  # tokens, by bin
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [number for number, tokens in enumerate(free) if tokens >= lengths[index]]
        if not fitting:
            bins.append([])
            free.append(capacity)
        fullest = min(fitting, key=free.__getitem__, default=len(bins) - 1)
        bins[fullest].append(index)
        free[fullest] -= lengths[index]
    return bins


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


def attention_masks(
    config: PreTrainedConfig, visible: Tensor, positions: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """The `attention_mask` of a packed sequence: one additive mask, or one for each kind of layer.

    A sliding window of the model's `config` narrows its masks. `visible` is (n, n) bool, `positions` (n,) in each row.
    Source: Jiang et al. 2023, "Mistral 7B", arXiv 2310.06825, section 2 (the window); transformers takes a dict where
        kinds of layers differ.
    """
    full, window = additive_mask(visible, dtype), getattr(config, "sliding_window", None)
    if window is None:
        return full
    narrow = additive_mask(visible & (positions[:, None] - positions < window), dtype)
    if not getattr(config, "layer_types", None):
        return narrow
    return {"full_attention": full, "sliding_attention": narrow}


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
    sliding_window: int | None = None,  # how many tokens are seen, the own one among them
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each packed row, one fused call for each run of rows of equal length.

    A T x T mask costs T² however short the rows are; this costs the sum of their squares. transformers calls it in
    every layer of a model with the attention implementation "packed", and wants (1, T, heads, head size) and no
    weights. Without `cu_seq_lens_q` (padded batches, generation with a cache) it is transformers' own "sdpa".
    Raises CourseError for a model that changes its attention scores, as Gemma-2 does.
    """
    changed = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if changed:
        raise CourseError(
            f'{type(module).__name__} changes its attention scores ({changed[0]}), and "packed" attention does not: '
            f'load the model with attn_implementation="eager".'
        )
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
        near = None
        if sliding_window is not None and sliding_window < length:
            near = torch.ones(length, length, dtype=torch.bool, device=q.device).tril().triu(1 - sliding_window)
        options = {"attn_mask": near, "is_causal": near is None, "enable_gqa": q.shape[1] != k.shape[1]}
        out = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scaling, **options
        )  # (rows, heads, L, D)
        outputs.append(out.transpose(1, 2).flatten(0, 1))  # (rows x L, heads, D)
    return torch.cat(outputs)[None], None  # (1, T, heads, D)


# Registered on import, so that any model may be loaded with, or switched to, the attention implementation "packed".
# Masks are sdpa's: a packed batch brings its own, and everything else needs the ordinary one.
AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
