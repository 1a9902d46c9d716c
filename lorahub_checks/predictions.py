"""Predictions: a number or a letter that a learner writes down before a run, which then explains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lorahub_checks.properties import Property, equals, holds


def choice(answer: object, right: str, mistakes: Mapping[str, str]) -> Iterator[Property]:
    """The properties of a letter chosen from several; in either case, and brackets and dots don't matter.

    `mistakes` say what each other letter overlooks. Raises NotImplementedError for None, an empty place.
    """
    if answer is None:
        raise NotImplementedError
    letters = sorted({right, *mistakes})
    letter = answer.strip(" ().").upper() if isinstance(answer, str) else answer
    known = letter in letters
    yield holds(f"one of the letters {', '.join(letters)}", known, answer, 'write one letter in quotes, such as "A"')
    if known:
        yield holds("the choice is right", letter == right, letter, mistakes.get(letter, ""))


def number(
    answer: object, name: str, expected: float, mistakes: Mapping[str, float], rtol: float = 1e-6
) -> Iterator[Property]:
    """The property of a number written down by a learner; `name` must not give it away.

    `mistakes` are what each would have given, by the words for it. Raises NotImplementedError for None, an empty place.
    """
    if answer is None:
        raise NotImplementedError
    found = equals(name, answer, expected, misconceptions=mistakes, rtol=rtol)
    # The reference is the answer: it must not stand in the feedback.
    yield Property(name, found.passed, found.seen, found.misconception)
