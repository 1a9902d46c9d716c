"""Submissions are found in every agreed layout, and what is none is said to be none."""

from __future__ import annotations

import shutil
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
        (canvas_names, ["4711-lovelaceada", "4712-zuseconrad", "4713-oneillshane"]),
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


def test_a_platforms_name_among_others_is_only_a_name(built, known, tmp_path) -> None:
    canvas_names(tmp_path / "all", built)
    shutil.copyfile(built / "exercises" / NAME / f"{NAME}.ipynb", tmp_path / "all" / "zoe.ipynb")
    assert (NAME, f"lovelaceada_4711_90210_{NAME}") in students(tmp_path / "all", known)


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


def test_names_that_become_the_same_stay_apart(course, known) -> None:
    for name in ("ada?", "ada*", "_ada_"):
        submit(course, name, RIGHT, flat=True)
    assert len({s.student for s in collect(course / "submitted", known).submissions}) == 3


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
