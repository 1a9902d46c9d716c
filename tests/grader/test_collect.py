"""Submissions are found in every agreed layout, and what is none is said to be none."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
import zipfile
from pathlib import Path

import pytest
from grading_course import NAME, RIGHT, submit

from lorahub_edu.errors import CourseError
from lorahub_grader.assignments import load
from lorahub_grader.collect import collect


@pytest.fixture
def course(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "course")


@pytest.fixture(scope="module")
def known(built: Path) -> dict[str, frozenset[str]]:
    return {NAME: load(NAME, built).answer_ids, "02_other": frozenset({"something"})}


def students(place: Path, known, wanted: str | None = None) -> list[tuple[str, str]]:
    return [(s.assignment, s.student) for s in collect(place, known, wanted).submissions]


def test_nbgraders_layout_with_its_timestamp(course, known) -> None:
    submit(course, "ada", RIGHT)
    submit(course, "zoe", RIGHT)
    (course / "submitted" / "ada" / NAME / "timestamp.txt").write_text("2026-05-01 10:00:00 UTC\n")
    (course / "submitted" / "zoe" / NAME / "timestamp.txt").write_text("yesterday, or so")
    found = collect(course / "submitted", known).submissions
    assert [(s.student, s.submitted) for s in found] == [("ada", "2026-05-01 10:00:00 UTC"), ("zoe", "")]
    assert found[0].read()[0].startswith(b"{")


def test_a_flat_folder_tells_the_assignment_by_its_cells(course, known) -> None:
    submit(course, "ada", RIGHT, flat=True)
    submit(course, "José Ortega", RIGHT, flat=True)
    (course / "submitted" / "notes.txt").write_text("not a notebook")
    assert students(course / "submitted", known) == [(NAME, "José Ortega"), (NAME, "ada")]


def test_a_flat_notebook_that_does_not_tell(course, known) -> None:
    submit(course, "ada", RIGHT, flat=True)
    (course / "submitted" / "bob.ipynb").write_text("{")
    found = collect(course / "submitted", known)
    assert [s.student for s in found.submissions] == ["ada"]
    assert "bob.ipynb does not tell" in found.ignored[0] and "--assignment" in found.ignored[0]
    assert students(course / "submitted", known, NAME) == [(NAME, "ada"), (NAME, "bob")]


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("outer", [True, False])
def test_a_zip_archive_of_either(flat: bool, outer: bool, course, known) -> None:
    submit(course, "ada", RIGHT, flat=flat)
    submit(course, "zoe", RIGHT, flat=flat)
    base = "submitted" if outer else "."
    packed = shutil.make_archive(str(course / "all"), "zip", course if outer else course / "submitted", base)
    assert students(Path(packed), known) == [(NAME, "ada"), (NAME, "zoe")]
    assert collect(Path(packed), known).submissions[0].read()[0].startswith(b"{")


def canvas_names(place: Path, built: Path) -> None:
    """What Canvas gives out: all files side by side; one was late, one was handed in again."""
    place.mkdir(parents=True)
    for name in ("lovelaceada_4711_90210", "zuseconrad_LATE_4712_90211", "o'neillshane_4713_90212"):
        again = "-2" if name.startswith("zuse") else ""
        shutil.copyfile(built / "exercises" / NAME / f"{NAME}.ipynb", place / f"{name}_{NAME}{again}.ipynb")


def moodle_names(place: Path, built: Path) -> None:
    """What Moodle gives out: a folder a student."""
    for name in ("Ada Lovelace_4711_assignsubmission_file_", "Conrad Zuse_4712_assignsubmission_file"):
        (place / name).mkdir(parents=True)
        shutil.copyfile(built / "exercises" / NAME / f"{NAME}.ipynb", place / name / "my answers.ipynb")


@pytest.mark.parametrize("packed", ["", "zip", "zip with an outer folder"])
@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        (canvas_names, ["4711-lovelaceada", "4712-zuseconrad", "4713-o'neillshane"]),
        (moodle_names, ["4711-Ada Lovelace", "4712-Conrad Zuse"]),
    ],
)
def test_what_a_platform_gives_out(packed: str, platform, expected, built, known, tmp_path) -> None:
    place = tmp_path / "all" / "download"
    platform(place, built)
    if packed:
        around = place.parent if "outer" in packed else place
        place = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", around))
    assert students(place, known) == [(NAME, student) for student in expected]


def test_a_broken_notebook_among_a_platforms_is_for_the_others_assignment(built, known, tmp_path) -> None:
    canvas_names(tmp_path / "all", built)
    (tmp_path / "all" / f"brokenbea_4799_90299_{NAME}.ipynb").write_text("{")
    assert (NAME, "4799-brokenbea") in students(tmp_path / "all", known)


def test_one_hand_in_of_moodle_keeps_its_student(built, known, tmp_path) -> None:
    moodle_names(tmp_path / "all", built)
    shutil.rmtree(tmp_path / "all" / "Conrad Zuse_4712_assignsubmission_file")
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "all")
    assert students(Path(packed), known) == [(NAME, "4711-Ada Lovelace")]


def test_each_file_is_judged_by_its_own_name(built, known, tmp_path) -> None:
    canvas_names(tmp_path / "all", built)
    answers = (built / "exercises" / NAME / f"{NAME}.ipynb").read_bytes()
    (tmp_path / "all" / "zoe.ipynb").write_bytes(answers)
    (tmp_path / "all" / f"Bob_4714_assignsubmission_file_{NAME}.ipynb").write_bytes(answers)
    put(tmp_path / "all", {f"eve/{NAME}/{NAME}.ipynb": answers, "mallory/X_1_assignsubmission_file_/x.ipynb": answers})
    found = collect(tmp_path / "all", known)
    names = ["4711-lovelaceada", "4712-zuseconrad", "4713-o'neillshane", "4714-Bob", "eve", "zoe"]
    assert [s.student for s in found.submissions] == names
    assert "mallory/X_1_assignsubmission_file_: no such assignment" in " ".join(found.ignored)


def test_a_name_with_numbers_is_no_sign_of_canvas(built, known, tmp_path) -> None:
    answers = (built / "exercises" / NAME / f"{NAME}.ipynb").read_bytes()
    put(tmp_path, {name: answers for name in ("ada_2024_01_small.ipynb", "bob.ipynb", "zoe.ipynb")})
    assert students(tmp_path, known) == [(NAME, name) for name in ("ada_2024_01_small", "bob", "zoe")]
    put(tmp_path / "all", {f"{name}_01_02_lora.ipynb": answers for name in ("ada", "bob")})  # the course's numbers
    assert students(tmp_path / "all", known) == [(NAME, "ada_01_02_lora"), (NAME, "bob_01_02_lora")]


def test_a_file_beside_an_archives_outer_folder_is_passed_over(course, known) -> None:
    submit(course, "ada", RIGHT, flat=True)
    packed = shutil.make_archive(str(course / "all"), "zip", course, "submitted")
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("notes.txt", "of the platform")
    assert students(Path(packed), known) == [(NAME, "ada")]


def test_a_notebook_of_another_name_gets_a_row_and_the_reason(course, known) -> None:
    path = submit(course, "ada", RIGHT)
    path.rename(path.with_name("my homework.ipynb"))
    (found,) = collect(course / "submitted", known).submissions
    assert found.read() == (b"", f"the notebook is called my homework.ipynb, not {NAME}.ipynb")


def test_folders_of_no_assignment_are_named(course, known) -> None:
    submit(course, "ada", RIGHT)
    (course / "submitted" / "bob" / "01_smal").mkdir(parents=True)
    (course / "submitted" / "bob" / "01_smal" / "x.ipynb").write_text("{}")
    found = collect(course / "submitted", known)
    assert len(found.submissions) == 1 and f"Did you mean '{NAME}'" in found.ignored[0]


def test_names_that_become_the_same_stay_apart_and_keep_their_names(course, known) -> None:
    for name in ("ada?", "ada*", "_ada_", "Zoe", "zoe"):
        submit(course, name, RIGHT, flat=True)
    both = collect(course / "submitted", known).submissions
    assert len({s.student.casefold() for s in both}) == 5
    assert {s.name for s in both} == {"ada?", "ada*", "_ada_", "Zoe", "zoe"}
    (course / "submitted" / "ada?.ipynb").unlink()
    again = {s.name: s.student for s in collect(course / "submitted", known).submissions}
    assert again == {s.name: s.student for s in both if s.name != "ada?"}  # nobody moves up into another's row


@pytest.mark.parametrize(
    "name", ["O'Brien", "Lovelace, Ada", "Zoë Müller", "हिन्दी", "D’Arcy (Ann)", "李-小龍", "o.k@x.org"]
)
def test_names_are_kept_as_they_are(name: str, course, known) -> None:
    submit(course, unicodedata.normalize("NFD", name), RIGHT, flat=True)
    assert students(course / "submitted", known) == [(NAME, unicodedata.normalize("NFC", name))]


def test_clear_words_for_what_holds_no_submission(course, known, tmp_path) -> None:
    with pytest.raises(CourseError, match="There is no .*nowhere.*STUDENT/ASSIGNMENT/ASSIGNMENT.ipynb.*flat folder"):
        collect(tmp_path / "nowhere", known)
    with pytest.raises(CourseError, match="it holds nothing"):
        (tmp_path / "empty").mkdir()
        collect(tmp_path / "empty", known)
    submit(course, "ada", RIGHT)
    with pytest.raises(CourseError, match=r"Did you mean .*submitted\?"):
        collect(course, known)
    with pytest.raises(CourseError, match=r"it holds .*01_small\.ipynb"):
        collect(course / "submitted" / "ada", known)
    with pytest.raises(CourseError, match=f"no assignment '01_smal'. Did you mean '{NAME}'"):
        collect(course / "submitted", known, "01_smal")
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(CourseError, match="no folder and no zip archive"):
        collect(tmp_path / "text.zip", known)
    with pytest.raises(CourseError, match="no submission in .* that can be graded"):
        collect(course / "submitted", known, "02_other")


def put(place: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return place


LAYOUTS = {
    "canvas": "{0}_{1}_9_{2}",
    "moodle": "{0}_{1}_assignsubmission_file_/{2}",
    "moodle without folders": "{0}_{1}_assignsubmission_file_{2}",
    "nbgrader": "{0}/" + NAME + "/{2}",
}


@pytest.fixture(scope="module")
def answers(built: Path) -> bytes:
    return (built / "exercises" / NAME / f"{NAME}.ipynb").read_bytes()


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
    assert "folder.ipynb does not tell" in words


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
    "stamp", ["yesterday, or so", "0001-01-01 00:00 UTC", "9999-12-31 23:59 -12:00", "\x1b[2J", ""]
)
def test_a_time_that_can_not_be_read_is_a_question(stamp: str, course, known) -> None:
    path = submit(course, "ada", RIGHT)
    path.with_name("timestamp.txt").write_text(stamp)
    (found,) = collect(course / "submitted", known).submissions
    assert found.submitted == "" and found.notes[0].startswith("was it late?") and "\x1b" not in found.notes[0]


def test_many_files_of_one_student_are_that_students_trouble(answers, known, tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("Ada_1_assignsubmission_file_/x.ipynb", answers)
        for number in range(20_001):
            archive.writestr(f"Eve_2_assignsubmission_file_/{number}.ipynb", b"")
            archive.writestr(f"Ada_1_assignsubmission_file_/.git/{number}", b"")
    found = collect(tmp_path / "all.zip", known).submissions
    assert [(s.student, s.read()[1]) for s in found] == [("1-Ada", ""), ("2-Eve", "more than 200 files were handed in")]


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


def test_one_student_can_not_outvote_the_class(answers, known, tmp_path) -> None:
    cell = {"cell_type": "code", "source": "x", "metadata": {"nbgrader": {"grade_id": "something"}}}
    files = {f"{name}_{number}_9_x.ipynb": answers for number, name in enumerate(("ada", "bob"))}
    files |= {f"eve_7_{number}_x.ipynb": json.dumps({"cells": [cell]}) for number in range(50)}
    found = collect(put(tmp_path, files), known).submissions
    assert {s.student: s.assignment for s in found} == dict.fromkeys(("0-ada", "1-bob", "7-eve"), NAME)


def test_a_name_that_holds_another_students_number_does_not_become_that_student(answers, known, tmp_path) -> None:
    mallory = "Eve_2_assignsubmission_file_x_3_assignsubmission_file_"
    folders = put(tmp_path / "a", {f"{mallory}/x.ipynb": answers, "Ada_1_assignsubmission_file_/x.ipynb": answers})
    names = [s.student for s in collect(folders, known).submissions]
    assert names == ["1-Ada", "3-Eve_2_assignsubmission_file_x"]
    flat = put(tmp_path / "b", {f"{mallory}x.ipynb": answers, "Ada_1_assignsubmission_file_x.ipynb": answers})
    found = collect(flat, known)
    assert [s.student for s in found.submissions] == ["1-Ada"] and "may be of two students" in found.ignored[0]
