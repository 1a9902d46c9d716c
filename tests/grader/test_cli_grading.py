"""The commands as a teacher types them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from grading_course import NAME, RIGHT, copy_of, submit

from lorahub_edu.cli import app, terminal


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
        (("grade", "submitted", "--sandbox", "bublewrap"), "Did you mean 'bubblewrap'"),
        (("grade", "submitted", "--assignment", "01_smal"), f"Did you mean '{NAME}'"),
        (("feedback", "01_smal"), f"Did you mean '{NAME}'"),
        (("feedback", NAME), "No submission of '01_small' has been graded here"),
        (("export-grades", NAME, "--to", "canvs"), "Did you mean 'canvas'"),
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
