"""Checks of what stands in a recipe's file: each takes where a value stands and the value, and gives the value back.

What is wrong ends in a CourseError that names the place, the value seen, and what is known or needed there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from lorahub_edu.errors import CourseError, near_matches


def mapping(where: str, content: object, known: object) -> dict:
    """A copy of a mapping all of whose keys are known (None: any)."""
    if not isinstance(content, dict):
        raise CourseError(f"{where} must be a list of keys with their values, but it is {content!r:.80}.")
    for key in content if known is not None else ():
        if key not in known:
            raise CourseError(f"{where} has an unknown key {str(key)!r}. {near_matches(str(key), known)}")
    return dict(content)


def section(given: Mapping, name: str, keys: Mapping[str, Callable], needed: tuple[str, ...] = ()) -> dict:
    """A section with every value checked."""
    content = mapping(name, given.get(name, {}), keys)
    for key in needed:
        if key not in content:
            raise CourseError(f"{name}.{key} is missing.")
    return {key: keys[key](f"{name}.{key}", value) for key, value in content.items()}


def text(where: str, value: object) -> str:
    """A word or a sentence."""
    if not isinstance(value, str) or not value.strip():
        raise CourseError(f"{where} must be a word or a sentence, but it is {value!r:.80}.")
    return value.strip()


def flag(where: str, value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise CourseError(f"{where} must be true or false, but it is {value!r:.80}.")
    return value


def one_of(*known: str) -> Callable[[str, object], str]:
    """One of the known words."""

    def check(where: str, value: object) -> str:
        if value not in known:
            raise CourseError(f"{where} is {value!r:.80}. {near_matches(str(value), known)}")
        return str(value)

    return check


def number(where: str, value: object) -> float:
    """A number, also one that YAML took for a word, as it does with 3e-4."""
    try:
        found = float(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise CourseError(f"{where} must be a number, but it is {value!r:.80}.")
    return found


def at_least(lowest: float) -> Callable[[str, object], float]:
    """At least `lowest`; a whole number if `lowest` is one."""

    def check(where: str, value: object) -> float:
        found = number(where, value)
        if isinstance(lowest, int) and not isinstance(found, int):
            raise CourseError(f"{where} must be a whole number, but it is {value!r:.80}.")
        if found < lowest:
            raise CourseError(f"{where} must be at least {lowest}, but it is {value!r:.80}.")
        return found

    return check


def above(bound: float) -> Callable[[str, object], float]:
    """A number above a bound."""

    def check(where: str, value: object) -> float:
        found = number(where, value)
        if not found > bound:
            raise CourseError(f"{where} must be above {bound}, but it is {value!r:.80}.")
        return float(found)

    return check
