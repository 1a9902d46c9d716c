"""Writes the course's word tasks, made from the word lists in tools/words/.

    python tools/build_tasks.py

lorahub_edu/data/tasks.jsonl gets a task a line, lorahub_edu/data/words.json the words that phrases are drawn from.
The adapters of the zoo and every published number belong to exactly these rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from word_pools import fraction, words
from word_rows import Row
from word_tasks import WORD_TASKS

FOLDER = Path(__file__).resolve().parent.parent / "lorahub_edu" / "data"
TRAIN_ITEMS, TEST_ITEMS = 800, 200  # at most
POOL_SHARE, POOL_KEYS = 0.4, 30  # of a target's words (and at least so many) for the few examples; the rest is its test


def task_record(name: str) -> dict[str, object]:
    """A task as its line of the file has it; `train` and `test` are pairs of input and output.

    A module trains on the training words and is tested on the held-out ones. Every item of a settling or target task
    is made of held-out words, so no module has seen its input. Where the world has few items (countries, adjectives
    with a superlative) a test has fewer than 100.
    """
    task = WORD_TASKS[name]
    held_out = task.rows(False)
    if task.kind == "module":
        train, test = task.rows(True), held_out
    else:
        keys = _pool_keys(held_out)
        train = [row for row in held_out if row.key in keys]
        test = [row for row in held_out if row.key not in keys]
    return {
        "name": name,
        "kind": task.kind,
        "instructions": task.instructions,
        "train": _ordered(name, train, TRAIN_ITEMS),
        "test": _ordered(name, test, TEST_ITEMS),
    }


def _pool_keys(rows: Sequence[Row]) -> set[str]:
    """The keys whose rows a target's examples are drawn from; of two answers, each gives its share."""
    outputs = {row.output for row in rows}
    groups = [rows] if len(outputs) > 2 else [[row for row in rows if row.output == output] for output in outputs]
    pool: set[str] = set()
    for group in groups:
        keys = sorted({row.key for row in group}, key=lambda key: fraction(f"split/{key}"))
        pool.update(keys[: max(POOL_KEYS // len(groups), int(POOL_SHARE * len(keys)))])
    return pool


def _ordered(name: str, rows: Sequence[Row], most: int) -> list[tuple[str, str]]:
    """At most `most` rows, in an order that depends on each input alone and not on the lists'."""
    rows = sorted(rows, key=lambda row: fraction(f"order/{name}/{row.input}"))
    return [(row.input, row.output) for row in rows[:most]]


def contents() -> dict[str, str]:
    """The text of each file by its name."""

    def dump(value: object) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    return {
        "tasks.jsonl": "".join(dump(task_record(name)) + "\n" for name in WORD_TASKS),
        "words.json": "[\n" + ",\n".join(map(dump, words())) + "\n]\n",
    }


def main() -> None:
    for name, text in contents().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"{name}: {len(text):,} characters")


if __name__ == "__main__":
    main()
