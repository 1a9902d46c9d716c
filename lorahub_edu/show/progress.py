"""What a learner has done so far, in one file on their own machine: lessons run, checks passed, points.

Nothing is sent anywhere and there is no account; deleting the file is all it takes to begin anew. A file that can't be
read or written never stands in a lesson's way.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lorahub_edu import results
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets

VARIABLE = "LORAHUB_EDU_PROGRESS"
OFF = "off"
FILE, DAMAGED = "progress.json", "progress.damaged.json"
LOCK_SECONDS = 2.0


@dataclass(frozen=True)
class Progress:
    """What was done.

    Attributes:
        lessons: the day a lesson was last run to its end, by its number ("01").
        checks: the day a check was first passed, by its id ("01.2").
        points: points earned and points there are in an assignment's tests, by its name.
    """

    lessons: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, str] = field(default_factory=dict)
    points: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def path() -> Path:
    """Where progress is kept; the file needn't exist yet."""
    return assets.home() / FILE


def kept() -> bool:
    """Whether progress is kept at all: not where LORAHUB_EDU_PROGRESS is "off"."""
    return os.environ.get(VARIABLE, "").lower() != OFF


def read() -> Progress:
    """What was done so far; nothing where none is kept, or where the file can't be read."""
    if not kept():
        return Progress()
    try:
        return _parsed(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Progress()


def lesson_run(number: str) -> None:
    """Note that a lesson, by its two digits ("01"), was run to its end today."""
    _change(lambda done: asdict(done) | {"lessons": {**done.lessons, number: _today()}})


def check_passed(id: str) -> None:
    """Note that a check, for example "01.2", was passed; the first day stays."""
    if id not in read().checks:
        _change(lambda done: asdict(done) | {"checks": {**done.checks, id: _today()}})


def graded(outcomes: Sequence[Any]) -> None:
    """Note the points of one learner's assignments; they replace those of an earlier grading.

    Outcomes of several learners are a class's, and nothing is noted.
    """
    if len({outcome.student for outcome in outcomes}) == 1:
        points = {o.assignment: (o.earned, sum(test.points for test in o.tests)) for o in outcomes}
        _change(lambda done: asdict(done) | {"points": {**done.points, **points}})


def _today() -> str:
    return date.today().isoformat()


def _change(change: Callable[[Progress], dict]) -> None:
    """Read, change and write the file while no other process does so; what goes wrong here is not worth a message."""
    if not kept():
        return
    with contextlib.suppress(OSError, CourseError, Timeout):
        path().parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path().with_suffix(".lock"), timeout=LOCK_SECONDS):
            try:
                done = _parsed(path().read_text(encoding="utf-8"))
            except FileNotFoundError:
                done = Progress()
            except ValueError:  # kept aside, so that nothing is lost that a person could still read
                os.replace(path(), path().with_name(DAMAGED))
                done = Progress()
            results.write_json(path(), change(done))


def _parsed(text: str) -> Progress:
    """The progress that a file's text holds.

    Raises:
        ValueError: it is not in the form that is written here.
    """
    content = json.loads(text)
    try:
        lessons, checks, points = content["lessons"], content["checks"], content["points"]
        for days in (lessons, checks):
            if not all(isinstance(part, str) for pair in days.items() for part in pair):
                raise ValueError("days by name are expected")
        return Progress(lessons, checks, {name: (float(a), float(b)) for name, (a, b) in points.items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a file of progress: {error!r}") from None
