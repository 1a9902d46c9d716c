"""Tasks over short phrases of words, made and answered by code: narrow, exact, and new to a model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from transformers import PreTrainedTokenizerBase

from lorahub_edu.data.alpaca import Example, format_prompt
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.errors import CourseError, near_matches

LENGTHS = (4, 5, 6, 7)  # words in a phrase, each equally often


@dataclass(frozen=True)
class Parts:
    """A task's rows in three parts that share no phrase: to train on, to settle settings on, to report on."""

    train: tuple[Example, ...]
    settling: tuple[Example, ...]
    validation: tuple[Example, ...]


def _pig_latin(word: str) -> str:
    """A word with its leading consonants moved to its end and "ay" after them; "way" after one that needs no move."""
    start = next((index for index, letter in enumerate(word) if letter in "aeiou"), 0)
    return word + "way" if start == 0 else word[start:] + word[:start] + "ay"


def _every_second_in_capitals(words: Sequence[str]) -> str:
    return " ".join(word.upper() if index % 2 else word for index, word in enumerate(words))


# By name: what is asked of a phrase, and how code answers it.
TASKS: dict[str, tuple[str, Callable[[Sequence[str]], str]]] = {
    "reverse": ("Reverse the order of the words.", lambda words: " ".join(reversed(words))),
    "capitals": ("Write every second word in capitals.", _every_second_in_capitals),
    "lengths": ("Count the letters of each word.", lambda words: " ".join(str(len(w)) for w in words)),
    "sort": ("Sort the words alphabetically.", lambda words: " ".join(sorted(words))),
    "pig_latin": ("Translate to pig latin.", lambda words: " ".join(map(_pig_latin, words))),
}


@cache
def words() -> tuple[str, ...]:
    """The shipped single words in small letters, sorted (sources: SOURCES.md)."""
    return tuple(json.loads((resources.files(__package__) / "words.json").read_text(encoding="utf-8")))


def phrases(seed: str, words: Sequence[str], lengths: Sequence[int], count: int) -> list[tuple[str, ...]]:
    """`count` random lists of different words, no list twice; each of the `lengths` is drawn equally often."""
    rng = random.Random(f"phrases/{seed}")
    drawn: dict[tuple[str, ...], None] = {}
    while len(drawn) < count:
        drawn[tuple(rng.sample(words, lengths[len(drawn) % len(lengths)]))] = None
    return list(drawn)


def split(name: str, *, train: int = 1600, settling: int = 128, validation: int = 256, seed: int = 0) -> Parts:
    """A task's rows in parts of these sizes. No phrase stands in two parts, or twice in one.

    The same seed gives the same rows. More rows to train on leave the other parts as they are.
    Raises CourseError: there is no such task, or a size is below 1.
    """
    if name not in TASKS:
        raise CourseError(f"There is no task {name!r} over phrases. {near_matches(name, TASKS)}")
    instruction, solve = TASKS[name]
    if min(train, settling, validation) < 1:
        raise CourseError(f"{train} train, {settling} settling, {validation} validation rows: take at least 1 of each.")
    drawn = phrases(f"sequence/{name}/{seed}", words(), LENGTHS, train + settling + validation)
    rows = tuple(Example(instruction, " ".join(phrase), solve(phrase)) for phrase in drawn)
    held = validation + settling  # drawn first, so that they do not depend on how many rows are trained on
    return Parts(rows[held:], rows[validation:held], rows[:validation])


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example]) -> list[PromptedRow]:
    """Rows in the course's prompt as token ids; prompt and answer are tokenised apart, as in `alpaca.encode_rows`."""
    prompts = tokenizer([format_prompt(row) for row in rows], add_special_tokens=True).input_ids
    answers = tokenizer([row.output for row in rows], add_special_tokens=False).input_ids
    return [
        PromptedRow(prompt, [*answer, tokenizer.eos_token_id]) for prompt, answer in zip(prompts, answers, strict=True)
    ]
