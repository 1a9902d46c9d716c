"""Rows and scoring batches: what each label's place can see is exactly its row's prompt and answer so far."""

from __future__ import annotations

import hub_modules
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from lorahub_edu.data import fewshot
from lorahub_edu.data.fewshot import PromptedRow, ScoringBatch
from lorahub_edu.errors import CourseError
from lorahub_edu.models import tiny

few_ids = st.lists(st.integers(3, 5), min_size=1, max_size=6)  # few tokens, so that prompts often share a start
some_rows = st.lists(st.builds(PromptedRow, few_ids, few_ids), min_size=1, max_size=5)


def ending_tokenizer():
    """The tiny tokenizer, with the end token after every text that takes special tokens, as T5's does."""
    made = tiny.tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", made.eos_token_id)]
    )
    return made


def labels_by_row(made: list[ScoringBatch]) -> list[list[int]]:
    """The labels of each row, over all batches, in order."""
    found = []
    for batch in made:
        for number in range(batch.num_rows):
            found.append(batch.labels[batch.rows == number].tolist())
    return found


def test_a_causal_row_is_the_prompt_a_space_the_answer_and_the_end_token() -> None:
    tokenizer = tiny.tokenizer()
    (row,) = fewshot.encode(tokenizer, ["Input: hot\nOutput:"], ["cold water"])
    assert tokenizer.decode(row.prompt_ids) == "Input: hot\nOutput:"
    assert tokenizer.decode(row.answer_ids) == " cold water<|im_end|>"
    assert row.answer_ids[-1] == tokenizer.eos_token_id and row.tokens == len(row.prompt_ids) + len(row.answer_ids)


def test_an_encoder_decoder_row_ends_its_prompt_and_has_no_space_before_its_answer() -> None:
    tokenizer = ending_tokenizer()
    (row,) = fewshot.encode(tokenizer, ["Output:"], ["cold"], encoder_decoder=True)
    assert tokenizer.decode(row.prompt_ids) == "Output:<|im_end|>"
    assert tokenizer.decode(row.answer_ids) == "cold<|im_end|>"
    (causal,) = fewshot.encode(tokenizer, ["Output:"], ["cold"])
    assert tokenizer.decode(causal.prompt_ids) == "Output:"  # an end token here would end the text before its answer


def test_a_training_row_has_labels_on_its_answer_only() -> None:
    encoded = PromptedRow([5, 6, 7], [8, 2]).encoded()
    assert encoded.input_ids == [5, 6, 7, 8, 2] and encoded.labels == [-100, -100, -100, 8, 2]


def test_rows_that_cannot_be_scored_are_refused() -> None:
    tokenizer = tiny.tokenizer()
    with pytest.raises(CourseError, match="0 prompts and 0 answers: give at least one"):
        fewshot.encode(tokenizer, [], [])
    with pytest.raises(CourseError, match="2 prompts and 1 answers"):
        fewshot.encode(tokenizer, ["a", "b"], ["c"])
    with pytest.raises(CourseError, match=r"Example 2 \('b:'\) has an empty answer"):
        fewshot.encode(tokenizer, ["a:", "b:"], ["c", " \n"])
    with pytest.raises(CourseError, match=r"Example 1 \(answer 'c'\) has an empty prompt"):
        fewshot.encode(tokenizer, [""], ["c"])
    with pytest.raises(CourseError, match="There are no rows to score"):
        fewshot.batches(tiny.config(), [])


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_a_row_longer_than_the_context_is_refused(encoder_decoder: bool) -> None:
    tokenizer = tiny.tokenizer()
    options = {"encoder_decoder": encoder_decoder}
    (row,) = fewshot.encode(tokenizer, ["a b c d e f g"], ["h i"], **options)
    fits = len(row.prompt_ids) if encoder_decoder else row.tokens
    assert fewshot.encode(tokenizer, ["a b c d e f g"], ["h i"], context=fits, **options) == [row]
    with pytest.raises(CourseError, match=f"Example 1 has {row.tokens} tokens, more than the model's context of"):
        fewshot.encode(tokenizer, ["a b c d e f g"], ["h i"], context=fits - 1, **options)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([[5, 6, 7], [5, 6, 8]], 2),
        ([[5, 6, 7], [5, 6, 7]], 2),  # its last token predicts the answer, so it stays with the row
        ([[5, 6], [5, 6, 7, 8]], 1),  # one is a prefix of the other
        ([[5, 6], [6, 5]], 0),
        ([[5], [5, 6]], 0),
        ([[5, 6, 7]], 2),
    ],
)
def test_the_common_prefix_is_never_a_whole_prompt(prompts: list[list[int]], expected: int) -> None:
    assert fewshot.common_prefix([PromptedRow(prompt, [9]) for prompt in prompts]) == expected


