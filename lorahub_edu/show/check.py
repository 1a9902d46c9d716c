"""Instant feedback: `check("01.3", my_function)` says what holds, what doesn't, and what was probably meant.

What must hold stands in another package, `lorahub_checks`. It is found by name, because answers are graded without it.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

CHECKS = "lorahub_checks"
SECONDS = 20.0


class NothingChecked(str):
    """What `check` returns where there are no checks: why, in place of a report."""

    passed, properties, hint = False, (), ""
    __repr__ = str.__str__


ASSIGNMENT = "assignment "


def check(id: str, answer: object, seed: int | None = None, seconds: float = SECONDS, kept: str = ASSIGNMENT) -> Any:
    """Check an answer against everything that a right one must satisfy, on freshly drawn inputs, or those of a seed.

    The answer gets copies of the inputs, and each of its calls so many seconds. Jupyter renders the report; see
    `lorahub_checks.problems.Report`. `kept` stands before the id in the progress file: a lesson and an assignment keep
    theirs apart. Raises CourseError where there is no such problem.
    """
    package = importlib.util.find_spec(CHECKS)
    if package is None or package.origin is None:  # hidden from answers while they are graded
        return NothingChecked(f"{id}: the checks are not installed here, so nothing was checked")
    return importlib.import_module(f"{CHECKS}.problems").check(id, answer, seed, seconds, kept + id)


def check_in_lesson(id: str, answer: object) -> Any:
    """The same in a lesson, whose progress is its own."""
    return check(id, answer, kept="")
