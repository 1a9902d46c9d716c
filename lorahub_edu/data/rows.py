"""Instruction rows of a file: Alpaca's, Dolly's, LLaMA-Factory's and chat forms, in JSON, JSON Lines or parquet."""

from __future__ import annotations

import json
import logging
import reprlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from json.decoder import WHITESPACE
from pathlib import Path
from typing import Any, Literal

from lorahub_edu.errors import CourseError, near_matches

logger = logging.getLogger(__name__)

EXTENSIONS = (".json", ".jsonl", ".parquet")
CHATS = ("messages", "conversations")  # OpenAI's field and ShareGPT's
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
IN_PROMPT = ("tools", "images", "videos", "audios")  # of LLaMA-Factory: a model would have to see them
READ = ("instruction", "input", "output", "system", "history")


@dataclass(frozen=True)
class Example:
    """One instruction row; `input` is "" where the instruction needs no further text."""

    instruction: str
    input: str
    output: str


def read_rows(path: str | Path, on_bad_row: Literal["raise", "skip"] = "raise") -> list[Example]:
    """The instruction rows of a .json (one list), .jsonl (one object a line) or .parquet file, in its order.

    Rows need `instruction` and `output`; `input` may be missing. Also read are Dolly-15k's form (`instruction`,
    `context`, `response`), LLaMA-Factory's `system` and `history`, and chats (`messages`, `conversations`) whose last
    turn is the answer. What was said before the last question becomes part of the instruction, as LLaMA-Factory's
    template "alpaca" has it, and the log says so. With "skip", bad rows are left out. The log counts them, and the rows
    that have a field which is not read.
    Raises CourseError: the file can't be read or holds no good row; or, with "raise", a row is bad (the message names
        it).
    """
    path = Path(path)
    rows: list[Example] = []
    problems: list[str] = []
    notes: Counter[str] = Counter()
    for where, record in _records(path):
        try:
            example, noted = _example(where, record)
        except CourseError as problem:
            if on_bad_row == "raise":
                raise
            problems.append(str(problem))
            continue
        rows.append(example)
        notes.update(noted)
    for note, count in notes.items():
        logger.warning("%s, %d of %d rows: %s", path.name, count, len(problems) + len(rows), note)
    if problems:
        logger.warning("%d of %d rows left out; the first: %s", len(problems), len(problems) + len(rows), problems[0])
    if not rows:
        raise CourseError(f"{path} holds no {'good ' if problems else ''}row. Give a file with at least one.")
    return rows


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Each record with its place, "file, row 3 (line 4)". A line of JSON Lines stays a text here, with its number."""
    suffix = path.suffix.lower()
    if path.is_file() and suffix not in EXTENSIONS:
        raise CourseError(f"{path} ends in {path.suffix!r}. {near_matches(suffix, EXTENSIONS)}")
    if suffix == ".parquet" and path.is_file():
        records = read_parquet(path)
    else:
        text = read_text(path)
        lines = numbered_lines(text)
        if not lines:
            raise CourseError(f"{path} is empty. Give a file with at least one row, or fetch it again.")
        # The text decides, since many programs write JSON Lines into .json and a list into .jsonl.
        by_line = len(lines) > 1 and _is_json(lines[0][1])
        by_line = by_line or (suffix == ".jsonl" and not text.lstrip().startswith("["))
        if by_line != (suffix == ".jsonl"):
            logger.warning("%s is read as %s.", path.name, "JSON Lines, a row a line" if by_line else "one JSON list")
        if by_line:
            for row, (line, content) in enumerate(lines, start=1):
                yield f"{path}, row {row} (line {line})", (line, content)
            return
        records = parse(text, path)
        if not isinstance(records, list):
            raise CourseError(f"{path} holds one {type(records).__name__}, not a list. Put the rows in [ … ].")
    yield from ((f"{path}, row {row}", record) for row, record in enumerate(records, start=1))


def _example(where: str, record: Any) -> tuple[Example, list[str]]:
    """`record` as an Example, and what is to be said of it. Raises CourseError with `where` when it is not one."""
    if isinstance(record, tuple):  # a line of JSON Lines, parsed here so that a bad one can be skipped
        line, content = record
        record = parse(content, where, line)
    if not isinstance(record, dict):
        shown = reprlib.repr(record)
        raise CourseError(f"{where} is {shown}, not an object with the fields instruction, input and output.")
    fields, notes = dict(record), []
    chat = next((name for name in CHATS if name in fields and "instruction" not in fields), None)
    if chat:
        fields |= _from_chat(where, chat, fields.pop(chat), fields.get("system"))
        notes.append(f"{chat!r} is read as a chat, and its last answer is trained on")
    if "response" in fields and "output" not in fields:  # Dolly-15k's names for the same things
        fields["output"] = fields.pop("response")
        fields.pop("category", None)
    if "context" in fields and "input" not in fields:
        fields["input"] = fields.pop("context")
    for name in ("instruction", "output"):
        if name not in fields:
            raise CourseError(f"{where} has no field {name!r}; it has {sorted(map(str, record))}. Add the field.")
        if not text_field(where, name, fields[name]).strip():
            raise CourseError(f"{where}: {name!r} is empty ({fields[name]!r}). Fill it in or leave the row out.")
    text = "" if fields.get("input") is None else text_field(where, "input", fields["input"])
    before = _before(where, fields)
    if before:
        notes.append("what comes before the last question (system, history) is part of the prompt")
    for name, value in fields.items():
        repeats = name == "text" and isinstance(value, str) and fields["output"] in value  # Alpaca's whole prompt
        if name in READ or repeats or value in (None, "", [], {}):
            continue
        if name in IN_PROMPT:
            raise CourseError(f"{where} has {name!r}, which the course's prompt has no place for. Leave the row out.")
        notes.append(f"the field {name!r} is not read")
    return Example(before + fields["instruction"], text, fields["output"]), notes


def _from_chat(where: str, name: str, turns: Any, system: Any) -> dict[str, Any]:
    """A chat as instruction, output and what comes before them. Raises CourseError unless the turns are plain texts."""
    if not isinstance(turns, list):
        raise CourseError(f"{where}: {name!r} is {reprlib.repr(turns)}, not a list of turns.")
    said: list[tuple[str, str]] = []
    for number, turn in enumerate(turns, start=1):
        place = f"turn {number} of {name}"
        turn = {key: value for key, value in turn.items() if value is not None} if isinstance(turn, dict) else {}
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if len(turn) != 2 or not isinstance(role, str) or role not in ROLES:
            shown = reprlib.repr(turns[number - 1])
            raise CourseError(f"{where}: {place} is {shown}. Needed: the text of {', '.join(ROLES)}, and nothing else.")
        said.append((ROLES[role], text_field(where, place, content)))
    first = said.pop(0)[1] if said and said[0][0] == "system" else ""
    if first and system:
        raise CourseError(f"{where} has a system prompt in {name!r} and one in 'system'. Keep one of them.")
    roles = [role for role, _ in said]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise CourseError(
            f"{where}: {name!r} has the turns {reprlib.repr(roles)}. Needed: user, assistant, user, …, assistant."
        )
    texts = [text for _, text in said]
    *history, (question, answer) = zip(texts[::2], texts[1::2], strict=True)
    return {"instruction": question, "output": answer, "history": list(map(list, history)), "system": first or system}


def _before(where: str, fields: dict[str, Any]) -> str:
    """The system prompt and the earlier turns as text that goes before the instruction; "" without them."""
    system = text_field(where, "system", fields.get("system") or "")
    history = fields.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise CourseError(f"{where}: 'history' is {reprlib.repr(history)}, not a list of [question, answer].")
    text = f"{system}\n\n" if system else ""
    for question, answer in history:
        question, answer = text_field(where, "history", question), text_field(where, "history", answer)
        text += f"{question}\n\n### Response:\n{answer}\n\n### Instruction:\n"
    return text


def text_field(where: str, name: str, value: Any) -> str:
    """`value` where it is a string that can be encoded. Raises CourseError otherwise, with `where` and the field."""
    if not isinstance(value, str):
        shown = reprlib.repr(value)
        raise CourseError(f"{where}: {name!r} is {shown}, a {type(value).__name__}. Make it a string.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CourseError(
            f"{where}: {name!r} holds half a character ({value[error.start]!r}, position {error.start + 1}), as a cut "
            f"emoji leaves it. Remove it or leave the row out."
        ) from None
    return value


def read_text(path: Path) -> str:
    """A file's text. Raises CourseError when there is no file, it may not be read, or it is not UTF-8."""
    if not path.is_file():
        raise CourseError(f"{path} is {'a folder' if path.is_dir() else 'missing'}. Give one file.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise CourseError(f"{path} is not UTF-8 text: {byte}. Save it again as UTF-8.") from None
    except OSError as error:
        raise CourseError(f"{path} can't be read: {error.strerror or error}. Give a file you may read.") from None


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def parse(text: str, where: str | Path, line: int = 0) -> Any:
    """The value of a JSON text: a whole file, or the given line of one.

    Raises CourseError: it is not JSON, a field stands twice, a number is too long or brackets lie too deep; the message
        begins with `where` and, in a list, has the row.
    """
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        row = f", row {_bad_row(text)}" if not line and text.lstrip().startswith("[") else ""
        if isinstance(error, json.JSONDecodeError):
            place = f"line {line or error.lineno}, column {error.colno}"
            reason = f"is not valid JSON: {error.msg} ({place}). It may be cut short."
        elif isinstance(error, RecursionError):
            reason = "has too many brackets inside each other."
        else:
            reason = f"can't be read: {str(error).partition(';')[0]}."
        raise CourseError(f"{where}{row} {reason} Correct it, or fetch it again.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the field {twice!r} stands twice")
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _is_json(text: str) -> bool:
    try:
        DECODER.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _bad_row(text: str) -> int:
    """The number of the first value of a list that can't be read."""
    row, index = 1, text.index("[") + 1
    try:
        while True:
            _, index = DECODER.raw_decode(text, WHITESPACE.match(text, index).end())
            index = text.index(",", index) + 1
            row += 1
    except (ValueError, RecursionError):
        return row


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file. Raises CourseError when it can't be read."""
    import pyarrow.parquet  # slow to import, and only the hub's files need it

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CourseError(f"{path} is not a readable parquet file: {reason} Fetch it again.") from None
