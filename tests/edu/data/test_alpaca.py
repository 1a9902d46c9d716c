"""Loading, splitting, prompting and encoding instruction rows."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_rows import GOOD, WITHOUT, write

from lorahub_edu.data import alpaca
from lorahub_edu.data.alpaca import (
    IGNORED,
    Example,
    encode,
    encode_rows,
    format_prompt,
    load_rows,
    shipped_examples,
    split,
)
from lorahub_edu.errors import CourseError


def test_shipped_set_is_large_diverse_and_whole():
    rows = shipped_examples()
    assert len(rows) >= 150
    assert 0.3 <= sum(bool(row.input) for row in rows) / len(rows) <= 0.5
    assert max(Counter((row.instruction, row.input) for row in rows).values()) == 1
    assert all(text == text.strip() for row in rows for text in (row.instruction, row.input, row.output))
    words = sorted(len(row.output.split()) for row in rows)
    assert words[0] == 1 and words[-1] >= 80
    path = alpaca.resources.files("lorahub_edu.data") / alpaca.SHIPPED_FILE
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all(list(json.loads(line)) == ["instruction", "input", "output"] for line in lines)


def test_alpaca_uses_the_file_and_leaves_empty_rows_out(tmp_path, monkeypatch, caplog):
    path = write(tmp_path, "alpaca.json", json.dumps([GOOD, GOOD | {"output": ""}, WITHOUT]))
    asked = {}
    monkeypatch.setattr(alpaca.assets, "fetch", lambda name, **options: asked.update(options, name=name) or path)
    rows, where = load_rows("alpaca", offline=True)
    assert asked == {"name": "alpaca", "offline": True}
    assert len(rows) == 2 and "1 of 3 rows left out" in caplog.text
    assert where == "2 Alpaca rows from alpaca.json (CC BY-NC 4.0, non-commercial use only)"


def test_alpaca_falls_back_to_the_shipped_set(tmp_path, monkeypatch, caplog):
    def fail(name, **options):
        raise CourseError("no place had it")

    monkeypatch.setattr(alpaca.assets, "fetch", fail)
    rows, where = load_rows("alpaca")
    assert rows == shipped_examples() and "small set" in where
    assert caplog.records[0].levelno == logging.WARNING and "no place had it" in caplog.text
    monkeypatch.setattr(alpaca.assets, "fetch", lambda name, **_: write(tmp_path, "half.json", '[{"instr'))
    assert load_rows("alpaca")[0] == shipped_examples()


def test_load_rows(tmp_path, monkeypatch):
    assert load_rows("tiny")[0] == shipped_examples()
    dolly = {"instruction": "Add.", "context": "1 and 2", "response": "3", "category": "closed_qa"}
    file = write(tmp_path, "databricks-dolly-15k.jsonl", json.dumps(dolly))
    monkeypatch.setattr(alpaca.assets, "fetch", lambda name, **_: file if name == "dolly" else None)
    assert load_rows("dolly")[0] == [Example("Add.", "1 and 2", "3")]
    rows, where = load_rows(write(tmp_path, "mine.json", json.dumps([GOOD])))
    assert rows == [Example(**GOOD)] and where == "1 rows from mine.json"
    with pytest.raises(CourseError, match="'tinny' is neither a set of rows nor a file. Did you mean 'tiny'"):
        load_rows("tinny")
    with pytest.raises(CourseError, match="'gone.json' is neither a set of rows nor a file"):
        load_rows("gone.json")


@given(total=st.integers(1, 80), data=st.data(), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_split_is_disjoint_complete_and_repeatable(total, data, seed):
    rows = list(range(total))
    validation_rows = data.draw(st.integers(0, total - 1))
    train, validation = split(rows, validation_rows, seed)
    assert sorted(train + validation) == rows and len(validation) == validation_rows
    assert split(rows, validation_rows, seed) == (train, validation)
    fewer = split(rows, validation_rows, seed, train_rows=1)
    assert fewer == (train[:1], validation)


def test_split_sizes_of_the_source():
    state = random.getstate()
    train, validation = split(range(51_759), 2_000, seed=0)
    assert (len(train), len(validation)) == (49_759, 2_000)
    train, validation = split(range(52_002), 2_000, seed=0, train_rows=49_759)
    assert (len(train), len(validation)) == (49_759, 2_000) and not set(train) & set(validation)
    assert train != split(range(52_002), 2_000, seed=1, train_rows=49_759)[0]
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 10, None), "10 rows are too few for 1 training and 10 validation"),
        ((10, 4, 7), "10 rows are too few for 7 training and 4 validation"),
        ((10, -1, None), "no possible split"),
        ((10, 2, 0), "no possible split"),
    ],
)
def test_impossible_splits(arguments, message):
    total, validation_rows, train_rows = arguments
    with pytest.raises(CourseError, match=message):
        split(range(total), validation_rows, seed=0, train_rows=train_rows)


def test_both_prompt_forms():
    with_input = format_prompt(Example("Add {these}.", "{1} and 2", "unused"))
    assert "### Instruction:\nAdd {these}.\n\n### Input:\n{1} and 2\n\n### Response:\n" in with_input
    assert "paired with an input" in with_input and "unused" not in with_input
    without = format_prompt(Example("Say hello.", "", "Hello!"))
    assert without.endswith("### Instruction:\nSay hello.\n\n### Response:\n") and "Input" not in without


def test_labels_are_the_response_and_nothing_else(tokenizer):
    for example in shipped_examples():
        row = encode(example, tokenizer, block_size=10_000)
        assert tokenizer.decode(row.input_ids) == format_prompt(example) + example.output + "<|im_end|>"
        labelled = [label for label in row.labels if label != IGNORED]
        assert tokenizer.decode(labelled) == example.output + "<|im_end|>"
        prompt = len(row.labels) - len(labelled)
        assert row.labels[:prompt] == [IGNORED] * prompt and row.labels[prompt:] == row.input_ids[prompt:]
        # What generation will feed the model is exactly the unlabelled part.
        assert row.input_ids[:prompt] == tokenizer(format_prompt(example))["input_ids"]


def test_full_loss_labels_every_token(tokenizer):
    row = encode(shipped_examples()[0], tokenizer, 10_000, response_only=False)
    assert row.labels == row.input_ids and row.labels is not row.input_ids


def test_a_cut_response_has_no_end_token(tokenizer):
    example = shipped_examples()[0]
    whole = encode(example, tokenizer, 10_000)
    length = len(whole.input_ids)
    assert encode(example, tokenizer, length) == whole
    cut = encode(example, tokenizer, length - 1)
    assert cut.input_ids == whole.input_ids[:-1] and cut.labels == whole.labels[:-1]
    assert tokenizer.eos_token_id not in cut.input_ids
    prompt = whole.labels.count(IGNORED)
    smallest = encode(example, tokenizer, prompt + 1)
    assert len(smallest.input_ids) == prompt + 1 and smallest.labels[-1] == whole.labels[prompt]


def test_a_prompt_that_fills_the_block(tokenizer, caplog):
    short, long = Example("Hi", "", "Hello"), Example("word " * 300, "", "Hello")
    tokens = len(tokenizer(format_prompt(long))["input_ids"])
    with pytest.raises(CourseError, match=f"Row 2: its prompt has {tokens} tokens.*block of {tokens}"):
        encode_rows([short, long, short], tokenizer, tokens)
    kept = encode_rows([short, long, short], tokenizer, tokens, too_long="drop")
    assert kept == encode_rows([short] * 2, tokenizer, tokens)
    assert "1 of 3 rows dropped" in caplog.text
    with pytest.raises(CourseError, match="None of 1 rows fits into 128"):
        encode_rows([long], tokenizer, 128, too_long="drop")


def test_begin_token_once_and_no_end_token_inside(tokenizer):
    """LLaMA's tokenizers open a text with a token, T5's close it; the row has one of each at its ends."""
    import copy

    from tokenizers.processors import TemplateProcessing

    closing = copy.deepcopy(tokenizer)
    closing.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>", special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)]
    )
    example = Example("Hi", "", "Hello")
    row, plain = encode(example, closing, 200), encode(example, tokenizer, 200)
    assert row.input_ids == [0, *plain.input_ids] and row.labels == [IGNORED, *plain.labels]


def test_a_tokenizer_without_end_token(tokenizer):
    import copy

    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(CourseError, match="no end-of-sequence token"):
        encode(Example("Hi", "", "Hello"), endless, 200)
