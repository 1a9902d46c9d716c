"""What a learner has done so far, in one file on their own machine: lessons run, checks passed, points.

Nothing is sent anywhere and there is no account; deleting the file is all it takes to begin anew. A file that can't be
read or written never stands in a lesson's way.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from lorahub_edu import results
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets

VARIABLE = "LORAHUB_EDU_PROGRESS"
OFF = "off"
FILE, DAMAGED = "progress.json", "progress.damaged.json"
LOCK_SECONDS = 2.0


class Progress(BaseModel):
    """What was done: the day of a lesson's last whole run ("01"), of a check's first pass ("01.2"), and points.

    An assignment's points are those earned and those there are in its tests, by its name. A prediction ("06.a") is what
    `predictions.made` gives. A machine, as `results.describe_device` names it, has its seconds for the yardstick.
    """

    model_config = ConfigDict(frozen=True)
    lessons: dict[str, str]
    checks: dict[str, str]
    points: dict[str, tuple[float, float]]
    predictions: dict[str, dict[str, Any]] = {}
    machine: dict[str, float] = {}


NOTHING = Progress(lessons={}, checks={}, points={})


def path() -> Path:
    """Where progress is kept; the file needn't exist yet."""
    return assets.home() / FILE


def kept() -> bool:
    """Whether progress is kept at all: not where LORAHUB_EDU_PROGRESS is "off"."""
    return os.environ.get(VARIABLE, "").lower() != OFF


def read() -> Progress:
    """What was done so far; nothing where none is kept, or where the file can't be read."""
    try:
        return Progress.model_validate_json(path().read_text(encoding="utf-8")) if kept() else NOTHING
    except (OSError, ValueError):
        return NOTHING


def lesson_run(number: str) -> None:
    """Note that a lesson, by its two digits ("01"), was run to its end today."""
    note("lessons", {number: date.today().isoformat()})


def check_passed(id: str) -> None:
    """Note that a check, for example "01.2", was passed; the first day stays."""
    if id not in read().checks:
        note("checks", {id: date.today().isoformat()})


def graded(outcomes: Sequence[Any]) -> None:
    """Note the points of one learner's assignments in place of earlier ones; outcomes of a class are not noted."""
    if len({outcome.student for outcome in outcomes}) == 1:
        points = {o.assignment: (o.earned, sum(test.points for test in o.tests)) for o in outcomes}
        note("points", points)


def note(part: str, entries: dict[str, Any]) -> None:
    """Add entries to a part of `Progress`, in place of earlier ones, while no other process does so.

    What goes wrong is not worth a message.
    """
    if not kept():
        return
    with contextlib.suppress(OSError, CourseError, Timeout):
        path().parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path().with_suffix(".lock"), timeout=LOCK_SECONDS):
            done = read()
            if done == NOTHING and path().exists():  # kept aside: a person could still read what is damaged
                path().read_bytes()  # a file that can't be opened now is not damaged: it stays, and nothing is noted
                os.replace(path(), path().with_name(DAMAGED))
            content = done.model_dump(mode="json")
            content[part] |= entries
            results.write_json(path(), content)
