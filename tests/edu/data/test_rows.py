"""Reading the rows of a file, and the message for every kind of bad one."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest
from instruction_rows import GOOD, WITHOUT, write

from lorahub_edu.data.alpaca import format_prompt
from lorahub_edu.data.rows import Example, read_rows
from lorahub_edu.errors import CourseError


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
