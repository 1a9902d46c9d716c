"""What a graded test calls: the same specification as the instant check, on inputs that the learner does not see."""

from __future__ import annotations

import hashlib
import os
import random
from typing import Any

from lorahub_edu.show.check import check

SEED_VARIABLE = "LORAHUB_EDU_GRADING_SEED"
DRAWS = 3


class NotSatisfiedError(AssertionError):
    """An answer does not satisfy its specification; `report` says what failed."""

    def __init__(self, report: Any) -> None:
        super().__init__(str(report))
        self.report = report


def require(id: str, answer: object, *, seed: str | None = None) -> None:
    """Raise NotSatisfiedError unless an answer satisfies its specification on `DRAWS` fresh draws.

    The inputs follow from the seed; None takes the grading's seed where there is one, else new inputs are drawn.
    """
    for draw in range(DRAWS):
        report = check(id, answer, seed=_seed(id, draw, seed))
        if not report.passed:
            raise NotSatisfiedError(report)


def _seed(id: str, draw: int, given: str | None) -> int:
    """Follows from the grading's seed, so that the same hand-in gets the same inputs; without one it is drawn."""
    given = os.environ.get(SEED_VARIABLE) if given is None else given
    if given is None:
        return random.SystemRandom().getrandbits(32)
    return int.from_bytes(hashlib.sha256(f"{given} {id} {draw}".encode()).digest()[:4], "big")
