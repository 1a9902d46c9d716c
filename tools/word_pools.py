"""The course's word lists, and which words the modules may train on."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lorahub_edu.errors import CourseError

TRAINING_SHARE = 0.55  # of all words and numbers; the rest is held out for tests and for target tasks

_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_ONES += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


@cache
def load(name: str) -> Any:
    """One word list: rows of forms, or groups of words (sources and licences: lorahub_edu/data/SOURCES.md)."""
    return json.loads((Path(__file__).parent / "words" / f"{name}.json").read_text(encoding="utf-8"))


def fraction(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


@cache
def _partners() -> dict[str, str]:
    """The word whose hash decides for both words of an antonym pair: else "hot" trains what "cold" tests."""
    return {word: min(pair) for pair in load("antonyms") for word in pair}


def is_training(word: str) -> bool:
    """True if modules may train on `word`; False if it is held out for tests and target tasks."""
    return fraction(f"pool/{_partners().get(word, word)}") < TRAINING_SHARE


@cache
def words() -> tuple[str, ...]:
    """All single words in small letters: verbs, nouns, adjectives, antonyms, categories, sentiment words, sorted."""
    found = {row[0] for name in ("verbs", "nouns", "adjectives") for row in load(name)}
    found.update(word for pair in load("antonyms") for word in pair)
    found.update(word for name in ("categories", "sentiment") for group in load(name).values() for word in group)
    return tuple(sorted(found))


def pool(candidates: Sequence[str], training: bool) -> list[str]:
    """Those of `candidates` that belong to the training words (True) or to the held-out words (False)."""
    return [word for word in candidates if is_training(word) == training]


def in_words(number: int) -> str:
    """A number from 0 to 999 in words, without "and" and hyphens: 342 is "three hundred forty two".

    Raises:
        CourseError: the number is out of that range.
    """
    if not 0 <= number <= 999:
        raise CourseError(f"{number} is not between 0 and 999. Give a number in that range.")
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f" {_ONES[number % 10]}" if number % 10 else "")
    return f"{_ONES[number // 100]} hundred" + (f" {in_words(number % 100)}" if number % 100 else "")


def expressions(count: int) -> dict[str, bool]:
    """Different True/False expressions of two to four terms with and, or, not and some brackets, half of them true.

    Args:
        count: how many (an even number).

    Returns:
        Each expression with its value by Python's rules.
    """
    rng = random.Random("expressions")
    found: dict[bool, dict[str, bool]] = {True: {}, False: {}}
    while min(map(len, found.values())) < count // 2:
        text = _expression(rng, rng.choice((2, 3, 4)))
        value = bool(eval(text, {"__builtins__": {}}))  # safe: made here of True, False, and, or, not and brackets
        if len(found[value]) < count // 2:
            found[value][text] = value
    return found[True] | found[False]


def _expression(rng: random.Random, terms: int) -> str:
    parts = [("not " if rng.random() < 0.3 else "") + rng.choice(("True", "False")) for _ in range(terms)]
    joins = [rng.choice(("and", "or")) for _ in range(terms - 1)]
    start = rng.randrange(terms - 1) if terms > 2 and rng.random() < 0.5 else None
    text = ""
    for index, part in enumerate(parts):
        opening = "(" if index == start else ""
        closing = ")" if start is not None and index == start + 1 else ""
        text += f"{opening}{part}{closing}" + (f" {joins[index]} " if index < terms - 1 else "")
    return text
