"""Submissions are found in every agreed layout, and what is none is said to be none."""

from __future__ import annotations

import json
import shutil
import unicodedata
import zipfile
from pathlib import Path

import pytest
from grading_course import NAME, RIGHT, put, students, submit

from lorahub_edu.errors import CourseError
from lorahub_grader.collect import collect


@pytest.fixture
def course(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "course")


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
    assert "bob.ipynb: it does not tell" in found.ignored[0] and "--assignment" in found.ignored[0]
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
