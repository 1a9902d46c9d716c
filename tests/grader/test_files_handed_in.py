"""Every file that was handed in is a submission, or is named with the reason why it is none."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from grading_course import NAME, RIGHT, put, students, submit

from lorahub_edu.errors import CourseError
from lorahub_grader.collect import collect


@pytest.fixture
def course(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "course")


LAYOUTS = {
    "canvas": "{0}_{1}_9_{2}",
    "moodle": "{0}_{1}_assignsubmission_file_/{2}",
    "moodle without folders": "{0}_{1}_assignsubmission_file_{2}",
    "nbgrader": "{0}/" + NAME + "/{2}",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_that_was_handed_in_vanishes(layout: str, packed: bool, answers, known, tmp_path) -> None:
    form = LAYOUTS[layout]
    handed_in = ["hw.pdf", "hw.py", "hw.ipynb.txt", "hw.zip", "notes.docx"]
    files = {form.format("ada", 1, f"{NAME}.ipynb"): answers, "readme.txt": "of the platform"}
    files |= {form.format(f"s{number}", number, name): "x" for number, name in enumerate(handed_in, 2)}
    if layout != "canvas":
        files |= {form.format("mac", 77, "._hw.ipynb"): "x", f"__MACOSX/{form.format('ada', 1, '._x.ipynb')}": "x"}
    place = put(tmp_path / "all", files)
    if packed:
        place = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", place))
    found = collect(place, known)
    troubles = {s.student.rpartition("-")[2]: s.read()[1] for s in found.submissions}
    assert troubles.pop("ada") == "" and (layout == "canvas" or troubles.pop("mac") == "no notebook was handed in")
    assert troubles == {f"s{n}": f"no notebook was handed in: {name}" for n, name in enumerate(handed_in, 2)}
    assert "readme.txt: it is not a notebook" in " ".join(found.ignored)


def test_what_is_no_notebook_in_a_flat_folder_is_named(answers, known, tmp_path) -> None:
    put(tmp_path, {"ada.ipynb": answers, "turing.pdf": "x", "hopper.ipynb.txt": answers, "bob/hw.ipynb": answers})
    (tmp_path / "folder.ipynb").mkdir()
    (tmp_path / "a/b/c/d/e/f/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("/etc")
    found = collect(tmp_path, known)
    assert [s.student for s in found.submissions] == ["ada"]
    words = " ".join(found.ignored)
    for name in (
        "turing.pdf: it is not a notebook",
        "hopper.ipynb.txt: it is not",
        "bob/hw.ipynb: it lies in no",
        "link: ",
    ):
        assert name in words
    assert "folder.ipynb: it is not an ordinary file" in words and "deep" in words.split("nested too deep")[0]


def test_a_folder_called_like_a_notebook_gets_a_row(known, tmp_path) -> None:
    (tmp_path / "eve" / NAME / f"{NAME}.ipynb").mkdir(parents=True)
    (found,) = collect(tmp_path, known).submissions
    assert (found.student, found.read()) == ("eve", (b"", "it is not an ordinary file"))


@pytest.mark.parametrize(
    "copy", [f"{NAME} (1).ipynb", f"{NAME}(2).ipynb", f"{NAME}-Copy1.ipynb", f"{NAME} - Kopie.ipynb"]
)
@pytest.mark.parametrize("form", [*LAYOUTS.values(), "{2}"])
def test_a_copy_that_a_browser_named_is_accepted(form: str, copy: str, answers, known, tmp_path) -> None:
    put(tmp_path, {form.format("ada", 1, copy): answers})
    (found,) = collect(tmp_path, known).submissions
    assert found.read() == (answers, "") and found.notes == ()


def test_the_newest_of_two_notebooks_counts_and_the_other_is_named(answers, known, tmp_path) -> None:
    newer = answers + b" "
    files = {f"ada_1_20_{NAME}.ipynb": newer, f"ada_1_9_{NAME}-1.ipynb": answers, "ada_1_21_scratch.ipynb": "{}"}
    (found,) = collect(put(tmp_path / "canvas", files), known).submissions
    assert found.read() == (newer, "") and found.notes == (f"not used: {NAME}-1.ipynb, scratch.ipynb",)
    with zipfile.ZipFile(tmp_path / "moodle.zip", "w") as archive:
        for name, day, content in (("b", 2, newer), ("c", 1, answers)):
            moment = (2026, 5, day, 12, 0, 0)
            archive.writestr(zipfile.ZipInfo(f"Ada_1_assignsubmission_file_/{name}.ipynb", moment), content)
    (found,) = collect(tmp_path / "moodle.zip", known).submissions
    assert found.read() == (newer, "") and found.notes == ("not used: c.ipynb",)
    text = {"ada_1_9_x.ipynb": answers, "bob_LATE_2_text.html": "<p>in words</p>"}
    assert [s.student for s in collect(put(tmp_path / "text", text), known).submissions] == ["1-ada", "2-bob"]
    (found,) = collect(put(tmp_path / "late", {f"ada_LATE_1_20_{NAME}.ipynb": answers}), known).submissions
    assert found.student == "1-ada" and found.notes == ("Canvas says that it was late",)


def test_another_assignments_notebook_touches_nothing_of_it(answers, known, tmp_path) -> None:
    cell = {"cell_type": "code", "source": "x", "metadata": {"nbgrader": {"grade_id": "something"}}}
    other = json.dumps({"cells": [cell]})
    found = collect(
        put(tmp_path / "a", {"ada_1_9_x.ipynb": answers, "bob_2_9_x.ipynb": answers, "eve_3_9_x.ipynb": other}), known
    )
    assert {s.assignment for s in found.submissions} == {NAME}
    assert found.submissions[2].read()[1] == f"it is the notebook of 02_other, not of {NAME}"
    found = collect(put(tmp_path / "b", {"ada.ipynb": answers, "bob.ipynb": answers, "eve.ipynb": other}), known)
    assert len(found.submissions) == 2 and f"eve.ipynb is the notebook of 02_other, not of {NAME}" in found.ignored
    assert students(tmp_path / "b", known, "02_other") == [("02_other", "eve")]
    with pytest.raises(CourseError, match="as many notebooks of .* give --assignment"):
        collect(put(tmp_path / "c", {"ada.ipynb": answers, "eve.ipynb": other}), known)


@pytest.mark.parametrize(
    "stamp",
    ["yesterday, or so", "0001-01-01 00:00 UTC", "9999-12-31 23:59 -12:00", "\x1b[2J", "", "10", "Monday", "20260501"]
    + ["2026-05-01", "2026-05-01 10:00:00", "2026-05-01 10:00:00 PST", "2026-02-30 10:00 UTC", "2098-05-01 10:00 UTC"]
    + ["01/02/2026 10:00 UTC", "2026-05-01 10:00:00 UTC\n2026-06-01 10:00:00 UTC"],
)
def test_a_time_that_can_not_be_read_is_a_question(stamp: str, course, known) -> None:
    path = submit(course, "ada", RIGHT)
    path.with_name("timestamp.txt").write_text(stamp)
    (found,) = collect(course / "submitted", known).submissions
    assert found.submitted == "" and found.notes[0].startswith("was it late?") and "\x1b" not in found.notes[0]


@pytest.mark.parametrize("stamp", ["2026-05-01 10:00:00.123456 UTC\n", "2026-05-01T10:00+02:00", "2026-05-01 10:00Z"])
def test_a_time_with_its_zone_is_taken(stamp: str, course, known) -> None:
    submit(course, "ada", RIGHT).with_name("timestamp.txt").write_text(stamp)
    (found,) = collect(course / "submitted", known).submissions
    assert (found.submitted, found.notes) == (stamp.strip(), ())


@pytest.mark.parametrize("kind", ["fifo", "link", "huge"])
def test_a_time_stamp_that_is_no_file_of_text_is_a_question(kind: str, course, known) -> None:
    path = submit(course, "ada", RIGHT).with_name("timestamp.txt")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/hostname")
    else:
        path.write_bytes(b"2026-05-01 10:00:00 UTC" + b" " * 100_000)
    (found,) = collect(course / "submitted", known).submissions
    assert found.submitted == "" and found.notes[0].startswith("was it late?")


def test_notebooks_of_one_student_have_a_size_together(answers, known, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lorahub_grader.collect.NOTEBOOKS_BYTES", 2 * len(answers))
    put(
        tmp_path,
        {
            f"{who}_{n}_assignsubmission_file_/{i}.ipynb": answers
            for who, n in (("Eve", 3), ("Ada", 2))
            for i in range(n)
        },
    )
    troubles = {s.name: s.trouble for s in collect(tmp_path, known).submissions}
    assert troubles["Ada"] == "" and "notebooks of more than" in troubles["Eve"]


def test_many_files_of_one_student_are_that_students_trouble(answers, known, tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("Ada_1_assignsubmission_file_/x.ipynb", answers)
        for number in range(20_001):
            archive.writestr(f"Eve_2_assignsubmission_file_/{number}.ipynb", b"")
            archive.writestr(f"Ada_1_assignsubmission_file_/.git/{number}", b"")
    found = collect(tmp_path / "all.zip", known).submissions
    assert [(s.student, s.read()[1]) for s in found] == [
        ("1-Ada", ""),
        ("2-Eve", "more than 200 files were handed in, or notebooks of more than 100 MB"),
    ]


def test_names_that_are_no_text_or_control_a_terminal_are_shown_escaped(answers, known, tmp_path) -> None:
    put(tmp_path, {"ada.ipynb": answers, "\x1b[31mred.pdf": "x", os.fsdecode(b"b\xff.ipynb"): answers})
    found = collect(tmp_path, known)
    text = "".join((*found.ignored, *(s.student for s in found.submissions)))
    assert len(found.submissions) == 2 and text.isprintable() and text.encode() and "\\x1b[31mred.pdf" in text


def test_macos_names_in_an_archive_are_read(answers, known, tmp_path) -> None:
    """macOS writes names in UTF-8, decomposed, and does not say so."""
    name = "Zoe\u0308".encode()
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr(f"{'Q' * len(name)}_1_assignsubmission_file_/x.ipynb", answers)
    data = (tmp_path / "all.zip").read_bytes()
    (tmp_path / "all.zip").write_bytes(data.replace(b"Q" * len(name), name))
    assert students(tmp_path / "all.zip", known) == [(NAME, "1-Zoë")]
