"""What grading has found out, on disk: one JSON file a submission, so that a run that was killed goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lorahub_edu.errors import CourseError
from lorahub_edu.results import write_json
from lorahub_grader.split import Result

FORM = 1  # of the files; a file of another form is graded again


@dataclass(frozen=True)
class Outcome:
    """What became of one submission.

    `reason` is empty when everything was graded; else why points are missing: "time", "memory", "processes", "died",
    "unreadable", "protocol: …". `notes` say what the repair did, `outputs` are the cells' by their index, `key` says
    what was graded, `recorded` whether the gradebook has it. `name` is the student's as it was handed in,
    `platform` whose number it begins with: "canvas", "moodle", "" nobody's, None unknown.
    """

    assignment: str
    student: str
    key: str
    points: float
    tests: tuple[Result, ...]
    reason: str = ""
    notes: tuple[str, ...] = ()
    outputs: Mapping[int, Sequence[dict]] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    submitted: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    recorded: bool = False
    name: str = ""
    platform: str | None = None

    @property
    def earned(self) -> float:
        """Points from tests; what a person grades is not in it."""
        return sum(test.earned for test in self.tests)

    def to_json(self) -> dict:
        return {"form": FORM, **asdict(self), "outputs": {str(index): out for index, out in self.outputs.items()}}

    @classmethod
    def from_json(cls, content: dict) -> Outcome:
        if content.pop("form") != FORM:
            raise ValueError("another form")
        tests = tuple(map(Result.from_json, content["tests"]))
        outputs = {int(index): out for index, out in content["outputs"].items()}
        return cls(**content | {"tests": tests, "outputs": outputs, "notes": tuple(content["notes"])})


@dataclass(frozen=True)
class Journal:
    """A folder of outcomes, `ASSIGNMENT/STUDENT.json`."""

    folder: Path

    def path(self, assignment: str, student: str) -> Path:
        return self.folder / assignment / f"{student}.json"

    def find(self, assignment: str, student: str) -> Outcome | None:
        """The kept outcome; None where there is none or it can't be read."""
        try:
            return Outcome.from_json(json.loads(self.path(assignment, student).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self, outcome: Outcome) -> Outcome:
        """Write an outcome, whole or not at all."""
        write_json(self.path(outcome.assignment, outcome.student), outcome.to_json())
        return outcome

    def mark_recorded(self, outcome: Outcome) -> Outcome:
        return self.keep(replace(outcome, recorded=True))

    def all(self, assignment: str) -> list[Outcome]:
        """Every kept outcome of an assignment, by student. Raises CourseError: nothing has been graded."""
        students = sorted(path.stem for path in (self.folder / assignment).glob("*.json"))
        found = [outcome for student in students if (outcome := self.find(assignment, student)) is not None]
        if not found:
            raise CourseError(
                f"No submission of {assignment!r} has been graded here ({self.folder}): lorahub-edu grade first."
            )
        return found
