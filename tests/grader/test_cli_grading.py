"""The commands as a teacher types them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from grading_course import NAME, RIGHT, copy_of, submit
from plain_jobs import has_no_sandbox

from lorahub_edu.cli import app, terminal
from lorahub_edu.errors import CourseError
from lorahub_grader.gradebook import Course
from lorahub_studies import cluster


@pytest.fixture
def course(built: Path, tmp_path: Path, monkeypatch) -> Path:
    made = copy_of(built, tmp_path / "course")
    monkeypatch.chdir(made)
    monkeypatch.setattr(terminal.console, "width", 200)
    return made


@pytest.fixture
def typed(monkeypatch, capsys):
    """Run a command in this process, as `lorahub-edu` does: its exit code and what it printed."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lorahub-edu", *words])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return ended.value.code or 0, "".join(capsys.readouterr())

    return run


def test_a_round_on_the_command_line(course: Path, typed, quick) -> None:
    code, said = typed("build")
    assert code == 0 and f"exercises/{NAME}/{NAME}.ipynb" in said
    assert typed("build", "--check") == (0, "Everything is what its source gives.\n")
    submit(course, "ada", RIGHT, flat=True)
    submit(course, "bob [sic]", {"guess": "guess = 7"}, flat=True)
    submit(course, "eve", {}, flat=True).write_text("{")
    code, said = typed("grade", "submitted", "--assignment", NAME)
    assert code == 0 and "6 of 10" in said and "its JSON is broken" in said and "_bob _sic_-" in said
    assert "3 submissions, 3 newly graded; sandbox: bubblewrap." in said
    assert (course / "feedback" / "ada" / NAME / f"{NAME}.html").is_file()
    assert "0 newly graded" in typed("grade", "submitted", "--assignment", NAME)[1]
    assert typed("feedback", NAME)[1].count(".html") == 3
    code, said = typed("export-grades", NAME, "--to", "moodle", "--out", "out.csv")
    assert code == 0 and (course / "out.csv").read_text().splitlines()[1] == "bob [sic],1"


def test_workers_give_the_gradebook_of_one_process(course: Path, typed, quick, tmp_path: Path) -> None:
    """The same submissions: right, wrong, one that ends its process, one that can't be read."""
    pytest.importorskip("distributed")
    crashing = {"double": "import os\nos._exit(1)"}
    for student, answers in {"ada": RIGHT, "bob": {"guess": "guess = 7"}, "eve": RIGHT | crashing, "zoe": {}}.items():
        submit(course, student, answers, flat=True)
    (course / "submitted" / "zoe.ipynb").write_text("{")
    other = tmp_path / "other"
    shutil.copytree(course, other)
    assert typed("grade", "submitted", "--assignment", NAME)[0] == 0
    words = ("--course", str(other), "--cluster", "local:2")
    code, said = typed("grade", str(other / "submitted"), "--assignment", NAME, *words)
    assert code == 0 and "4 submissions, 4 newly graded; sandbox: bubblewrap." in said
    one, two = (rows(Course(place)) for place in (course, other))
    assert one == two and {row[0] for row in one} == {"ada", "bob", "eve", "zoe"}


def rows(place: Course) -> list[tuple]:
    """What the gradebook and the journal say of each student."""
    with place.open() as book:
        scores = {s.student_id: s.score for s in book.find_assignment(NAME).submissions}
    return [(o.student, scores[o.student], o.reason, [t.earned for t in o.tests]) for o in place.journal.all(NAME)]


def test_a_worker_without_a_sandbox_gets_no_submission(capsys) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(CourseError, match="No worker can do this: bubblewrap: it is not installed"):
        none_left()
    assert "127.0.0.1 gets no job: bubblewrap" in capsys.readouterr().err


def none_left() -> None:
    with cluster.workers("local:1", able=has_no_sandbox):
        raise AssertionError("a job could run")


def test_a_build_that_is_out_of_date_is_an_error_for_ci(course: Path, typed) -> None:
    source = course / "solutions" / "src" / f"{NAME}.py"
    source.write_text(source.read_text().replace("Twice x", "Two times x"))
    code, said = typed("build", "--check")
    assert code == 1 and "is not what its source gives: lorahub-edu build" in said
    assert typed("build", NAME)[0] == 0 and typed("build", "--check")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("grade", "nowhere"), "There is no nowhere"),
        (("grade", "submitted", "--course", "submitted"), "There is no assignment in"),
        (("grade", "submitted", "--assignment", "01_smal"), f"Did you mean '{NAME}'"),
        (("feedback", "01_smal"), f"Did you mean '{NAME}'"),
        (("feedback", NAME), "No submission of '01_small' has been graded here"),
        (("build", "01_smal"), f"Did you mean '{NAME}'"),
    ],
)
def test_what_goes_wrong_is_said(words, said, course: Path, typed) -> None:
    submit(course, "ada", RIGHT)
    code, text = typed(*words)
    assert code == 1 and said in text.replace("\n", " ")


def test_a_real_process_prints_no_traceback(course: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "lorahub_edu", "grade", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 1 and "There is no nowhere" in done.stderr and "Traceback" not in done.stderr
