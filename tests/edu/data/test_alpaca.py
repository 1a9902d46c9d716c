"""Reading, splitting, prompting and encoding instruction rows, and the message for every kind of bad file."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorahub_edu.data import alpaca
from lorahub_edu.data.alpaca import (
    IGNORED,
    Example,
    encode,
    encode_rows,
    format_prompt,
    load_alpaca,
    load_rows,
    read_rows,
    shipped_examples,
    split,
)
from lorahub_edu.errors import CourseError

GOOD = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
WITHOUT = {"instruction": "Say hello.", "output": "Hello!"}


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_the_three_formats_hold_the_same_rows(tmp_path):
    rows = [GOOD, WITHOUT | {"input": ""}, {"instruction": "Grüße", "input": "", "output": "¡Hola!\u2028 …"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    paths = [
        write(tmp_path, "rows.json", json.dumps(rows)),
        write(tmp_path, "rows.jsonl", "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"),
        write(tmp_path, "bom.json", b"\xef\xbb\xbf" + json.dumps(rows).encode()),
        tmp_path / "rows.parquet",
    ]
    for path in paths:
        assert read_rows(path) == [Example(**row) for row in rows]


def test_input_may_be_missing_and_dolly_is_read(tmp_path):
    dolly = {"instruction": "Name it.", "context": "A red fruit.", "response": "Apple", "category": "open_qa"}
    path = write(tmp_path, "rows.json", json.dumps([WITHOUT, WITHOUT | {"input": None}, dolly]))
    hello = Example("Say hello.", "", "Hello!")
    assert read_rows(path) == [hello, hello, Example("Name it.", "A red fruit.", "Apple")]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"instruction": "x", "input": ""}, r"row 2.*no field 'output'.*\['input', 'instruction'\]"),
        ({"input": "x", "output": "y"}, "row 2.*no field 'instruction'"),
        ({"context": "x", "response": "y"}, "row 2.*no field 'instruction'"),
        (GOOD | {"output": ""}, "row 2.*'output' is empty"),
        (GOOD | {"output": " \n"}, "row 2.*'output' is empty"),
        (GOOD | {"instruction": " "}, "row 2.*'instruction' is empty"),
        (GOOD | {"output": 3}, "row 2.*'output' is 3, a int"),
        (GOOD | {"output": None}, "row 2.*'output' is None, a NoneType"),
        (GOOD | {"input": ["a"]}, r"row 2.*'input' is \['a'\], a list"),
        ("text", "row 2.*is 'text', not an object"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_bad_row_is_named_or_skipped(tmp_path, caplog, bad, message, suffix):
    rows = [GOOD, bad, WITHOUT]
    # In the .jsonl file a blank line comes first, so row 2 stands in line 3.
    text = json.dumps(rows) if suffix == ".json" else "\n" + "\n".join(map(json.dumps, rows))
    path = write(tmp_path, "rows" + suffix, text)
    with pytest.raises(CourseError, match=message) as error:
        read_rows(path)
    assert str(path) in str(error.value)
    assert ("(line 3)" in str(error.value)) == (suffix == ".jsonl")
    assert len(read_rows(path, on_bad_row="skip")) == 2
    assert "1 of 3 rows left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", '[\n  {"instruction": "x",\n   "output" "y"}]', r"not valid JSON.*\(line 3, column 13\)"),
        ("rows.jsonl", json.dumps(GOOD) + '\n{"instruction": ', r"row 2 \(line 2\) is not valid JSON.*\(line 2, col"),
        ("rows.json", json.dumps(GOOD), "holds one dict, not a list"),
        ("rows.json", "", "is empty"),
        ("rows.jsonl", " \n\n", "is empty"),
        ("rows.json", "[]", "holds no row"),
        ("rows.json", b'[{"instruction": "\xff"}]', "not UTF-8 text: byte 0xff at offset 18"),
        ("rows.parquet", b"PAR1 but not really", "not a readable parquet file"),
        ("rows.csv", "a,b", r"ends in '\.csv'.*'\.jsonl'"),
        ("rows.jsn", "[]", r"ends in '\.jsn'. Did you mean '\.json'"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    with pytest.raises(CourseError, match=message):
        read_rows(write(tmp_path, name, content))


def test_json_lines_and_lists_are_known_by_their_text(tmp_path, caplog):
    """Many programs write one into a file that is named as the other."""
    rows = [GOOD, WITHOUT]
    lines, listed = "\n".join(map(json.dumps, rows)), json.dumps(rows)
    expected = [Example(**GOOD), Example("Say hello.", "", "Hello!")]
    for name, text, said in (
        ("a.json", lines, "a.json is read as JSON Lines"),
        ("a.json", "\n" + lines + "\n\n", "a.json is read as JSON Lines"),
        ("b.jsonl", listed, "b.jsonl is read as one JSON list"),
        ("b.jsonl", json.dumps(rows, indent=1), "b.jsonl is read as one JSON list"),
        ("c.json", listed, ""),
        ("c.jsonl", lines, ""),
        ("c.jsonl", json.dumps(GOOD) + "\n" + json.dumps(WITHOUT), ""),
    ):
        caplog.clear()
        assert read_rows(write(tmp_path, name, text)) == expected
        assert said in caplog.text and bool(said) == bool(caplog.text)
    with pytest.raises(CourseError, match=r"a.json, row 2 \(line 2\) is not valid JSON"):
        read_rows(write(tmp_path, "a.json", json.dumps(GOOD) + '\n{"instr'))
    with pytest.raises(CourseError, match=r"a.jsonl, row 1 \(line 1\) is \['x'\], not an object"):
        read_rows(write(tmp_path, "a.jsonl", '["x"]\n' + lines))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"instruction": "x", "output": "hi \\ud83d"}', r"'output' holds half a character \('\\ud83d', position 4\)"),
        ('{"instruction": "\\ude00", "output": "y"}', "'instruction' holds half a character"),
        ('{"instruction": "x", "input": "\\udc00", "output": "y"}', "'input' holds half a character"),
        ('{"instruction": "x", "system": "\\ud83d", "output": "y"}', "'system' holds half a character"),
        ('{"instruction": "x", "output": ' + "7" * 5000 + "}", "can't be read: Exceeds the limit"),
        ("[" * 100_000 + "]" * 100_000, "too many brackets"),
        ('{"instruction": "x", "output": ' + "[" * 100_000, "too many brackets"),
        ('{"instruction": "x", "output": "y", "output": "z"}', "the field 'output' stands twice"),
        ('{"instruction": "x", "output": NaN}', "'output' is nan, a float"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_what_json_takes_and_no_tokenizer_does_is_named_by_row(tmp_path, row, message, suffix):
    rows = [json.dumps(GOOD), row, json.dumps(WITHOUT)]
    path = write(tmp_path, "rows" + suffix, "[" + ",\n".join(rows) + "]" if suffix == ".json" else "\n".join(rows))
    with pytest.raises(CourseError, match=f"row 2.*{message}") as error:
        read_rows(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(path))
    if suffix == ".jsonl":
        assert len(read_rows(path, on_bad_row="skip")) == 2


@pytest.mark.parametrize("depth", range(900, 1000, 5))
def test_no_depth_of_brackets_is_a_traceback(tmp_path, depth):
    with pytest.raises(CourseError, match="row 1"):
        read_rows(write(tmp_path, "rows.jsonl", '{"instruction": "x", "output": ' + "[" * depth + "]" * depth + "}"))


def test_a_whole_emoji_is_kept(tmp_path):
    row = {"instruction": "Smile.", "output": "\U0001f600"}
    assert "\\ud83d\\ude00" in json.dumps(row)
    assert read_rows(write(tmp_path, "rows.json", json.dumps([row])))[0].output == "\U0001f600"


TURNS = [
    ("system", "Answer in one word."), ("user", "Capital of France?"), ("assistant", "Paris"), ("user", "And Italy?"),
    ("assistant", "Rome"),
]  # fmt: skip
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


@pytest.mark.parametrize(
    "row",
    [
        {
            "instruction": "And Italy?", "input": "", "output": "Rome", "system": TURNS[0][1],
            "history": [["Capital of France?", "Paris"]],
        },
        {"messages": [{"role": role, "content": text} for role, text in TURNS]},
        {"messages": [{"role": role, "content": text, "tool_calls": None} for role, text in TURNS]},
        {"conversations": [{"from": SHAREGPT[role], "value": text} for role, text in TURNS], "tools": ""},
        {"conversations": [{"role": role, "content": text} for role, text in TURNS[1:]], "system": TURNS[0][1]},
    ],
)  # fmt: skip
def test_system_and_history_are_in_the_prompt(tmp_path, caplog, row):
    (example,) = read_rows(write(tmp_path, "rows.json", json.dumps([row])))
    assert example.output == "Rome"
    assert format_prompt(example) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAnswer in one word.\n\nCapital of France?\n\n### Response:\nParis\n\n"
        "### Instruction:\nAnd Italy?\n\n### Response:\n"
    )
    assert "rows.json, 1 of 1 rows: what comes before the last question" in caplog.text
    assert ("is read as a chat" in caplog.text) == ("instruction" not in row)


def chat(*turns, **more):
    return {"messages": [{"role": role, "content": text} for role, text in turns], **more}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (chat(*TURNS[:4]), r"the turns \['user', 'assistant', 'user'\]"),
        (chat(TURNS[2], TURNS[1]), r"the turns \['assistant', 'user'\]"),
        (chat(TURNS[0]), r"the turns \[\]"),
        (chat(*TURNS, system="Be brief."), "a system prompt in 'messages' and one in 'system'"),
        (chat(("user", "x"), ("tool", "y")), "turn 2 of messages is .*Needed: the text of system, user"),
        (chat(("user", [{"type": "image_url"}]), ("assistant", "y")), "'turn 1 of messages' is .*a list"),
        (chat(("user", "x"), ("assistant", " ")), "'output' is empty"),
        ({"messages": "x"}, "'messages' is 'x', not a list of turns"),
        ({"conversations": ["x", "y"]}, "turn 1 of conversations is 'x'"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": [1]}]},
            "turn 2 of messages is .*nothing else",
        ),
        (WITHOUT | {"history": [["only a question"]]}, "'history' is .*not a list of"),
        (WITHOUT | {"history": "before"}, "'history' is 'before'"),
        (WITHOUT | {"system": 3}, "'system' is 3, a int"),
        (WITHOUT | {"tools": "[{}]"}, "has 'tools', which the course's prompt has no place for"),
        (WITHOUT | {"images": ["a.png"]}, "has 'images'"),
    ],
)
def test_a_chat_that_is_not_plain_is_refused_by_row(tmp_path, bad, message):
    with pytest.raises(CourseError, match=f"row 2.*{message}"):
        read_rows(write(tmp_path, "rows.json", json.dumps([GOOD, bad])))


def test_no_field_is_left_out_without_a_word(tmp_path, caplog):
    harmless = [
        GOOD | {"text": f"prompt and {GOOD['output']}"},
        GOOD | {"note": "", "tags": []},
        GOOD | {"tools": None},
    ]
    assert len(read_rows(write(tmp_path, "rows.json", json.dumps(harmless)))) == 3 and not caplog.text
    rows = [GOOD | {"score": 1}, GOOD | {"score": 2, "text": "other words"}, {**GOOD, "response": "4"}, GOOD]
    assert len(read_rows(write(tmp_path, "rows.json", json.dumps(rows)))) == 4
    for count, name in ((2, "score"), (1, "text"), (1, "response")):
        assert f"rows.json, {count} of 4 rows: the field '{name}' is not read" in caplog.text
    both = {"instruction": "Add.", "input": "1 and 2", "response": "3"}  # Alpaca's input with Dolly's response
    assert read_rows(write(tmp_path, "rows.json", json.dumps([both]))) == [Example(**GOOD)]


def test_missing_file_folder_and_nothing_but_bad_rows(tmp_path):
    with pytest.raises(CourseError, match="none.json is missing"):
        read_rows(tmp_path / "none.json")
    with pytest.raises(CourseError, match="is a folder"):
        read_rows(tmp_path)
    with pytest.raises(CourseError, match="holds no good row"):
        read_rows(write(tmp_path, "rows.json", json.dumps([{"output": ""}])), on_bad_row="skip")


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


def test_load_alpaca_uses_the_file_and_leaves_empty_rows_out(tmp_path, monkeypatch, caplog):
    path = write(tmp_path, "alpaca.json", json.dumps([GOOD, GOOD | {"output": ""}, WITHOUT]))
    asked = {}
    monkeypatch.setattr(alpaca.assets, "fetch", lambda name, **options: asked.update(options, name=name) or path)
    rows, where = load_alpaca(offline=True)
    assert asked == {"name": "alpaca", "offline": True}
    assert len(rows) == 2 and "1 of 3 rows left out" in caplog.text
    assert where == "2 Alpaca rows from alpaca.json (CC BY-NC 4.0, non-commercial use only)"
    assert load_rows("alpaca") == (rows, where)


def test_load_alpaca_falls_back_to_the_shipped_set(tmp_path, monkeypatch, caplog):
    def fail(name, **options):
        raise CourseError("no place had it")

    monkeypatch.setattr(alpaca.assets, "fetch", fail)
    rows, where = load_alpaca()
    assert rows == shipped_examples() and "small set" in where
    assert caplog.records[0].levelno == logging.WARNING and "no place had it" in caplog.text
    monkeypatch.setattr(alpaca.assets, "fetch", lambda name, **_: write(tmp_path, "half.json", '[{"instr'))
    assert load_alpaca()[0] == shipped_examples()


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
    with pytest.raises(CourseError, match="gone.json is missing"):
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
