"""What a learner gets back: points, the probable misconception and the next hint, and never a test's source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from nbgrader.api import MissingEntry

from lorahub_grader.assignments import Assignment, Cell
from lorahub_grader.gradebook import Course
from lorahub_grader.journal import Outcome
from lorahub_grader.split import Result
from lorahub_grader.worker import explain


@dataclass(frozen=True)
class Grade:
    """A cell's grade in the gradebook: points, None while a person has to look, and that person's comment."""

    score: float | None
    comment: str = ""


@dataclass(frozen=True)
class Grades:
    """What the gradebook says of one submission: a grade by cell, and the points that lateness cost."""

    cells: dict[str, Grade]
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
        except MissingEntry:
            return Grades({})
        notebook = next(iter(submission.notebooks), None)
        if notebook is None:
            return Grades({})
        comments = {comment.name: comment.manual_comment or "" for comment in notebook.comments}
        cells = {
            grade.name: Grade(
                None if grade.needs_manual_grade and grade.manual_score is None else grade.score,
                comments.get(grade.name, ""),
            )
            for grade in notebook.grades
        }
        spoken = {name: Grade(None, words) for name, words in comments.items() if name not in cells}
        return Grades(spoken | cells, submission.late_submission_penalty or 0.0)


def render(assignment: Assignment, outcome: Outcome, grades: Grades) -> str:
    """The page: everything a learner or another program wrote is escaped, and no script runs in it."""
    tests = {test.grade_id: test for test in outcome.tests}
    parts, answer = [], None
    for cell in assignment.cells:
        if cell.role == "answer":
            answer = cell
        elif cell.role == "test":
            spoken = grades.cells.get(answer.grade_id) if answer else None
            parts.append(_part(cell, tests[cell.grade_id], grades.cells.get(cell.grade_id), spoken))
        elif cell.role == "manual":
            parts.append(_manual_part(cell, grades.cells.get(cell.grade_id)))
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


def _part(cell: Cell, test: Result, grade: Grade | None, spoken: Grade | None) -> dict:
    score = test.earned if grade is None or grade.score is None else grade.score
    changed = "" if score == test.earned else " (changed by your teacher)"
    return {
        "title": _title(cell.grade_id),
        "state": "passed" if score >= cell.points else "not",
        "points": f"{score:g} of {cell.points:g}{changed}",
        "score": score,
        "message": test.message,
        "properties": test.properties,
        "hint": test.hint,
        "comment": spoken.comment if spoken else "",
        "in_kernel": test.in_kernel,
    }


def _manual_part(cell: Cell, grade: Grade | None) -> dict:
    waiting = grade is None or grade.score is None
    return {
        "title": _title(cell.grade_id),
        "state": "open" if waiting else "passed" if grade.score >= cell.points else "not",
        "points": f"your teacher reads this one ({cell.points:g} points)"
        if waiting
        else f"{grade.score:g} of {cell.points:g}",
        "score": 0.0 if waiting else grade.score,
        "comment": grade.comment if grade else "",
    }


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
