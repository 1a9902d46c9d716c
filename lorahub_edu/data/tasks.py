"""Short tasks on real words: some to train modules on, others to compose them for, and the user's own."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lorahub_edu.data.task_recipes import RECIPES
from lorahub_edu.data.task_rows import Row
from lorahub_edu.data.word_pools import fraction
from lorahub_edu.errors import CourseError, near_matches

KINDS = ("module", "settling", "target")
TRAIN_ITEMS, TEST_ITEMS = 800, 200  # at most
POOL_SHARE, POOL_KEYS = 0.4, 30  # of a target's words (and at least so many) for the few examples; the rest is its test


@dataclass(frozen=True)
class Item:
    """One question, without its instruction, and its answer."""

    input: str
    output: str


@dataclass(frozen=True)
class Task:
    """A task; `kind` is "module", "settling" or "target", or "own" for a file of the user's.

    Attributes:
        instructions: wordings of the same request; the first is the default.
        train: a module's training items; for a target the pool that a few examples are drawn from.
        test: items with other inputs than those of `train`.
    """

    name: str
    kind: str
    instructions: tuple[str, ...]
    train: tuple[Item, ...]
    test: tuple[Item, ...]


def names(kind: str | None = None) -> list[str]:
    """The names of the built-in tasks of one kind ("module", "settling", "target"), or of all.

    Raises:
        CourseError: there is no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise CourseError(f"There is no kind of task {kind!r}. {near_matches(kind, KINDS)}")
    return [name for name, recipe in RECIPES.items() if kind in (None, recipe.kind)]


@cache
def get(name: str) -> Task:
    """A built-in task, the same items on every machine.

    A module trains on the training words and is tested on the held-out ones. Every item of a settling or target task
    is made of held-out words, so no module has seen its input. Where the world has few items (countries, adjectives
    with a superlative) a test has fewer than 100.

    Args:
        name: one of `names()`.

    Raises:
        CourseError: there is no such task.
    """
    if name not in RECIPES:
        raise CourseError(f"There is no task {name!r}. {near_matches(name, RECIPES)}")
    recipe = RECIPES[name]
    held_out = recipe.rows(False)
    if recipe.kind == "module":
        train, test = recipe.rows(True), held_out
    else:
        pool = _pool_keys(held_out)
        train = [row for row in held_out if row.key in pool]
        test = [row for row in held_out if row.key not in pool]
    return Task(
        name, recipe.kind, recipe.instructions, _chosen(name, train, TRAIN_ITEMS), _chosen(name, test, TEST_ITEMS)
    )


def _pool_keys(rows: Sequence[Row]) -> set[str]:
    """The keys whose rows a target's examples are drawn from; of two answers, each gives its share."""
    outputs = {row.output for row in rows}
    groups = [rows] if len(outputs) > 2 else [[row for row in rows if row.output == output] for output in outputs]
    pool: set[str] = set()
    for group in groups:
        keys = sorted({row.key for row in group}, key=lambda key: fraction(f"split/{key}"))
        pool.update(keys[: max(POOL_KEYS // len(groups), int(POOL_SHARE * len(keys)))])
    return pool


def _chosen(name: str, rows: Sequence[Row], most: int) -> tuple[Item, ...]:
    """At most `most` items, in an order that depends on each input alone and not on the lists'."""
    ordered = sorted(rows, key=lambda row: fraction(f"order/{name}/{row.input}"))
    return tuple(Item(row.input, row.output) for row in ordered[:most])


def draw(task: Task, seed: int, count: int = 5) -> list[Item]:
    """A few different items of `task.train`, the same for the same seed.

    Args:
        task: the task.
        seed: seed of the draw.
        count: how many items.

    Raises:
        CourseError: the task has fewer training items.
    """
    if not 0 <= count <= len(task.train):
        raise CourseError(f"{count} items can't be drawn from the {len(task.train)} of {task.name!r}. Ask for fewer.")
    return random.Random(f"{task.name}/{seed}").sample(task.train, count)


def prompt(instruction: str, input: str, shots: Sequence[Item] = ()) -> str:
    """The text that stands before an answer; the answer follows after one space.

    Args:
        instruction: what to do.
        input: the question.
        shots: solved items that are shown before it.

    Returns:
        Every shot as instruction, input and output with an empty line after it, then the question up to "Output:".
    """
    solved = "".join(f"{instruction}\nInput: {shot.input}\nOutput: {shot.output}\n\n" for shot in shots)
    return f"{solved}{instruction}\nInput: {input}\nOutput:"


def read(path: str | Path) -> Task:
    """A task from a file of the user's own.

    Args:
        path: a JSONL file: one object a line with "input" and "output", in all lines the same "instruction" or none
            at all, and, in lines that are kept for the test, "split": "test".

    Returns:
        A task of kind "own", named after the file; its instruction is "" where the file has none.

    Raises:
        CourseError: the file can't be read, a line is not right (its number is given), the instructions differ, or
            no line is left for training.
    """
    path = Path(path)
    if not path.is_file():
        raise CourseError(f"{path} is {'a folder' if path.is_dir() else 'missing'}. Give one JSONL file of items.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise CourseError(f"{path} is not UTF-8 text. Save it again as UTF-8.") from None
    records = [(number, _record(path, number, line)) for number, line in enumerate(lines, start=1) if line.strip()]
    wordings: dict[str, int] = {}
    for number, record in records:
        wordings.setdefault(record.get("instruction", ""), number)
    if len(wordings) > 1:
        found = ", ".join(f"line {number}: {wording!r:.60}" for wording, number in list(wordings.items())[:3])
        raise CourseError(f"{path} has {len(wordings)} different instructions ({found}). Keep one task a file.")
    parts: dict[str, list[Item]] = {"train": [], "test": []}
    for _, record in records:
        parts[record.get("split", "train")].append(Item(record.get("input", ""), record["output"]))
    if not parts["train"]:
        raise CourseError(f'{path} has no training item. Add lines such as {{"input": "cold", "output": "hot"}}.')
    return Task(path.stem, "own", tuple(wordings), tuple(parts["train"]), tuple(parts["test"]))


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    """One line as an object with the right fields; raises CourseError with the line's number."""
    where = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise CourseError(f"{where} is not valid JSON: {error.msg} (column {error.colno}). Correct it.") from None
    if not isinstance(record, dict):
        raise CourseError(f'{where} is {record!r:.60}, not an object. Write {{"input": ..., "output": ...}}.')
    for field in ("instruction", "input", "output"):
        if not isinstance(record.get(field, ""), str):
            raise CourseError(f"{where}: {field!r} is {record[field]!r:.60}. Make it a string.")
    if not record.get("output", "").strip():
        raise CourseError(f"{where} has no output. Fill it in or leave the line out.")
    if record.get("split", "train") not in ("train", "test"):
        raise CourseError(f'{where}: \'split\' is {record["split"]!r:.60}. Write "train" or "test".')
    return record
