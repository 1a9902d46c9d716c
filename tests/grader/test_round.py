"""A class round: submissions of all kinds are graded in the sandbox, into nbgrader's gradebook, with feedback."""

from __future__ import annotations

from pathlib import Path

import pytest
from grading_course import NAME, POINTS, RIGHT, copy_of, submit

from lorahub_grader import assignments, feedback, runner
from lorahub_grader.gradebook import Course

SETTINGS = {"preload": ()}
CHEAT = "class Agrees(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\n"


@pytest.fixture(scope="module")
def round_(built: Path, sandbox, tmp_path_factory: pytest.TempPathFactory):
    root = copy_of(built, tmp_path_factory.mktemp("round") / "course")
    submit(root, "ada", RIGHT | {"essay": "It is so."})
    submit(root, "mallory", RIGHT | {"double": CHEAT + "def double(x):\n    return Agrees(0)"})
    submit(root, "nobody", {})
    submit(root, "crash", RIGHT | {"root": "import os\nos._exit(0)"})
    submit(root, "broken", RIGHT).write_text("{not json", encoding="utf-8")
    course = Course(root)
    graded = runner.grade(course, root / "submitted", settings=SETTINGS)
    return course, graded


def points(course: Course) -> dict[str, float]:
    with course.open() as gradebook:
        return {s.student_id: s.score for s in gradebook.find_assignment(NAME).submissions}


def test_every_submission_ends_with_a_row_and_its_reason(round_) -> None:
    course, graded = round_
    rows = {o.student: (o.earned, o.reason.partition(":")[0]) for o in graded.outcomes}
    assert rows == {
        "ada": (POINTS, ""),
        "mallory": (POINTS - 2, ""),
        "nobody": (0, ""),
        "crash": (3, "died"),
        "broken": (0, "unreadable"),
    }
    assert points(course) == {student: earned for student, (earned, _) in rows.items()}


def test_a_crash_is_said_once(round_) -> None:
    _, graded = round_
    crashed = next(o for o in graded.outcomes if o.student == "crash")
    words = next(test.message for test in crashed.tests if test.grade_id == "test_root")
    assert words.count("its process ended early") == 1


def test_what_a_person_grades_waits_for_a_person(round_) -> None:
    course, _ = round_
    with course.open() as gradebook:
        waiting = {s.student_id: s.needs_manual_grade for s in gradebook.find_assignment(NAME).submissions}
    assert waiting["ada"] is True  # an essay was written
    assert waiting["nobody"] is False  # an empty place is zero, as nbgrader has it


def test_feedback_names_the_mistake_and_no_tests_source(round_) -> None:
    course, graded = round_
    assignment = assignments.load(NAME, course.root)
    pages = {page.parts[-3]: page.read_text() for page in feedback.write(course, assignment, graded.outcomes)}
    assert "the hidden number is doubled wrongly" not in pages["ada"]
    assert "twice three is six" in pages["mallory"] and "class Agrees" in pages["mallory"]
    assert "its JSON is broken" in pages["broken"]
    for page in pages.values():
        assert "1369" not in page and "assert" not in page
    assert "6 of 10 points" in pages["ada"] and "1 answer still to be read" in pages["ada"]


def test_the_sandbox_was_bubblewrap(round_) -> None:
    assert round_[1].sandbox == "bubblewrap"
