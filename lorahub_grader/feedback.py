"""What a learner gets back: points, the probable misconception and the next hint, and never a test's source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import jinja2
from nbgrader.api import MissingEntry

from lorahub_grader.assignments import Assignment, Cell
from lorahub_grader.gradebook import Course
from lorahub_grader.journal import Outcome
from lorahub_grader.sandbox.process import explain
from lorahub_grader.split import Result


@dataclass(frozen=True)
class Grades:
    """What the gradebook says of one submission: points and comments by cell, and the points that lateness cost.

    Points are None while a person has to look.
    """

    points: dict[str, float | None] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    penalty: float = 0.0


def write(course: Course, assignment: Assignment, outcomes: Iterable[Outcome]) -> list[Path]:
    """Write a page for each outcome, where nbgrader's release_feedback looks for it."""
    pages = []
    for outcome in outcomes:
        directory = course.api.coursedir
        folder = Path(directory.format_path(directory.feedback_directory, outcome.student, assignment.name))
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / f"{assignment.name}.html"
        page.write_text(render(assignment, outcome, read_grades(course, outcome)), encoding="utf-8")
        pages.append(page)
    return pages


def read_grades(course: Course, outcome: Outcome) -> Grades:
    """The gradebook's grades and comments of a submission; empty where it has none."""
    with course.open() as gradebook:
        try:
            submission = gradebook.find_submission(outcome.assignment, outcome.student)
            notebook = submission.notebooks[0]
        except (MissingEntry, IndexError):
            return Grades()
        points = {
            grade.name: None if grade.needs_manual_grade and grade.manual_score is None else grade.score
            for grade in notebook.grades
        }
        comments = {comment.name: comment.manual_comment or "" for comment in notebook.comments}
        return Grades(points, comments, submission.late_submission_penalty or 0.0)


def render(assignment: Assignment, outcome: Outcome, grades: Grades) -> str:
    """The page: everything a learner or another program wrote is escaped, and no script runs in it."""
    tests = {test.grade_id: test for test in outcome.tests}
    parts, comment = [], ""
    for cell in assignment.cells:
        score = grades.points.get(cell.grade_id)
        if cell.role == "answer":
            comment = grades.comments.get(cell.grade_id, "")
        elif cell.role == "test":
            parts.append(_part(cell, tests[cell.grade_id], score, comment))
        elif cell.role == "manual":
            parts.append(_manual_part(cell, score, grades.comments.get(cell.grade_id, "")))
    return _template().render(
        assignment=assignment.name,
        student=outcome.student,
        submitted=outcome.submitted,
        points=assignment.points,
        score=max(0.0, sum(part["score"] for part in parts) - grades.penalty),
        penalty=grades.penalty,
        open=sum(part["state"] == "open" for part in parts),
        reason=explain(outcome.reason) if outcome.reason else "",
        notes=outcome.notes,
        parts=parts,
        answers=[_answer(cell, outcome) for cell in assignment.cells if cell.role in ("answer", "manual")],
    )


def _part(cell: Cell, test: Result, score: float | None, comment: str) -> dict:
    part = _points(cell, test.earned if score is None else score, comment)
    if part["score"] != test.earned:
        part["points"] += " (changed by your teacher)"
    return part | {name: getattr(test, name) for name in ("message", "properties", "hint", "in_kernel")}


def _manual_part(cell: Cell, score: float | None, comment: str) -> dict:
    part = _points(cell, score or 0.0, comment)
    waiting = {"state": "open", "points": f"your teacher reads this one ({cell.points:g} points)"}
    return part | waiting if score is None else part


def _points(cell: Cell, score: float, comment: str) -> dict:
    """What the page shows of any graded cell."""
    state, points = "passed" if score >= cell.points else "not", f"{score:g} of {cell.points:g}"
    return {"title": _title(cell.grade_id), "score": score, "state": state, "points": points, "comment": comment}


def _answer(cell: Cell, outcome: Outcome) -> dict:
    outputs = []
    for output in outcome.outputs.get(cell.index, ()):
        picture = output.get("data", {}).get("image/png", "")
        text = output.get("text", "") or ("" if picture else output.get("data", {}).get("text/plain", ""))
        outputs.append({"text": text, "picture": picture})
    source = outcome.answers.get(cell.grade_id, cell.stub)
    return {"title": _title(cell.grade_id), "source": source, "outputs": outputs}


def _title(grade_id: str) -> str:
    return grade_id.removeprefix("test_")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.ChainableUndefined)
    return environment.from_string(Path(__file__).with_name("feedback.html").read_text(encoding="utf-8"))
