"""Scores against transformers' own loss and greedy decoding, on a causal model and on an encoder-decoder."""

from __future__ import annotations

import hub_modules
import numpy as np
import pytest
import torch

from lorahub_edu import scoring
from lorahub_edu.data import fewshot
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapter_files
from lorahub_edu.models import tiny
from lorahub_edu.scoring import score

ROWS = {
    "sharing everything": [PromptedRow([7, 8, 9], [10, 2]), PromptedRow([7, 8, 9], [11, 12, 2])],
    "sharing nothing": [PromptedRow([7, 8, 9], [10, 2]), PromptedRow([8], [11, 12, 2]), PromptedRow([9, 8], [2])],
    "one a prefix of another": [PromptedRow([7, 8], [9, 2]), PromptedRow([7, 8, 9, 10], [11, 2])],
    "one row": [PromptedRow([7, 8], [9, 2])],
    "real text": hub_modules.rows(),
}


@pytest.fixture(scope="module")
def exact():
    return tiny.model().double()


def hf_padded_loss(model, rows: list[PromptedRow]) -> float:
    """The loss that transformers gives for the rows as one right-padded batch."""
    encoded = [row.encoded() for row in rows]
    width = max(len(row.input_ids) for row in encoded)
    gaps = [width - len(row.input_ids) for row in encoded]
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([row.input_ids + [2] * gap for row, gap in zip(encoded, gaps, strict=True)]),
            attention_mask=torch.tensor([[1] * (width - gap) + [0] * gap for gap in gaps]),
            labels=torch.tensor([row.labels + [-100] * gap for row, gap in zip(encoded, gaps, strict=True)]),
        ).loss.item()


@pytest.mark.parametrize("case", ROWS)
def test_losses_are_those_of_transformers(exact, case: str) -> None:
    rows = ROWS[case]
    expected, means = hub_modules.plain_losses(exact, rows)
    found = score(exact, rows)
    assert found.losses == pytest.approx([expected], abs=1e-6)
    assert found.losses == pytest.approx([hf_padded_loss(exact, rows)], abs=1e-6)
    assert found.row_losses == pytest.approx(np.array([means]), abs=1e-5)
    assert found.strict.shape == found.answer_only.shape == (1, len(rows))


def test_answer_losses_leave_out_the_end_token(exact) -> None:
    rows = ROWS["real text"]
    total, labels = 0.0, 0
    for row in rows:
        without_end = PromptedRow(row.prompt_ids, row.answer_ids[:-1])
        total += hub_modules.plain_losses(exact, [without_end])[0] * len(without_end.answer_ids)
        labels += len(without_end.answer_ids)
    assert score(exact, rows).answer_losses == pytest.approx([total / labels], abs=1e-6)


