"""Predictions: a number or a letter that a learner writes down before a run, which then explains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lorahub_checks.properties import Property, equals, holds


def choice(answer: object, right: str, mistakes: Mapping[str, str]) -> Iterator[Property]:
    """The properties of a letter chosen from several.

    Args:
        answer: the learner's, in either case; brackets and dots around it don't matter. None is an empty place.
        right: the right letter.
        mistakes: what each other letter overlooks, in words.
    Raises NotImplementedError: the answer is None.
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
    """The property of a number written down by a learner.

    Args:
        answer: the learner's; None is an empty place.
        name: what must hold, in words that don't give the number away.
        expected: the right one.
        mistakes: what each plausible mistake would have given, by the words that describe the mistake.
        rtol: relative tolerance.
    Raises NotImplementedError: the answer is None.
    """
    if answer is None:
        raise NotImplementedError
    found = equals(name, answer, expected, misconceptions=mistakes, rtol=rtol)
    # The reference is the answer: it must not stand in the feedback.
    yield Property(name, found.passed, found.seen, found.misconception)
