"""Scores of short answers: loss and two kinds of exact match, with logits only where an answer's token is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lorahub_edu.data import fewshot
from lorahub_edu.data.alpaca import IGNORED
from lorahub_edu.data.batching import attention_masks, make_batches
from lorahub_edu.data.fewshot import PromptedRow, ScoringBatch
from lorahub_edu.errors import CourseError
from lorahub_edu.training.losses import (
    check_batching,
    check_loss,
    has_virtual_tokens,
    last_hidden_states,
    output_logits,
)

LOGIT_ROWS = 64  # label positions whose logits exist at a time: 64 x 49,152 numbers, not all of a population's


@dataclass(frozen=True)
class Scores:
    """How P candidates do on R rows: `losses` are (P,) mean cross-entropy over all label tokens, in nats.

    A loss is NaN where a candidate's forward overflowed on any row; such a candidate is wrong on all of them.
    `answer_losses` (P,) leave out the end tokens, and `row_losses` (P, R) are means over each row's label tokens.
    Greedy decoding would give a `strict` answer and stop there, and an `answer_only` whatever comes after it, both (P,
    R) bool.
    """

    losses: np.ndarray
    answer_losses: np.ndarray
    row_losses: np.ndarray
    strict: np.ndarray
    answer_only: np.ndarray


def scoring_batches(model: PreTrainedModel, rows: Sequence[PromptedRow] | Sequence[ScoringBatch]) -> list[ScoringBatch]:
    """The rows as scoring batches for this model, unless they are that already."""
    if rows and isinstance(rows[0], ScoringBatch):
        return list(rows)
    return fewshot.batches(model.config, rows)


@torch.no_grad()
def score(model: PreTrainedModel, rows: Sequence[PromptedRow] | Sequence[ScoringBatch]) -> Scores:
    """Loss and exact match of a model as it is, with whatever adapter is active: P = 1.

    It is a causal language model or an encoder-decoder. One with virtual tokens takes encoded rows only, and pads them.
    Raises CourseError: there are no rows, or the model's own losses are other ones (`losses.check_loss`).
    """
    was_training = model.training
    model.eval()
    try:
        if has_virtual_tokens(model):
            return score_padded(model, rows)
        check_architecture(model)
        batches = scoring_batches(model, rows)
        return gather([[judge(model, batch, 1) for batch in batches]], batches)
    finally:
        model.train(was_training)


def check_architecture(model: PreTrainedModel) -> None:
    """Raise CourseError unless packed scores are the model's own; `score_padded` may still be right for it."""

    def ours(rows: Sequence[PromptedRow]) -> float:
        batches = fewshot.batches(model.config, rows)
        return gather([[judge(model, batch, 1) for batch in batches]], batches).losses[0]

    advice = "score its rows with scoring.score_padded."
    check_loss(model, "scores of rows that share a prompt's beginning", ours, advice)


@torch.no_grad()
def score_padded(model: PreTrainedModel, rows: Sequence[PromptedRow], rows_at_a_time: int = 16) -> Scores:
    """As `score`, in evaluation mode, each row whole and padded on the right: slower, and for any method."""
    if not rows or isinstance(rows[0], ScoringBatch):
        raise CourseError("There are no rows to score: give at least one example, and no packed batches.")
    check_batching(model, "padded")
    groups = [rows[start : start + rows_at_a_time] for start in range(0, len(rows), rows_at_a_time)]
    judged = []
    for group in groups:
        batch = make_batches([row.encoded() for row in group], "padded", len(group), 0)[0].to(model.device)
        hidden = last_hidden_states(model, batch)[:, :-1]  # (b, T - 1, d)
        labelled = batch.labels[:, 1:] != IGNORED
        judged.append(_judge(model, hidden[labelled], batch.labels[:, 1:][labelled], 1))
    return gather([judged], [fewshot.pack(group) for group in groups])  # both have the labels in the rows' order


def label_states(model: PreTrainedModel, batch: ScoringBatch, count: int) -> Tensor:
    """The last hidden states that predict the answers' tokens, (count, L, d), for `count` copies of a batch."""
    device = model.device
    ids = batch.input_ids.to(device).repeat(count, 1)  # (P·b, T)
    if batch.decoder_ids is None:
        seen = batch.seen.to(device)
        positions = batch.position_ids.to(device)
        mask = attention_masks(model.config, seen, positions[0], model.dtype)
        out = model.get_decoder()(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
        hidden = out.last_hidden_state  # (P, n, d)
    else:
        seen = batch.seen.to(device).long().repeat(count, 1)  # (P·b, T)
        encoded = model.get_encoder()(input_ids=ids, attention_mask=seen).last_hidden_state
        read = batch.decoder_ids.to(device).repeat(count, 1)  # (P·b, S)
        out = model.get_decoder()(
            input_ids=read, encoder_hidden_states=encoded, encoder_attention_mask=seen, use_cache=False
        )
        hidden = out.last_hidden_state.view(count, -1, out.last_hidden_state.shape[-1])  # (P, b·S, d)
    return hidden[:, batch.places.to(device)]  # (P, L, d)


def judge(model: PreTrainedModel, batch: ScoringBatch, count: int) -> tuple[Tensor, Tensor]:
    """Per label token its loss, and whether the most probable token is another one: (P, L) float32, (P, L) bool."""
    hidden = label_states(model, batch, count).flatten(0, 1)  # (P·L, d)
    return _judge(model, hidden, batch.labels.to(hidden.device).repeat(count), count)


def _judge(model: PreTrainedModel, hidden: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `judge`, from the hidden states, (P·L, d), at which the labels, (P·L,), are predicted."""
    losses, wrong = [], []
    for start in range(0, len(labels), LOGIT_ROWS):
        logits = output_logits(model, hidden[start : start + LOGIT_ROWS]).float()  # (<=64, V)
        wanted = labels[start : start + LOGIT_ROWS]
        losses.append(F.cross_entropy(logits, wanted, reduction="none"))
        wrong.append(logits.argmax(-1) != wanted)
    return torch.cat(losses).view(count, -1).cpu(), torch.cat(wrong).view(count, -1).cpu()


def gather(parts: list[list[tuple[Tensor, Tensor]]], batches: list[ScoringBatch]) -> Scores:
    losses = torch.cat([torch.cat([losses for losses, _ in chunk], 1) for chunk in parts])  # (P, all labels)
    wrong = torch.cat([torch.cat([wrong for _, wrong in chunk], 1) for chunk in parts])
    firsts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    rows = torch.cat([batch.rows + int(first) for batch, first in zip(batches, firsts, strict=False)])
    is_end = torch.cat([batch.is_end for batch in batches])
    total = int(firsts[-1])

    def per_row(values: Tensor) -> Tensor:  # (P, labels) -> (P, R)
        return torch.zeros(len(values), total).index_add_(1, rows, values.float())

    broken = ~torch.isfinite(losses).all(1)  # (P,)
    wrong = wrong | broken[:, None]
    losses = losses.masked_fill(broken[:, None], torch.nan)
    return Scores(
        losses=losses.double().mean(1).numpy(),
        answer_losses=losses[:, ~is_end].double().mean(1).numpy(),
        row_losses=(per_row(losses) / torch.bincount(rows, minlength=total)).numpy(),
        strict=(per_row(wrong) == 0).numpy(),
        answer_only=(per_row(wrong & ~is_end) == 0).numpy(),
    )