def test_how_rows_are_cut_changes_nothing(exact, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ROWS["real text"]
    whole = score(exact, rows)
    cut = fewshot.batches(exact.config, rows, max_tokens=60)
    assert len(cut) > 1
    monkeypatch.setattr(scoring, "LOGIT_ROWS", 3)
    pieces = score(exact, cut)
    assert pieces.losses == pytest.approx(whole.losses, abs=1e-6)
    assert pieces.row_losses == pytest.approx(whole.row_losses, abs=1e-5)


def decoded(model, prompt: list[int], count: int, end: int) -> list[int]:
    """What greedy decoding appends to the prompt, up to `count` tokens or the end token."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": count, "eos_token_id": end, "pad_token_id": 0}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()
    return out[1:] if model.config.is_encoder_decoder else out[len(prompt) :]


@pytest.mark.parametrize("make", [tiny.model, hub_modules.t5], ids=["llama", "t5"])
def test_flags_say_what_greedy_decoding_would_give(make) -> None:
    """`strict` wants the answer and then the end; any token can be the end, so a random model has both kinds."""
    model = make()
    rows = []
    for prompt in ([5, 6, 7], [5, 6, 7, 8, 9], [40, 41]):
        given = decoded(model, prompt, 5, end=-1)  # no token is the end
        rows.append(PromptedRow(prompt, given))  # its end follows the answer
        rows.append(PromptedRow(prompt, [*given[:4], (given[4] + 1) % 60 + 3]))  # it goes on after the answer
        rows.append(PromptedRow(prompt, [given[0], given[1] + 1, *given[2:]]))  # a wrong token
        rows.append(PromptedRow(prompt, given[:1]))  # nothing but the end
    found = score(model, rows)
    for row, strict, answer_only in zip(rows, found.strict[0], found.answer_only[0], strict=True):
        *answer, end = row.answer_ids
        text = decoded(model, row.prompt_ids, len(row.answer_ids), end=-1)
        assert strict == (text == [*answer, end]) and answer_only == (text[:-1] == answer)
    assert found.strict[0].tolist() == [True, False, False, True] * 3
    assert found.answer_only[0].tolist() == [True, True, False, True] * 3


@pytest.mark.real
def test_flags_and_text_agree_on_the_real_model(smollm) -> None:
    model, tokenizer = smollm
    end, rows, expected = tokenizer.eos_token_id, [], []
    for question in ("What is the capital of France?", "Say hello."):
        prompt = tokenizer(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").input_ids
        given = decoded(model, prompt, 12, end)
        assert len(given) > 2
        rows += [PromptedRow(prompt, given), PromptedRow(prompt, [*given[:-2], end])]  # to its end, and one too short
        expected += [(True, True), (False, True)]
        rows.append(PromptedRow(prompt, [given[0], given[1] + 1, end]))
        expected.append((False, False))
    found = score(model, rows)
    assert list(zip(found.strict[0].tolist(), found.answer_only[0].tolist(), strict=True)) == expected
    assert any(row.answer_ids[-1] == end for row in rows[::3])  # the model itself came to an end within 12 tokens


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("gated", [False, True], ids=["relu", "gated"])
def test_an_encoder_decoders_losses_are_those_of_transformers(gated: bool, tied: bool) -> None:
    model, rows = hub_modules.t5(gated, tied).double(), hub_modules.t5_rows()
    expected, means = hub_modules.plain_losses(model, rows)
    found = score(model, rows)
    assert found.losses == pytest.approx([expected], abs=1e-6)
    assert found.row_losses == pytest.approx(np.array([means]), abs=1e-5)
    width, depth = (max(len(getattr(row, ids)) for row in rows) for ids in ("prompt_ids", "answer_ids"))
    padded = model(
        input_ids=torch.tensor([row.prompt_ids + [0] * (width - len(row.prompt_ids)) for row in rows]),
        attention_mask=torch.tensor([[i < len(row.prompt_ids) for i in range(width)] for row in rows]).long(),
        labels=torch.tensor([row.answer_ids + [-100] * (depth - len(row.answer_ids)) for row in rows]),
    )
    assert found.losses == pytest.approx([padded.loss.item()], abs=1e-6)


def test_an_active_adapter_counts() -> None:
    model, rows = tiny.model(), ROWS["real text"]
    plain = score(model, rows).losses
    module = hub_modules.random_module(model, 0)
    adapter_files.put_adapter(model, module)
    expected, _ = hub_modules.plain_losses(
        hub_modules.merged(tiny.model(), hub_modules.deltas([module], [1.0], "exact")), rows
    )
    assert score(model, rows).losses == pytest.approx([expected], abs=1e-5)
    assert abs(expected - plain[0]) > 1e-3


def test_the_mode_is_left_as_it_was_and_dropout_plays_no_part() -> None:
    model, rows = hub_modules.t5(), hub_modules.t5_rows()
    expected = score(model, rows).losses
    assert not model.training
    model.train()
    assert np.array_equal(score(model, rows).losses, expected) and model.training
    with pytest.raises(IndexError):
        score(model, [PromptedRow([5], [9999, 1])])  # a token outside the vocabulary
    assert model.training


def test_a_candidate_that_overflowed_is_nan_and_wrong_on_every_row() -> None:
    batch = fewshot.pack(ROWS["one a prefix of another"])
    losses = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, torch.inf, 4.0], [torch.nan] * 4])
    wrong = torch.tensor([[False, True, False, False], [False] * 4, [False] * 4])
    found = scoring.gather([[(losses, wrong)]], [batch])
    assert found.losses[0] == 2.5 and found.answer_losses[0] == 2.0
    assert found.row_losses[0].tolist() == [1.5, 3.5]
    assert np.isnan(found.losses[1:]).all() and np.isnan(found.row_losses[1:]).all()
    assert found.strict.tolist() == [[False, True], [False, False], [False, False]]
    assert found.answer_only.tolist() == [[True, True], [False, False], [False, False]]


def test_no_rows() -> None:
    with pytest.raises(CourseError, match="no rows to score"):
        score(tiny.model(), [])
