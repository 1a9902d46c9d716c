"""Short tasks on real words: modules are trained on some and composed for others. A user's own task is a file."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from lorahub_edu.data.rows import numbered_lines, parse, read_text, text_field
from lorahub_edu.errors import CourseError, near_matches

logger = logging.getLogger(__name__)

KINDS = ("module", "settling", "target")
FIELDS = ("instruction", "input", "output", "split")  # of a user's own file


@dataclass(frozen=True)
class Item:
    """One question, without its instruction, and its answer."""

    input: str
    output: str


@dataclass(frozen=True)
class Task:
    """Items to train and test on, with other inputs in the test than in the training part."""

    name: str
    kind: str  # "module", "settling" or "target"; "own" for a file of the user's, "bbh" for BIG-Bench Hard
    instructions: tuple[str, ...]  # wordings of the same request; the first is the default
    train: tuple[Item, ...]  # a module's training items; for a target the pool that a few examples are drawn from
    test: tuple[Item, ...]


@cache
def _records() -> dict[str, dict[str, Any]]:
    """The shipped tasks by name, as tools/build_tasks.py wrote them: `train` and `test` are pairs."""
    text = (resources.files(__package__) / "tasks.jsonl").read_text(encoding="utf-8")
    return {record["name"]: record for record in map(json.loads, text.splitlines())}


def names(kind: str | None = None) -> list[str]:
    """The names of the built-in tasks of one of the `KINDS`, or of all. Raises CourseError for another kind."""
    if kind is not None and kind not in KINDS:
        raise CourseError(f"There is no kind of task {kind!r}. {near_matches(kind, KINDS)}")
    return [name for name, record in _records().items() if kind in (None, record["kind"])]


@cache
def get(name: str) -> Task:
    """A built-in task, the same items on every machine.

    A module trains on the training words and is tested on the held-out words. Every item of a settling or target task
    is made of held-out words, so no module has seen its input. Raises CourseError when there is no such task.
    """
    if name not in _records():
        raise CourseError(f"There is no task {name!r}. {near_matches(name, _records())}")
    record = _records()[name]
    train, test = (tuple(Item(*pair) for pair in record[part]) for part in ("train", "test"))
    return Task(name, record["kind"], tuple(record["instructions"]), train, test)


def draw(task: Task, seed: int, count: int = 5) -> list[Item]:
    """A few different items of `task.train`, the same for the same seed. Raises CourseError when it has fewer."""
    if not 0 <= count <= len(task.train):
        raise CourseError(f"{count} items can't be drawn from the {len(task.train)} of {task.name!r}. Ask for fewer.")
    return random.Random(f"{task.name}/{seed}").sample(task.train, count)


def prompt(instruction: str, input: str, shots: Sequence[Item] = ()) -> str:
    """The text that stands before an answer; the answer follows after one space.

    Every solved item of `shots` comes first, with its instruction, input and output and an empty line after it.
    """
    solved = "".join(f"{instruction}\nInput: {shot.input}\nOutput: {shot.output}\n\n" for shot in shots)
    return f"{solved}{instruction}\nInput: {input}\nOutput:"


def is_file(task: str) -> bool:
    """Whether a task is a file of the user's own, not a name."""
    return Path(task).suffix == ".jsonl" or Path(task).is_file()


def read(path: str | Path) -> Task:
    """A task from a JSONL file of the user's own, named after the file and of kind "own".

    A line is an object with "input" and "output". All lines have the same "instruction", or none has one: then the
    task's instruction is "". A line with "split": "test" is kept for the test. The log says which fields are not read.
    Raises CourseError: the file can't be read, a line is wrong (the message has its number), the instructions differ,
        or no line is left for training.
    """
    path = Path(path)
    lines = numbered_lines(read_text(path))
    records = [(number, _record(f"{path}, line {number}", number, line)) for number, line in lines]
    wordings: dict[str, int] = {}
    for number, record in records:
        wordings.setdefault(record.get("instruction", ""), number)
    if len(wordings) > 1:
        shown = ", ".join(f"line {number}: {wording!r:.60}" for wording, number in list(wordings.items())[:3])
        raise CourseError(f"{path} has {len(wordings)} different instructions ({shown}). Keep one task a file.")
    for field in sorted({field for _, record in records for field, value in record.items() if value} - {*FIELDS}):
        logger.warning("%s: the field %r is not read.", path.name, field)
    parts: dict[str, list[Item]] = {"train": [], "test": []}
    for _, record in records:
        parts[record.get("split", "train")].append(Item(record.get("input", ""), record["output"]))
    if not parts["train"]:
        raise CourseError(f'{path} has no training item. Add lines such as {{"input": "cold", "output": "hot"}}.')
    return Task(path.stem, "own", tuple(wordings), tuple(parts["train"]), tuple(parts["test"]))


def _record(where: str, number: int, line: str) -> dict[str, Any]:
    """One line as an object with the right fields. Raises CourseError with `where`."""
    record = parse(line, where, number)
    if not isinstance(record, dict):
        raise CourseError(f'{where} is {record!r:.60}, not an object. Write {{"input": ..., "output": ...}}.')
    for field in FIELDS[:3]:
        text_field(where, field, record.get(field, ""))
    if not record.get("output", "").strip():
        raise CourseError(f"{where} has no output. Fill it in or leave the line out.")
    if record.get("split", "train") not in ("train", "test"):
        raise CourseError(f'{where}: \'split\' is {record["split"]!r:.60}. Write "train" or "test".')
    return record
