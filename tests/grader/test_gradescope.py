"""Gradescope's autograder: the zip file, and one submission graded from it as in the platform's container."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from grading_course import NAME, RIGHT, copy_of, submit

from lorahub_grader import exports, gradescope
from lorahub_grader.gradebook import Course


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Path:
    """A folder like Gradescope's /autograder, with the autograder unpacked in source/."""
    root = copy_of(built, tmp_path / "course")
    submit(root, "ada", RIGHT)  # what else lies in the course must not be packed
    path, notes = exports.export(Course(root), NAME, "gradescope", None, tmp_path / "autograder.zip")
    assert "autograder" in notes[0]
    made = tmp_path / "autograder"
    with zipfile.ZipFile(path) as archive:
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist() if "/" not in entry.filename}
        archive.extractall(made / "source")
    assert modes == {"setup.sh": 0o755, "run_autograder": 0o755}
    (made / "submission").mkdir()
    return made


def hand_in(place: Path, built: Path, answers: dict[str, str]) -> None:
    path = submit(place, "kim", answers, flat=True) if (place / "exercises").exists() else None
    if path is None:
        shutil.copytree(built / "exercises", place / "exercises")
        path = submit(place, "kim", answers, flat=True)
    path.rename(place / "submission" / "my work.ipynb")


def grade(place: Path, *around: str, **more: str) -> dict:
    """Run what run_autograder runs."""
    command = [*around, sys.executable, "-W", "ignore", "-m", "lorahub_grader.gradescope", NAME]
    command += ["--course", str(place / "source" / "course"), "--place", str(place)]
    command += [word for key, value in more.items() for word in (f"--{key}", value)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((place / "results" / "results.json").read_text())


def test_the_zip_file_holds_what_it_needs_and_no_more(place: Path) -> None:
    source = place / "source"
    setup, run = (source / "setup.sh").read_text(), (source / "run_autograder").read_text()
    assert setup.startswith("#!") and "bubblewrap" in setup and "constraints.txt" in setup
    assert f"gradescope {NAME} --course /autograder/source/course" in run and "go-rwx /autograder/source" in run
    for script in ("setup.sh", "run_autograder"):
        assert subprocess.run(["bash", "-n", str(source / script)]).returncode == 0
    for needed in (
        "pyproject.toml",
        "constraints.txt",
        "lorahub_edu/errors.py",
        "lorahub_checks/lesson01.py",
        "lorahub_grader/feedback.html",
        "lorahub_studies/cli.py",
        f"solutions/{NAME}/{NAME}.ipynb",
    ):
        assert (source / "course" / needed).is_file()
    held = {path.name for path in source.rglob("*")}
    assert not held & {"submitted", "gradebook.db", ".grading", "src", "__pycache__", "zoo"}


def test_a_submission_gets_points_messages_and_hints(place: Path, built: Path, sandbox) -> None:
    hand_in(place, built, RIGHT | {"root": "root = lambda x: x"})
    results = grade(place)
    assert results["score"] == 3 and results["stdout_visibility"] == "hidden"
    tests = {test["name"]: (test["score"], test["max_score"], test["status"]) for test in results["tests"]}
    assert tests == {"double": (2, 2, "passed"), "root": (0, 3, "failed"), "guess": (1, 1, "passed")}
    assert "the root is wrong" in results["tests"][1]["output"] and "1369" not in json.dumps(results)


def test_of_two_notebooks_the_assignments_own_counts(place: Path, built: Path, quick) -> None:
    hand_in(place, built, RIGHT)
    (place / "submission" / "a_scratch.ipynb").write_text('{"cells": []}')
    results = json.loads(gradescope.grade(place / "source" / "course", NAME, place).read_text())
    assert results["score"] == 6 and "not used: a_scratch.ipynb" in results["output"]


def test_inside_a_container_another_user_can_not_read_the_solutions(place: Path, built: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("bwrap") is None:
        pytest.skip("needs root and bubblewrap, to stand for the platform's container")
    solution = place / "source" / "course" / "solutions" / NAME / f"{NAME}.ipynb"
    theft = f"def root(x):\n    assert '1369' in open({str(solution)!r}).read()\n    return 37.0"
    hand_in(place, built, RIGHT | {"root": theft})
    for folder in (place, *place.parents):
        if folder.name.startswith("pytest-") or folder.is_relative_to(tmp_path.parent):
            folder.chmod(0o755)
    # Where Python lies in root's own folder, another user can't read it: show that folder, but empty of the rest.
    container = ["bwrap", "--dev-bind", "/", "/", "--cap-add", "ALL", "--perms", "0755", "--tmpfs", "/root"]
    if (base := Path(sys.base_prefix)).is_relative_to("/root"):
        for parent in [p for p in reversed(base.parents) if p.is_relative_to("/root") and p != Path("/root")]:
            container += ["--perms", "0755", "--dir", str(parent)]
        container += ["--ro-bind", str(base), str(base)]
    # As it was unpacked everybody can read it: the probe sees that, and nothing is run.
    with pytest.raises(AssertionError, match=r"it has holes \(sees:.*/solutions"):
        grade(place, *container, sandbox="container")
    assert not (place / "results").exists()
    for path in [place / "source", *(place / "source").rglob("*")]:
        path.chmod(path.stat().st_mode & 0o700)  # run_autograder's chmod -R go-rwx
    assert grade(place, *container, sandbox="container")["score"] == 3
