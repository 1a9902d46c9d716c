"""What grading has found out, on disk: one JSON file a submission, so that a run that was killed goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from lorahub_edu.errors import CourseError
from lorahub_edu.results import write_json
from lorahub_grader.split import Result


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
    recorded: bool = False
    name: str = ""
    platform: str | None = None

    @property
    def earned(self) -> float:
        """Points from tests; what a person grades is not in it."""
        return sum(test.earned for test in self.tests)


KEPT = TypeAdapter(Outcome)


@dataclass(frozen=True)
class Journal:
    """A folder of outcomes, `ASSIGNMENT/STUDENT.json`."""

    folder: Path

    def path(self, assignment: str, student: str) -> Path:
        return self.folder / assignment / f"{student}.json"

    def find(self, assignment: str, student: str) -> Outcome | None:
        """The kept outcome; None where there is none or it can't be read."""
        try:
            return KEPT.validate_json(self.path(assignment, student).read_bytes())
        except (OSError, ValueError):
            return None

    def keep(self, outcome: Outcome) -> Outcome:
        """Write an outcome, whole or not at all."""
        write_json(self.path(outcome.assignment, outcome.student), asdict(outcome))
        return outcome

    def all(self, assignment: str) -> list[Outcome]:
        """Every kept outcome of an assignment, by student. Raises CourseError: nothing has been graded."""
        students = sorted(path.stem for path in (self.folder / assignment).glob("*.json"))
        found = [outcome for student in students if (outcome := self.find(assignment, student)) is not None]
        if not found:
            raise CourseError(
                f"No submission of {assignment!r} has been graded here ({self.folder}): lorahub-edu grade first."
            )
        return found
