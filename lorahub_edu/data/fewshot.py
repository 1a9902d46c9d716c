"""A task to adapt to: found by name, drawn, as token ids, and in batches that compute a common prompt prefix once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorahub_edu.data import bbh, tasks
from lorahub_edu.data.alpaca import IGNORED, Encoded
from lorahub_edu.data.batching import group_by_tokens, packed_positions, visible_positions
from lorahub_edu.data.tasks import Item, Task
from lorahub_edu.errors import CourseError


def find_task(name: str) -> Task:
    """A task by name, of the course's own or of BIG-Bench Hard ("bbh/<task>")."""
    if name.startswith("bbh/"):
        return bbh.load(name.removeprefix("bbh/"))
    return tasks.get(name)


def split(task: Task, draw: int, shots: int, test_items: int) -> tuple[list[Item], list[Item]]:
    """A draw of examples, and the items to test on in their order, which hold none of the examples.

    All rows of BIG-Bench Hard are in one part: those that are not drawn are the test. A row that asks a drawn example's
    question again (one task holds two such pairs, with opposite answers) is in neither part.
    Raises CourseError: there are fewer items. Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 4.1.
    """
    if task.kind != bbh.KIND:
        return tasks.draw(task, draw, shots), list(task.test[:test_items])
    pool = tuple({item.input: item for item in task.train}.values())  # one row a question
    drawn = tasks.draw(replace(task, train=pool), draw, shots)
    questions = {item.input for item in drawn}
    return drawn, [item for item in task.train if item.input not in questions][:test_items]


@dataclass(frozen=True)
class PromptedRow:
    """A prompt and the answer that must follow it, as token ids; the answer ends with the end token."""

    prompt_ids: list[int]
    answer_ids: list[int]

    def encoded(self) -> Encoded:
        """The row for the training loop: one sequence, with the prompt masked out of the labels."""
        return Encoded(self.prompt_ids + self.answer_ids, [IGNORED] * len(self.prompt_ids) + self.answer_ids)

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    encoder_decoder: bool = False,
    context: int | None = None,
) -> list[PromptedRow]:
    """Prompts and answers as token ids, tokenised apart so that no token straddles the boundary.

    A causal model sees a space before an answer. An encoder wants its end token after the prompt and no space.
    `context` is the most tokens that fit the model.
    Raises CourseError: no row, an empty prompt or answer, or a row longer than the context.
    Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 4.1 (five examples a task, input and target).
    """
    if len(prompts) != len(answers) or not prompts:
        raise CourseError(f"{len(prompts)} prompts and {len(answers)} answers: give at least one example, and pairs.")
    rows = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), start=1):
        if not answer.strip():
            raise CourseError(f"Example {number} ({prompt[-40:]!r}) has an empty answer: there is nothing to learn.")
        prompt_ids = tokenizer(prompt, add_special_tokens=encoder_decoder).input_ids
        if not prompt_ids:
            raise CourseError(f"Example {number} (answer {answer!r:.40}) has an empty prompt: say what is asked.")
        answer_ids = tokenizer(answer if encoder_decoder else " " + answer, add_special_tokens=False).input_ids
        row = PromptedRow(prompt_ids, [*answer_ids, tokenizer.eos_token_id])
        length = max(len(row.prompt_ids), len(row.answer_ids)) if encoder_decoder else row.tokens
        if context is not None and length > context:
            raise CourseError(
                f"Example {number} has {row.tokens} tokens, more than the model's context of {context}: shorten it "
                f"or leave it out."
            )
        rows.append(row)
    return rows


def rows_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    instruction: str,
    items: Sequence[Item],
    shots: Sequence[Item] = (),
) -> list[PromptedRow]:
    """Items as encoded rows for this model, in their order; `shots` stand in every prompt. Raises as `encode`."""
    prompts = [tasks.prompt(instruction, item.input, shots) for item in items]
    answers = [item.output for item in items]
    if model.config.is_encoder_decoder:
        return encode(tokenizer, prompts, answers, encoder_decoder=True)
    return encode(tokenizer, prompts, answers, context=getattr(model.config, "max_position_embeddings", None))


@dataclass(frozen=True)
class ScoringBatch:
    """Rows whose answers are scored in one forward: what goes in, and where the answers' tokens come out.

    A causal batch is one packed sequence of n tokens: the prefix that all prompts share, then each row's rest; a token
    sees the prefix and its own row. An encoder-decoder batch is padded, b rows of prompts and of answers.
    """

    input_ids: Tensor  # (1, n), or (b, T) for an encoder-decoder
    position_ids: Tensor | None  # (1, n); None for an encoder-decoder
    seen: Tensor  # (n, n) bool, whether token i sees token j; (b, T) bool padding mask for an encoder-decoder
    decoder_ids: Tensor | None  # (b, S) what the decoder reads; None for a causal model
    places: Tensor  # (L,) where each label is predicted in the flattened output
    labels: Tensor  # (L,) the answers' tokens
    rows: Tensor  # (L,) the row, 0 to num_rows - 1, that each label belongs to
    is_end: Tensor  # (L,) bool, whether the label is the end token that closes an answer
    num_rows: int

    @property
    def num_tokens(self) -> int:
        """Positions that a model computes for one candidate."""
        return self.input_ids.numel() + (0 if self.decoder_ids is None else self.decoder_ids.numel())


