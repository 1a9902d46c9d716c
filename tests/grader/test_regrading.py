"""What was graded is graded again where something changed, and only there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from grading_course import NAME, POINTS, RIGHT, copy_of, grade, scores, submit

from lorahub_grader import assignments, runner
from lorahub_grader.gradebook import Course

SLOW = "import time\ntime.sleep(0.4)\n" + RIGHT["double"]


@pytest.fixture
def course(built: Path, tmp_path: Path) -> Course:
    return Course(copy_of(built, tmp_path / "course"))


def test_what_has_not_changed_is_not_graded_again(course, quick) -> None:
    submit(course.root, "ada", RIGHT)
    submit(course.root, "bob", {})
    assert grade(course).new == 2
    again = grade(course)
    assert again.new == 0 and [o.earned for o in again.outcomes] == [POINTS, 0]
    submit(course.root, "bob", RIGHT)
    changed = grade(course)
    assert changed.new == 1 and scores(course) == {"ada": POINTS, "bob": POINTS}


@pytest.mark.parametrize(
    "change", [("points=3", "points=5"), ("points=3", "points=3 infinite=true"), ("1369", "1369.0")]
)
def test_what_the_assignment_now_says_is_graded_again_and_manual_points_stay(change, course, quick) -> None:
    submit(course.root, "ada", RIGHT | {"essay": "It is so."})
    assert grade(course).new == 1
    with course.open() as book:
        for name, score in (("essay", 3.0), ("test_double", 1.0)):
            book.find_grade(name, NAME, NAME, "ada").manual_score = score
        book.find_grade("essay", NAME, NAME, "ada").needs_manual_grade = False
        book.find_comment("essay", NAME, NAME, "ada").manual_comment = "Well said."
        book.db.commit()
    source = course.root / "solutions" / "src" / f"{NAME}.py"
    source.write_text(source.read_text().replace(*change))
    assignments.build(NAME, course.root)
    again = grade(course)
    root = 5 if change[1] == "points=5" else 3
    assert again.new == 1 and again.outcomes[0].earned == 3 + root and grade(course).new == 0
    assert scores(course) == {"ada": 3 + 1 + root + 1}
    with course.open() as book:
        assert book.find_comment("essay", NAME, NAME, "ada").manual_comment == "Well said."


def test_a_corrected_check_is_graded_again(course, quick, monkeypatch, tmp_path) -> None:
    (tmp_path / "lorahub_checks").mkdir()
    check = tmp_path / "lorahub_checks" / "one.py"
    digests = set()
    for text in ("wrong = 1", "right = 1"):
        check.write_text(text)
        runner.code.cache_clear()
        digests.add(runner.code(tmp_path))
    assert len(digests) == 2
    submit(course.root, "ada", RIGHT)
    assert (grade(course).new, grade(course).new) == (1, 0)
    monkeypatch.setattr(runner, "code", lambda: "a check was corrected")
    assert grade(course).new == 1


def test_a_run_that_was_killed_goes_on(course, quick, tmp_path) -> None:
    for student in ("ann", "ben", "cat", "dan", "eve"):
        submit(course.root, student, RIGHT | {"double": SLOW})
    code = (
        "from pathlib import Path\n"
        "from lorahub_grader import runner\n"
        "from lorahub_grader.gradebook import Course\n"
        f"root = Path({str(course.root)!r})\n"
        "runner.grade(Course(root), root / 'submitted', settings={'preload': ()})\n"
    )
    run = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.DEVNULL)
    folder = course.journal.folder / NAME
    deadline = time.monotonic() + 300
    while len(list(folder.glob("*.json"))) < 2 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    kept = {path.stem: path.read_text() for path in folder.glob("*.json")}
    assert 2 <= len(kept) < 5
    time.sleep(0.5)  # its other processes end with it, and let go of the lock
    graded = grade(course)
    assert {o.student: o.earned for o in graded.outcomes} == dict.fromkeys(("ann", "ben", "cat", "dan", "eve"), POINTS)
    assert scores(course) == dict.fromkeys(("ann", "ben", "cat", "dan", "eve"), POINTS)
    seconds = {o.student: o.seconds for o in graded.outcomes}
    assert all(f'"seconds": {seconds[student]}' in text for student, text in kept.items()), "these were not run again"


def test_an_outcome_that_the_gradebook_does_not_have_yet_is_entered(course, quick) -> None:
    submit(course.root, "ada", RIGHT)
    graded = grade(course).outcomes[0]
    course.database.unlink()  # as if it had been lost
    course.journal.keep(replace(graded, recorded=False))  # killed between the two
    assert grade(course).new == 1 and scores(course) == {"ada": POINTS}
