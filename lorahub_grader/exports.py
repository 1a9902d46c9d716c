"""Grades for other programs: Canvas and Moodle, nbgrader's own table, and an autograder for Gradescope."""

from __future__ import annotations

import math
import re
from pathlib import Path

from nbgrader.api import MissingEntry
from nbgrader.plugins.export import CsvExportPlugin

from lorahub_edu.errors import CourseError
from lorahub_grader import assignments, gradescope
from lorahub_grader.assignments import Assignment
from lorahub_grader.gradebook import Course
from lorahub_grader.roster import POINTS_POSSIBLE, Roster, Row, number, read, write

CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")


def export(
    course: Course,
    assignment: str,
    to: str,
    roster: Path | None = None,
    out: Path | None = None,
    column: str | None = None,
    maximum: str = "scale",
) -> tuple[Path, list[str]]:
    """Write an assignment's grades in a platform's form: the file, and notes for a teacher.

    `to` is "canvas", "moodle", "nbgrader" or "gradescope". `roster` is the platform's own export, whose lines are
    filled in; None makes a new table. `out` None is named after assignment and platform. `column` is the assignment's
    in the roster; None finds it by name. `maximum` says "scale" or "refuse", where the platform's maximum is not the
    assignment's.
    Raises CourseError: unknown assignment, nothing graded, or a roster that can't be filled in.
    """
    loaded = assignments.load(assignment, course.root)
    out = out or Path(f"{assignment}_{to}.{'zip' if to == 'gradescope' else 'csv'}")
    if to == "gradescope":
        gradescope.pack(loaded, course.root, out)
        return out, ["Upload it as the assignment's autograder; base image Ubuntu 24.04 or newer."]
    graded = rows(course, assignment)
    waiting = [row.student for row in graded if row.waiting]
    notes = []
    if waiting:
        notes.append(f"{len(waiting)} with answers that a person still has to read: {', '.join(waiting[:5])}")
    if to == "nbgrader":
        plugin = CsvExportPlugin(parent=course.api, to=str(out), assignment=[assignment])
        with course.open() as gradebook:
            plugin.export(gradebook)
    elif roster is not None:
        notes += _fill(read(roster, to), loaded, graded, out, column, maximum)
    elif to == "moodle":
        write(out, [["Username", assignment], *([row.said, f"{row.score:g}"] for row in graded)])
    else:
        possible = [f"    {POINTS_POSSIBLE}", *[""] * 4, f"{loaded.points:g}"]
        lines = [[row.said, "", "", row.said, "", f"{row.score:g}"] for row in graded]
        write(out, [[*CANVAS, assignment], possible, *lines])
        notes.append("Canvas wants its own IDs: export its gradebook and give it as --roster.")
    return out, notes


def rows(course: Course, assignment: str) -> list[Row]:
    """Every graded student's total of an assignment, by student. Raises CourseError: nobody has been graded."""
    found = []
    with course.open() as gradebook:
        try:
            submissions = gradebook.find_assignment(assignment).submissions
        except MissingEntry:
            submissions = []
        for submission in submissions:
            score = max(0.0, submission.score - (submission.late_submission_penalty or 0.0))
            student, waiting = submission.student_id, bool(submission.needs_manual_grade)
            kept = course.journal.find(assignment, student)
            whose = (kept.name, kept.platform) if kept else ()
            found.append(Row(student, score, waiting, *whose))
    if not found:
        raise CourseError(f"Nobody has been graded for {assignment!r} yet: lorahub-edu grade first.")
    return sorted(found, key=lambda row: row.student)


def _fill(
    roster: Roster, assignment: Assignment, graded: list[Row], out: Path, column: str | None, maximum: str
) -> list[str]:
    """Put each student's points into their line of a platform's table, and write it; what a teacher should know.

    Raises CourseError: there is no such column, or its maximum can't be used.
    """
    place, maxima = roster.graded() if roster.platform == "moodle" and column is None else (None, None)
    width = len(roster.header)
    if place is None:
        place = roster.column(assignment.name, column)
    places, notes = roster.places(graded)
    if place == width:
        notes.append(f"The table had no column {assignment.name}: a new one was added.")
    possible = [line for line in roster.lines if roster.platform == "canvas" and POINTS_POSSIBLE in line[0]]
    for line in possible:
        line[place] = line[place] or f"{assignment.points:g}"
    others = set()
    comma = any(re.fullmatch(r"\s*\d+,\d+\s*", line[i]) for line in roster.lines for i in {place, maxima} - {None})
    for row in graded:
        if row.student not in places:
            continue
        line = roster.lines[places[row.student]]
        text = line[maxima] if maxima is not None else possible[0][place] if possible else ""
        most = number(text) if text.strip() else assignment.points
        if most is None or not 0 < most < math.inf or (most != assignment.points and maximum == "refuse"):
            raise CourseError(
                f"The platform's maximum is {text!r}, the assignment's {assignment.points:g}: change it there, or "
                "let the points be scaled (--maximum scale) if it is a number."
            )
        others |= {most} - {assignment.points}
        score = f"{row.score * most / assignment.points:g}"
        line[place] = score.replace(".", ",") if comma else score
    if others:
        notes.append(
            f"Points were scaled from {assignment.points:g} to {', '.join(f'{most:g}' for most in sorted(others))}."
        )
    kept = [index for index, name in enumerate(roster.header) if name in CANVAS or index == place]
    roster.write(out, kept if roster.platform == "canvas" else None)
    return notes