def common_prefix(rows: Sequence[PromptedRow]) -> int:
    """Tokens that all prompts start with, but never a whole prompt: its last token predicts that row's answer."""
    shortest = min(len(row.prompt_ids) for row in rows) - 1
    first = rows[0].prompt_ids
    return next((i for i in range(shortest) if any(r.prompt_ids[i] != first[i] for r in rows)), max(shortest, 0))


def pack(rows: Sequence[PromptedRow], prefix: int | None = None) -> ScoringBatch:
    """A causal batch: all rows as one sequence in which the prompts' common prefix stands, and is computed, once.

    The label losses equal those of the rows on their own. `prefix` is the common prefix's number of tokens; a shorter
    prefix than the rows' longest serves rows of a larger set.
    Source: the idea of a shared prefix under a block mask, as in Juravsky et al. 2024, "Hydragen", arXiv 2402.05099.
    """
    prefix = common_prefix(rows) if prefix is None else prefix
    rests = [(row.prompt_ids + row.answer_ids)[prefix:-1] for row in rows]  # the last label is predicted, never read
    lengths = [len(rest) for rest in rests]
    ends = list(itertools.accumulate(lengths, initial=prefix))[1:]
    places = [range(end - len(row.answer_ids), end) for row, end in zip(rows, ends, strict=True)]
    return ScoringBatch(
        input_ids=torch.tensor([rows[0].prompt_ids[:prefix] + [token for rest in rests for token in rest]]),  # (1, n)
        position_ids=packed_positions(lengths, prefix)[None],  # (1, n)
        seen=visible_positions(lengths, prefix),  # (n, n)
        decoder_ids=None,
        places=torch.tensor([place for row_places in places for place in row_places]),
        **_labels(rows),
    )


def _labels(rows: Sequence[PromptedRow]) -> dict[str, Any]:
    """What causal and encoder-decoder batches have in common: the labels, their rows, and which of them end a row."""
    lengths = torch.tensor([len(row.answer_ids) for row in rows])
    labels = torch.tensor([token for row in rows for token in row.answer_ids])
    is_end = torch.zeros(len(labels), dtype=torch.bool)
    is_end[lengths.cumsum(0) - 1] = True
    numbers = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    return {"labels": labels, "rows": numbers, "is_end": is_end, "num_rows": len(rows)}


def pad(rows: Sequence[PromptedRow], pad_token_id: int, start_token_id: int) -> ScoringBatch:
    """The rows for an encoder-decoder: prompts padded for the encoder, answers shifted right for the decoder."""
    width = max(len(row.prompt_ids) for row in rows)
    depth = max(len(row.answer_ids) for row in rows)
    ids = [row.prompt_ids + [pad_token_id] * (width - len(row.prompt_ids)) for row in rows]
    read = [[start_token_id, *row.answer_ids[:-1]] for row in rows]
    return ScoringBatch(
        input_ids=torch.tensor(ids),  # (b, T)
        position_ids=None,
        seen=torch.tensor([[i < len(row.prompt_ids) for i in range(width)] for row in rows]),  # (b, T)
        decoder_ids=torch.tensor([r + [pad_token_id] * (depth - len(r)) for r in read]),  # (b, S)
        places=torch.tensor([n * depth + i for n, row in enumerate(rows) for i in range(len(row.answer_ids))]),
        **_labels(rows),
    )


def batches(model_config: object, rows: Sequence[PromptedRow], max_tokens: int = 512) -> list[ScoringBatch]:
    """Rows in scoring batches of at most `max_tokens` positions, packed or padded; a longer row is a batch alone."""
    if not rows:
        raise CourseError("There are no rows to score: give at least one example.")
    encoder_decoder = bool(getattr(model_config, "is_encoder_decoder", False))
    prefix = 0 if encoder_decoder else common_prefix(rows)
    lengths = [row.tokens - prefix for row in rows]
    groups = [[rows[index] for index in group] for group in group_by_tokens(lengths, prefix, max_tokens)]
    if encoder_decoder:
        start = model_config.decoder_start_token_id
        return [pad(group, model_config.pad_token_id, start if start is not None else 0) for group in groups]
    return [pack(group) for group in groups]
