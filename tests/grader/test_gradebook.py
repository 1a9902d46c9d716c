"""The gradebook: nothing is lost or graded twice, whoever kills, locks or ages it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from grading_course import NAME, POINTS, RIGHT, copy_of, grade, notebook, scores, submit

from lorahub_edu.errors import CourseError
from lorahub_grader import assignments, feedback, gradebook, runner, worker
from lorahub_grader.gradebook import Course
from lorahub_grader.journal import Outcome
from lorahub_grader.split import Result, Times


@pytest.fixture
def course(built: Path, tmp_path: Path) -> Course:
    return Course(copy_of(built, tmp_path / "course"))


def outcome(student: str, earned: float = POINTS, **more) -> Outcome:
    parts = {"test_double": 2.0, "test_root": 3.0, "test_guess": 1.0}
    tests = tuple(Result(name, points, points if earned else 0.0, "wrong") for name, points in parts.items())
    return Outcome(NAME, student, "key", 10.0, tests, answers=RIGHT, **more)


def record(course: Course, *outcomes: Outcome) -> None:
    assignment = assignments.load(NAME, course.root)
    with gradebook.writing(course):
        gradebook.prepare(course, assignment)
        for one in outcomes:
            gradebook.record(course, assignment, course.journal.keep(one))


def test_where_there_is_a_due_date_a_missing_time_is_a_question(course, quick) -> None:
    def note() -> str:
        (found,) = grade(course).outcomes
        return " ".join(found.notes)

    submit(course.root, "ada", RIGHT).write_text("{")
    assert "late" not in note()
    with course.open() as book:
        book.update_or_create_assignment(NAME, duedate="2026-05-01 10:00:00 UTC")
    assert "was it late? there is a due date" in note()
    (course.root / "submitted" / "ada" / NAME / "timestamp.txt").write_text("2026-05-01 09:00:00 UTC")
    assert "late" not in note()


def test_two_runs_at_once_do_not_meet(course) -> None:
    with (
        gradebook.writing(course),
        pytest.raises(CourseError, match=f"Another grading run .process {os.getpid()}. is writing"),
        gradebook.writing(Course(course.root)),
    ):
        pass
    with gradebook.writing(course):  # and afterwards it is free
        pass


def test_a_locked_gradebook_loses_nothing(course, quick, monkeypatch) -> None:
    submit(course.root, "ada", RIGHT)
    record(course, outcome("zoe"))
    monkeypatch.setattr(gradebook, "BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(course.database)) as formgrader:
        formgrader.execute("BEGIN IMMEDIATE")
        with pytest.raises(CourseError, match="locked by another program.*what was graded is kept"):
            grade(course)
        formgrader.rollback()
    assert grade(course).new == 1 and scores(course) == {"ada": POINTS, "zoe": POINTS}


def test_a_gradebook_that_is_locked_midway_keeps_what_was_found_out(course, quick, monkeypatch) -> None:
    submit(course.root, "ada", RIGHT)
    with monkeypatch.context() as patch, pytest.raises(CourseError, match="locked"):
        patch.setattr(gradebook, "record", locked)
        grade(course)
    kept = course.journal.find(NAME, "ada")
    assert kept.earned == POINTS and not kept.recorded
    monkeypatch.setattr(worker, "work", None)  # running it again would fail
    assert grade(course).outcomes[0].seconds == kept.seconds and scores(course) == {"ada": POINTS}


def locked(*_: object) -> None:
    assignments.succeed({"success": False, "log": "sqlite3.OperationalError: database is locked"}, "record")


def test_an_older_gradebook_is_left_alone(course) -> None:
    record(course, outcome("ada"))
    with closing(sqlite3.connect(course.database)) as book:
        book.execute("UPDATE alembic_version SET version_num = '167914646830'")
        book.commit()
    before = course.database.read_bytes()
    with pytest.raises(CourseError, match=r"older form \(167914646830\).*nbgrader db upgrade"):
        record(course, outcome("bob"))
    assert course.database.read_bytes() == before


def test_names_as_people_have_them_are_entered(course) -> None:
    names = ["O'Brien", "Lovelace, Ada", "D’Arcy (Ann)", "Zoë Müller", "हिन्दी", "李小龍", "a+b@x.org"]
    record(course, *map(outcome, names))
    assert scores(course) == dict.fromkeys(names, POINTS)
    pages = feedback.write(course, assignments.load(NAME, course.root), map(outcome, names))
    assert [page.parts[-3] for page in pages] == names


def test_what_is_no_gradebook_is_left_alone(course) -> None:
    course.database.write_text("these are my notes, and they are long enough to be taken for a file")
    with pytest.raises(CourseError, match="can't be used as a gradebook"):
        record(course, outcome("ada"))


def test_one_submission_that_nbgrader_cannot_take_does_not_stop_the_others(course, quick, monkeypatch) -> None:
    submit(course.root, "ada", RIGHT)
    submit(course.root, "bob", RIGHT)
    real = gradebook.record

    def picky(place: Course, assignment, one: Outcome) -> None:
        if one.student == "ada" and one.answers:
            raise CourseError("nbgrader can't: no reason given")
        real(place, assignment, one)

    monkeypatch.setattr(gradebook, "record", picky)
    graded = grade(course)
    assert scores(course) == {"ada": POINTS, "bob": POINTS} and "no reason given" in graded.outcomes[0].notes[0]


def test_no_hand_in_stops_the_class(course, quick) -> None:
    submit(course.root, "ada", RIGHT)
    half = "def double(x):\n    raise ValueError('\\ud800 \\x1b[2J')"
    submit(course.root, "bob", RIGHT | {"double": half})
    submit(course.root, os.fsdecode(b"caf\xe9"), RIGHT)
    submit(course.root, "dan", RIGHT).write_text('{"cells": [' + "[" * 100_000)
    for student, stamp in (("eve", "0001-01-01 00:00:00 +23:59"), ("fay", "\ud800")):
        path = submit(course.root, student, RIGHT).with_name("timestamp.txt")
        path.write_bytes(stamp.encode("utf-8", "surrogatepass"))
    graded = grade(course)
    points = {o.student.partition("-")[0]: o.earned for o in graded.outcomes}
    assert points == {"ada": 6, "bob": 4, "_caf_": 6, "dan": 0, "eve": 6, "fay": 6}
    assert sorted(scores(course).values()) == sorted(points.values()) and grade(course).new == 0
    what = {row[0]: row[3] for row in runner.table(graded.outcomes)}
    assert all(text.isprintable() for text in what.values())
    assert "JSON is broken" in what["dan"] and what["eve"].startswith("was it late?") and what["ada"] == ""


def test_an_error_of_the_grading_itself_is_one_submissions_row(course, quick, monkeypatch) -> None:
    submit(course.root, "ada", RIGHT)
    submit(course.root, "bob", RIGHT)

    def failing(job: worker.Job) -> Outcome:
        return worker.work(job) if job.student == "bob" else {}["ada"]

    monkeypatch.setattr(runner, "work", failing)
    graded = grade(course)
    assert [o.reason.partition(":")[0] for o in graded.outcomes] == ["died", ""]
    assert scores(course) == {"ada": 0, "bob": POINTS}
    monkeypatch.setattr(runner, "work", worker.work)
    assert grade(course).new == 1 and scores(course) == {"ada": POINTS, "bob": POINTS}


def test_a_gradebook_that_refuses_a_submission_twice_goes_on_to_the_next(course, quick, monkeypatch) -> None:
    submit(course.root, "ada", RIGHT)
    submit(course.root, "bob", RIGHT)
    real = gradebook.record

    def picky(place: Course, assignment, one: Outcome) -> None:
        if one.student == "ada":
            raise CourseError("nbgrader can't")
        real(place, assignment, one)

    monkeypatch.setattr(gradebook, "record", picky)
    graded = grade(course)
    assert scores(course) == {"bob": POINTS}
    assert "the gradebook does not have these points" in runner.table(graded.outcomes)[0][3]
    monkeypatch.setattr(gradebook, "record", real)
    assert grade(course).new == 1 and scores(course) == {"ada": POINTS, "bob": POINTS}


def test_a_row_says_that_a_value_took_too_long(course, quick) -> None:
    submit(course.root, "ada", RIGHT | {"guess": "while True:\n    pass\nguess = 7"})
    graded = runner.grade(course, course.root / "submitted", settings={"preload": (), "times": Times(cell=1.0)})
    assert (
        "test_guess: " in runner.table(graded.outcomes)[0][3]
        and "no answer within 1 sec" in graded.outcomes[0].tests[2].message
    )


def test_lateness_costs_what_nbgrader_says(course) -> None:
    (course.root / "nbgrader_config.py").write_text(
        "c = get_config()\nc.LateSubmissionPlugin.penalty_method = 'zero'\n"
    )
    course = Course(course.root)
    record(course)
    with course.open() as book:
        book.update_or_create_assignment(NAME, duedate="2026-05-01 12:00:00 UTC")
    early, late = (outcome(name, submitted=f"2026-05-01 1{hour}:00:00 UTC") for name, hour in (("ada", 1), ("bob", 3)))
    record(course, early, late)
    with course.open() as book:
        penalties = {s.student_id: s.late_submission_penalty for s in book.find_assignment(NAME).submissions}
    assert penalties == {"ada": 0, "bob": POINTS}
    assignment = assignments.load(NAME, course.root)
    pages = {page.parts[-3]: page.read_text() for page in feedback.write(course, assignment, [early, late])}
    assert (
        "6 of 10 points" in pages["ada"] and "0 of 10 points" in pages["bob"] and "because it was late" in pages["bob"]
    )


def test_what_a_person_graded_and_wrote_is_in_the_feedback(course) -> None:
    one = outcome(
        "ada", outputs={2: [{"output_type": "stream", "name": "stdout", "text": "<script>alert(1)</script>"}]}
    )
    one = replace(one, answers=RIGHT | {"essay": "<img src=x onerror=alert(1)>"})
    record(course, one)
    with course.open() as book:
        grade_ = book.find_grade("essay", NAME, NAME, "ada")
        grade_.manual_score, grade_.needs_manual_grade = 3.0, False
        book.find_comment("essay", NAME, NAME, "ada").manual_comment = "Well said."
        book.find_grade("test_root", NAME, NAME, "ada").manual_score = 1.0
        book.db.commit()
    assignment = assignments.load(NAME, course.root)
    page = feedback.render(assignment, one, feedback.read_grades(course, one))
    assert "7 of 10 points" in page and "Well said." in page and "1 of 3 (changed by your teacher)" in page
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page


def test_honest_work_gives_nbgrader_nothing_to_complain_about(course, caplog) -> None:
    record(course)
    assignment = assignments.load(NAME, course.root)
    filled = gradebook.filled(assignment, outcome("ada"))
    released = notebook(course.root, RIGHT)
    assert [c.source for c in filled.cells if c.metadata.get("nbgrader", {}).get("solution")] == [
        c.source for c in released.cells if c.metadata.get("nbgrader", {}).get("solution")
    ]
    course.journal.keep(outcome("ada"))
    gradebook.record(course, assignment, outcome("ada"))
    assert "checksum" not in caplog.text and "has changed" not in caplog.text


def test_tests_that_changed_are_entered_anew(course) -> None:
    record(course, outcome("ada"))
    source = course.root / "solutions" / "src" / f"{NAME}.py"
    source.write_text(source.read_text().replace("points=3", "points=5").replace("double(21) == 42", "double(4) == 8"))
    assignments.build(NAME, course.root)
    record(course, outcome("bob"))
    with course.open() as book:
        assert {c.name: c.max_score for c in book.find_notebook(NAME, NAME).grade_cells}["test_root"] == 5
        assert "double(4) == 8" in book.find_source_cell("test_double", NAME, NAME).source
