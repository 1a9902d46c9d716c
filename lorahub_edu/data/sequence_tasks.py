"""Tasks over short phrases of words, made by code from the shipped word lists: narrow, exact, and new to a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lorahub_edu.data import word_pools
from lorahub_edu.data.alpaca import Example, format_prompt
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.errors import CourseError, near_matches

LENGTHS = (4, 5, 6, 7)  # words in a phrase, each equally often
VOWELS = "aeiou"


@dataclass(frozen=True)
class SequenceTask:
    """What is asked of a phrase, and how code answers it."""

    name: str
    instruction: str
    solve: Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Split:
    """A task's rows in three parts that share no phrase: to train on, to settle settings on, to report on."""

    train: tuple[Example, ...]
    settling: tuple[Example, ...]
    validation: tuple[Example, ...]


def _pig_latin(word: str) -> str:
    """A word with its leading consonants moved to its end and "ay" after them; "way" after one that needs no move."""
    start = next((place for place, letter in enumerate(word) if letter in VOWELS), 0)
    return word + "way" if start == 0 else word[start:] + word[:start] + "ay"


TASKS = {
    task.name: task
    for task in (
        SequenceTask("reverse", "Reverse the order of the words.", lambda words: " ".join(reversed(words))),
        SequenceTask(
            "capitals",
            "Write every second word in capitals.",
            lambda words: " ".join(word.upper() if place % 2 else word for place, word in enumerate(words)),
        ),
        SequenceTask(
            "lengths", "Count the letters of each word.", lambda words: " ".join(str(len(word)) for word in words)
        ),
        SequenceTask("sort", "Sort the words alphabetically.", lambda words: " ".join(sorted(words))),
        SequenceTask("pig_latin", "Translate to pig latin.", lambda words: " ".join(map(_pig_latin, words))),
    )
}


def get(name: str) -> SequenceTask:
    """The task of that name.

    Raises:
        CourseError: there is none.
    """
    if name not in TASKS:
        raise CourseError(f"There is no task {name!r} over phrases. {near_matches(name, TASKS)}")
    return TASKS[name]


def split(name: str, *, train: int = 1600, settling: int = 128, validation: int = 256, seed: int = 0) -> Split:
    """A task's rows; the same seed gives the same rows, and more rows to train on leave the other parts as they are.

    Args:
        name: a key of `TASKS`.
        train, settling, validation: rows in each part.
        seed: of the phrases.

    Returns:
        The three parts; no phrase stands in two of them, or twice in one.

    Raises:
        CourseError: there is no such task, or a size is below 1.
    """
    task = get(name)
    if min(train, settling, validation) < 1:
        raise CourseError(f"{train} train, {settling} settling, {validation} validation rows: take at least 1 of each.")
    phrases = word_pools.phrases(f"sequence/{name}/{seed}", word_pools.words(), LENGTHS, train + settling + validation)
    rows = [Example(task.instruction, " ".join(phrase), task.solve(phrase)) for phrase in phrases]
    held = validation + settling  # drawn first, so that they do not depend on how many rows are trained on
    return Split(tuple(rows[held:]), tuple(rows[validation:held]), tuple(rows[:validation]))


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example]) -> list[PromptedRow]:
    """Rows in the course's prompt as token ids: the loss is on the answer and the end token alone.

    Args:
        tokenizer: the model's; needs an end-of-sequence token.
        rows: of one task or of several.

    Returns:
        The encoded rows, in their order. Prompt and answer are tokenised apart, as in `alpaca.encode`.
    """
    prompts = tokenizer([format_prompt(row) for row in rows], add_special_tokens=True).input_ids
    answers = tokenizer([row.output for row in rows], add_special_tokens=False).input_ids
    return [
        PromptedRow(list(prompt), [*answer, tokenizer.eos_token_id])
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
