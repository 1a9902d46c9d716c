"""The commands as a teacher types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from grading_course import NAME, RIGHT, copy_of, submit


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    call = [sys.executable, "-m", "lorahub_edu.cli", *words]
    return subprocess.run(call, capture_output=True, text=True, timeout=600, cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def course(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of(built, tmp_path_factory.mktemp("cli") / "course")


def test_a_round_on_the_command_line(course: Path, sandbox) -> None:
    built = command("build", cwd=course)
    assert built.returncode == 0 and f"exercises/{NAME}/{NAME}.ipynb" in built.stdout
    assert command("build", "--check", cwd=course).returncode == 0
    submit(course, "ada", RIGHT, flat=True)
    submit(course, "bob [sic]", {"guess": "guess = 7"}, flat=True)
    submit(course, "eve", {}, flat=True).write_text("{")
    graded = command("grade", "submitted", "--assignment", NAME, cwd=course)
    assert graded.returncode == 0, graded.stdout + graded.stderr
    assert "6 of 10" in graded.stdout and "its JSON is broken" in graded.stdout and "_bob _sic_" in graded.stdout
    assert "3 submissions, 3 newly graded; sandbox: bubblewrap." in graded.stdout
    assert "Traceback" not in graded.stderr and "SAWarning" not in graded.stderr
    assert (course / "feedback" / "ada" / NAME / f"{NAME}.html").is_file()
    again = command("grade", "submitted", "--assignment", NAME, cwd=course)
    assert "0 newly graded" in again.stdout
    pages = command("feedback", NAME, cwd=course)
    assert pages.stdout.count(".html") == 3
    out = command("export", NAME, "--to", "moodle", "--out", "out.csv", cwd=course)
    assert out.returncode == 0 and (course / "out.csv").read_text().splitlines()[1] == "_bob _sic_,1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("grade", "nowhere"), "There is no nowhere"),
        (("grade", "solutions", "--course", "submitted"), "There is no assignment in"),
        (("grade", ".", "--sandbox", "bublewrap"), "Did you mean 'bubblewrap'"),
        (("feedback", "01_smal"), f"Did you mean '{NAME}'"),
        (("export", NAME, "--to", "canvs"), "Did you mean 'canvas'"),
        (("build", "01_smal"), f"Did you mean '{NAME}'"),
    ],
)
def test_what_goes_wrong_is_said_without_a_traceback(words, said, built: Path, tmp_path) -> None:
    course = copy_of(built, tmp_path / "course")
    (course / "submitted").mkdir()
    submit(course, "ada", RIGHT).rename(course / "ada.ipynb")
    done = command(*words, cwd=course)
    assert done.returncode == 1 and said in done.stdout and "Traceback" not in done.stderr
