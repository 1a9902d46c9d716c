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

    The inputs follow from the seed, so that the same hand-in gets the same inputs. None takes the grading's seed where
    there is one, else new inputs are drawn.
    """
    seed = os.environ.get(SEED_VARIABLE) if seed is None else seed
    for draw in range(DRAWS):
        if seed is None:
            number = random.SystemRandom().getrandbits(32)
        else:
            number = int.from_bytes(hashlib.sha256(f"{seed} {id} {draw}".encode()).digest()[:4], "big")
        report = check(id, answer, seed=number)
        if not report.passed:
            raise NotSatisfiedError(report)
