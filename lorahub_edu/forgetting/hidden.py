"""The last layers of a LLaMA on their own, over hidden states that the layers below made once.

Everything below the tail is frozen, so its output for a row never changes: it is computed once and kept. What is left
of a training step is the tail's forward and backward and the output head at the labels. Rows of one task begin with the
same tokens; that prefix goes through a step once, however many rows the step has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorahub_edu.data.batching import additive_mask, group_by_tokens
from lorahub_edu.data.fewshot import PromptedRow, common_prefix, pack
from lorahub_edu.errors import CourseError
from lorahub_edu.training.losses import chunked_cross_entropy

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
POSITIONS = 768  # of one forward without gradients; longer packed sequences waste time between rows that see nothing


@dataclass(frozen=True)
class HiddenBatch:
    """What the tail reads, and what it must predict.

    `hidden` (b, T, d) is the output of the layers below, `position_ids` are (b, T). `mask` (1, 1, T, T) in its dtype is
    0 where a position is seen and the lowest number where not. `places` (L,) are where each of the `labels` (L,) is
    predicted in the flattened (b x T) output.
    """

    hidden: Tensor
    position_ids: Tensor
    mask: Tensor
    places: Tensor
    labels: Tensor


@dataclass(frozen=True)
class CachedRows:
    """Rows of one task with the hidden states of their common prefix, (P, d), and of each one's rest, (n_i, d)."""

    rows: tuple[PromptedRow, ...]
    prefix: Tensor
    rests: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, chosen: Sequence[int]) -> HiddenBatch:
        """The rows with these indices as one packed sequence (b = 1), in which the prefix stands once."""
        packed = pack([self.rows[index] for index in chosen], len(self.prefix))
        hidden = torch.cat([self.prefix, *(self.rests[index] for index in chosen)])[None]  # (1, T, d)
        mask = additive_mask(packed.seen, hidden.dtype)
        return HiddenBatch(hidden, packed.position_ids, mask, packed.places, packed.labels)

    def batches(self, positions: int = POSITIONS) -> list[HiddenBatch]:
        groups = group_by_tokens([len(rest) for rest in self.rests], len(self.prefix), positions)
        return [self.batch(group) for group in groups]


class Tail:
    """The last layers of a LLaMA, their original weights, and the frozen layers below.

    The tail works in the model's own layers. `weights` are their matrices now, in float32 whatever the model's dtype;
    `original` are those from when the tail was made. The model is then cast to `dtype`, in place.
    Raises CourseError: the model has no such layers, or not that many.
    """

    def __init__(self, model: PreTrainedModel, layers: int = 6, dtype: torch.dtype | None = torch.bfloat16) -> None:
        decoder = model.get_decoder()
        if model.config.model_type != "llama":  # others scale embeddings and logits, or see a window only
            raise CourseError(f"{type(model).__name__} ({model.config.model_type}) is not a LLaMA: give one of those.")
        if not 1 <= layers <= len(decoder.layers):
            raise CourseError(f"A tail of {layers} layers: the model has {len(decoder.layers)}; take 1 to that many.")
        self.model = model
        self.layers = layers
        self.start = len(decoder.layers) - layers
        inside = {module for layer in decoder.layers[self.start :] for module in layer.modules()}
        self.names = tuple(
            name
            for name, module in model.named_modules()
            if module in inside and name.rpartition(".")[2] in PROJECTIONS
        )
        matrices = {name: model.get_submodule(name).weight for name in self.names}
        self.original = {name: weight.detach().to(torch.float32, copy=True) for name, weight in matrices.items()}
        self.weights = self.original
        model.requires_grad_(False)
        model.eval()
        if dtype is not None:
            model.to(dtype)

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Set the tail's matrices, (out, in) float32 by name; a matrix that is left out gets its original back."""
        self.weights = self.original | dict(weights or {})
        for name, weight in self.weights.items():
            self.model.get_submodule(name).weight.copy_(weight)

    @torch.no_grad()
    def below(self, ids: Tensor, position_ids: Tensor, mask: Tensor) -> Tensor:
        """The hidden states that the tail reads: ids (b, T), position_ids (b, T), mask (1, 1, T, T) -> (b, T, d)."""
        decoder = self.model.get_decoder()
        return self._through(decoder.layers[: self.start], decoder.embed_tokens(ids), position_ids, mask)

    def _through(self, layers: Iterable, hidden: Tensor, position_ids: Tensor, mask: Tensor) -> Tensor:
        rotary = self.model.get_decoder().rotary_emb(hidden, position_ids=position_ids)
        for layer in layers:
            hidden = layer(hidden, attention_mask=mask, position_ids=position_ids, position_embeddings=rotary)
        return hidden

    def summed_loss(self, batch: HiddenBatch) -> Tensor:
        """Summed cross-entropy of a batch's labels in nats, a scalar with a gradient where the tail is trainable."""
        decoder = self.model.get_decoder()
        out = self._through(decoder.layers[self.start :], batch.hidden, batch.position_ids, batch.mask)
        rows = decoder.norm(out.flatten(0, 1)[batch.places])  # (L, d)
        return chunked_cross_entropy(rows, self.model.get_output_embeddings().weight, batch.labels)

    @torch.no_grad()
    def loss(self, batches: Iterable[HiddenBatch]) -> float:
        """Mean cross-entropy over the labels of some batches, in nats a token."""
        total, labels = 0.0, 0
        for batch in batches:
            total += self.summed_loss(batch).item()
            labels += len(batch.labels)
        if not labels:
            raise CourseError("There is no batch to take a loss on: give at least one row.")
        return total / labels

    def cache(self, rows: Sequence[PromptedRow]) -> CachedRows:
        """Run rows of one task, whose prompts begin alike, through the layers below, once."""
        if not rows:
            raise CourseError("There are no rows to cache: give at least one.")
        prefix = common_prefix(rows)
        lengths = [row.tokens - 1 - prefix for row in rows]  # the last label is never read
        first, rests = None, []
        for group in group_by_tokens(lengths, prefix, POSITIONS):
            packed = pack([rows[index] for index in group], prefix)
            mask = additive_mask(packed.seen, self.model.dtype)
            hidden = self.below(packed.input_ids, packed.position_ids, mask)[0]  # (T, d)
            first = hidden[:prefix].clone() if first is None else first
            rests += [rest.clone() for rest in hidden[prefix:].split([lengths[index] for index in group])]
        return CachedRows(tuple(rows), first, tuple(rests))

    def cache_texts(self, sequences: Tensor, rows: int = 8) -> list[HiddenBatch]:
        """Batches of `rows` sequences of plain text, (S, T) token ids: all tokens but a sequence's first are labels."""
        length = sequences.shape[1]
        mask = additive_mask(torch.ones(length, length, dtype=torch.bool).tril(), self.model.dtype)
        batches = []
        for ids in sequences.split(rows):
            positions = torch.arange(length).repeat(len(ids), 1)
            places = torch.arange(ids.numel()).view(len(ids), length)[:, :-1].flatten()
            hidden = self.below(ids, positions, mask)
            batches.append(HiddenBatch(hidden, positions, mask, places, ids[:, 1:].flatten()))
        return batches
