"""Grades for other programs: Canvas and Moodle, nbgrader's own table, and an autograder for Gradescope."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nbgrader.api import MissingEntry
from nbgrader.plugins.export import CsvExportPlugin

from lorahub_edu.errors import CourseError, near_matches
from lorahub_grader import assignments, gradescope
from lorahub_grader.gradebook import Course
from lorahub_grader.platforms import names_in_rosters

CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
CANVAS_KEYS = ("SIS Login ID", "SIS User ID", "ID", "Student")
MOODLE_KEYS = ("Username", "ID number", "Email address", "Full name", "Identifier")
POINTS_POSSIBLE = "Points Possible"


@dataclass(frozen=True)
class Row:
    """One student's total after lateness, and whether a person still has to look."""

    student: str
    score: float
    waiting: bool


Written = tuple[Path, list[str]]


def export(course: Course, assignment: str, to: str, roster: Path | None = None, out: Path | None = None) -> Written:
    """Write an assignment's grades in a platform's form.

    Args:
        to: "canvas", "moodle", "nbgrader" or "gradescope".
        roster: the platform's own export, whose rows are filled in; None makes a new table.
        out: the file; None names it after assignment and platform.

    Returns:
        The file, and what a teacher should know (who is missing, what waits to be read).

    Raises:
        CourseError: unknown platform or assignment, nothing graded, or a roster that is none.
    """
    forms: Mapping[str, Callable[[Course, str, Path | None, Path], list[str]]] = {
        "canvas": _canvas,
        "moodle": _moodle,
        "nbgrader": _nbgrader,
        "gradescope": _gradescope,
    }
    if to not in forms:
        raise CourseError(f"There is no export {to!r}. {near_matches(to, forms)}")
    assignments.load(assignment, course.root)
    out = out or Path(f"{assignment}_{to}.{'zip' if to == 'gradescope' else 'csv'}")
    return out, forms[to](course, assignment, roster, out)


def rows(course: Course, assignment: str) -> list[Row]:
    """Every graded student's total of an assignment, by student.

    Raises:
        CourseError: nobody has been graded.
    """
    found = []
    with course.open() as gradebook:
        try:
            submissions = gradebook.find_assignment(assignment).submissions
        except MissingEntry:
            submissions = []
        for submission in submissions:
            score = max(0.0, submission.score - (submission.late_submission_penalty or 0.0))
            found.append(Row(submission.student_id, score, bool(submission.needs_manual_grade)))
    if not found:
        raise CourseError(f"Nobody has been graded for {assignment!r} yet: lorahub-edu grade first.")
    return sorted(found, key=lambda row: row.student)


def _canvas(course: Course, assignment: str, roster: Path | None, out: Path) -> list[str]:
    found = rows(course, assignment)
    points = assignments.load(assignment, course.root).points
    if roster is None:
        header = [*CANVAS, assignment]
        possible = [f"    {POINTS_POSSIBLE}", *[""] * 4, f"{points:g}"]
        _write(out, [header, possible, *([r.student, "", "", r.student, "", f"{r.score:g}"] for r in found)])
        return _waiting(found) + ["Canvas wants its own IDs: export its gradebook and give it as --roster."]
    header, lines = _read(roster, CANVAS_KEYS)
    column = _column(header, assignment)
    for line in lines:
        line += [""] * (len(header) - len(line))
        if POINTS_POSSIBLE in line[0]:
            line[column] = line[column] or f"{points:g}"
    notes = _fill(header, lines, column, found, CANVAS_KEYS)
    kept = [index for index, name in enumerate(header) if name in CANVAS or index == column]
    _write(out, [[line[index] for index in kept] for line in (header, *lines)])
    return _waiting(found) + notes


def _moodle(course: Course, assignment: str, roster: Path | None, out: Path) -> list[str]:
    found = rows(course, assignment)
    if roster is None:
        _write(out, [["Username", assignment], *([row.student, f"{row.score:g}"] for row in found)])
        return _waiting(found)
    header, lines = _read(roster, MOODLE_KEYS)
    column = header.index("Grade") if "Grade" in header else _column(header, assignment)
    for line in lines:
        line += [""] * (len(header) - len(line))
    notes = _fill(header, lines, column, found, MOODLE_KEYS)
    _write(out, [header, *lines])
    return _waiting(found) + notes


def _nbgrader(course: Course, assignment: str, roster: Path | None, out: Path) -> list[str]:
    found = rows(course, assignment)
    plugin = CsvExportPlugin(parent=course.api, to=str(out), assignment=[assignment])
    with course.open() as gradebook:
        plugin.export(gradebook)
    return _waiting(found)


def _gradescope(course: Course, assignment: str, roster: Path | None, out: Path) -> list[str]:
    gradescope.pack(assignments.load(assignment, course.root), course.root, out)
    return ["Upload it as the assignment's autograder; base image Ubuntu 24.04 or newer."]


def _waiting(found: Iterable[Row]) -> list[str]:
    waiting = [row.student for row in found if row.waiting]
    return [f"{len(waiting)} with answers that a person still has to read: {', '.join(waiting[:5])}"] if waiting else []


def _read(roster: Path, keys: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """A platform's table: its header and its lines."""
    try:
        with open(roster, encoding="utf-8-sig", newline="") as file:
            table = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CourseError(f"{roster} can't be read as a table: {error}") from None
    if not table or not set(keys) & set(table[0]):
        raise CourseError(f"{roster} has none of the columns {', '.join(keys)}: is it what the platform exported?")
    return table[0], table[1:]


def _column(header: list[str], assignment: str) -> int:
    """The assignment's column, which Canvas calls "NAME (id)"; a new one where there is none."""
    for index, name in enumerate(header):
        if name == assignment or name.startswith(f"{assignment} ("):
            return index
    header.append(assignment)
    return len(header) - 1


def _fill(header: list[str], lines: list[list[str]], column: int, found: list[Row], keys: tuple[str, ...]) -> list[str]:
    """Put each student's points into the line that names the student; who is in no line is reported."""
    places = [header.index(key) for key in keys if key in header]
    by_name = {line[place].strip().casefold(): line for place in reversed(places) for line in lines if line[place]}
    missing = []
    for row in found:
        line = next(filter(None, (by_name.get(name.casefold()) for name in names_in_rosters(row.student))), None)
        if line is None:
            missing.append(row.student)
        else:
            line[column] = f"{row.score:g}"
    return [f"{len(missing)} graded but not in the roster: {', '.join(missing[:10])}"] if missing else []


def _write(out: Path, table: list[list[str]]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(table)
