"""The one error type that a learner meets: what was wrong, the value seen, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CourseError(Exception):
    """A problem that the user can act on; the command line prints it without a traceback and exits with 1."""


def near_matches(value: str, known: Iterable[str]) -> str:
    """The phrase "Did you mean …?" with up to three known words close to `value`, else "Known: …" with all of them."""
    known = sorted(set(known))
    close = difflib.get_close_matches(value, known, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(repr(word) for word in close) + "?"
    return "Known: " + ", ".join(repr(word) for word in known) + "." if known else "None is known."