@settings(deadline=None, max_examples=100, derandomize=True)
@given(some_rows)
def test_a_packed_label_sees_its_own_row_so_far_and_nothing_else(rows: list[PromptedRow]) -> None:
    batch = fewshot.pack(rows)
    expected = [
        (number, row.prompt_ids + row.answer_ids[:i], label, i + 1 == len(row.answer_ids))
        for number, row in enumerate(rows)
        for i, label in enumerate(row.answer_ids)
    ]
    found = []
    for place, label, number, end in zip(batch.places, batch.labels, batch.rows, batch.is_end, strict=True):
        seen = batch.seen[place]
        assert seen[place] and not seen[place + 1 :].any()
        assert batch.position_ids[0, seen].tolist() == list(range(int(seen.sum())))
        found.append((number.item(), batch.input_ids[0, seen].tolist(), label.item(), end.item()))
    assert found == expected and batch.num_rows == len(rows) and batch.decoder_ids is None
    # Every token is computed once: the shared start, and what each row adds to it (its last label is never read).
    prefix = fewshot.common_prefix(rows)
    assert batch.num_tokens == prefix + sum(row.tokens - prefix - 1 for row in rows)


def test_padded_rows_are_shifted_as_transformers_shifts_them() -> None:
    model, rows = hub_modules.t5(), hub_modules.t5_rows()
    batch = fewshot.pad(rows, pad_token_id=0, start_token_id=0)
    depth = max(len(row.answer_ids) for row in rows)
    labels = torch.tensor([row.answer_ids + [-100] * (depth - len(row.answer_ids)) for row in rows])
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    wanted = labels != -100
    assert torch.equal(batch.decoder_ids[wanted], shifted[wanted])  # what stands after a row's last label is not read
    assert torch.equal(batch.places, wanted.flatten().nonzero().flatten())
    assert torch.equal(batch.labels, labels[wanted])
    assert [ids[mask].tolist() for ids, mask in zip(batch.input_ids, batch.seen, strict=True)] == [
        row.prompt_ids for row in rows
    ]
    assert batch.is_end.sum() == len(rows) and torch.equal(batch.labels[batch.is_end], torch.ones(len(rows)).long())
    assert batch.num_tokens == batch.input_ids.numel() + shifted.numel()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(some_rows, st.integers(1, 40))
def test_batches_keep_order_and_size(rows: list[PromptedRow], most: int) -> None:
    made = fewshot.batches(tiny.config(), rows, max_tokens=most)
    assert labels_by_row(made) == [row.answer_ids for row in rows]
    assert all(batch.num_tokens <= most or batch.num_rows == 1 for batch in made)


def test_encoder_decoder_batches_are_cut_too() -> None:
    rows = hub_modules.t5_rows(6)
    config = hub_modules.t5().config
    whole, cut = fewshot.batches(config, rows), fewshot.batches(config, rows, max_tokens=20)
    assert len(whole) == 1 < len(cut)
    assert labels_by_row(whole) == labels_by_row(cut) == [row.answer_ids for row in rows]
