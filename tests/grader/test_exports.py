"""Grades in other programs' forms: filled into what the platform exported, nobody mixed up, nobody forgotten."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from grading_course import NAME, copy_of
from test_gradebook import outcome, record

from lorahub_edu.errors import CourseError
from lorahub_grader import exports
from lorahub_grader.gradebook import Course


@pytest.fixture(scope="module")
def course(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Course:
    made = Course(copy_of(built, tmp_path_factory.mktemp("exports") / "course"))
    record(made, outcome("ada@x.org"), outcome("bob", 0), outcome("zoe"))
    return made


def table(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_canvas_gets_its_own_table_back(course, tmp_path) -> None:
    roster = tmp_path / "canvas.csv"
    roster.write_text(
        f"Student,ID,SIS User ID,SIS Login ID,Section,Essay (1),{NAME} (77),Final Score\n"
        "    Points Possible,,,,,5,10,(read only)\n"
        '"Lovelace, Ada",1,S1,ada@x.org,A,4,,80\n"Builder, Bob",2,bob,b@x.org,A,3,9,70\n'
        '"Other, Olga",3,S3,olga,A,1,,10\n',
        encoding="utf-8-sig",
    )
    path, notes = exports.export(course, NAME, "canvas", roster, tmp_path / "out.csv")
    assert table(path) == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", f"{NAME} (77)"],
        ["    Points Possible", "", "", "", "", "10"],
        ["Lovelace, Ada", "1", "S1", "ada@x.org", "A", "6"],
        ["Builder, Bob", "2", "bob", "b@x.org", "A", "0"],
        ["Other, Olga", "3", "S3", "olga", "A", ""],  # handed nothing in: left as it was, not zero
    ]
    assert any("not in the roster: zoe" in note for note in notes)


def test_canvas_without_a_roster(course, tmp_path) -> None:
    path, notes = exports.export(course, NAME, "canvas", None, tmp_path / "out.csv")
    header, possible, *rows = table(path)
    assert header == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", NAME] and possible[-1] == "10"
    assert [(row[3], row[-1]) for row in rows] == [("ada@x.org", "6"), ("bob", "0"), ("zoe", "6")]
    assert "--roster" in notes[-1]


def test_moodle_gets_its_worksheet_back(course, tmp_path) -> None:
    roster = tmp_path / "moodle.csv"
    roster.write_text(
        "Identifier,Full name,Email address,Grade,Maximum Grade\n"
        "Participant 1,Ada Lovelace,ADA@x.org,,10\nParticipant 2,zoe,z@x.org,1,10\n"
    )
    path, notes = exports.export(course, NAME, "moodle", roster, tmp_path / "out.csv")
    assert [row[3] for row in table(path)] == ["Grade", "6", "6"] and any("bob" in note for note in notes)
    plain, _ = exports.export(course, NAME, "moodle", None, tmp_path / "plain.csv")
    assert table(plain) == [["Username", NAME], ["ada@x.org", "6"], ["bob", "0"], ["zoe", "6"]]


def test_students_that_a_platform_has_numbered_are_found_in_its_table(built, tmp_path) -> None:
    made = Course(copy_of(built, tmp_path / "course"))
    record(made, outcome("4711-lovelaceada"), outcome("4712-Zoe Zuse", 0))
    roster = tmp_path / "canvas.csv"
    roster.write_text('Student,ID,SIS Login ID\n"Lovelace, Ada",4711,al\n"Zuse, Zoe",4712,zz\n"Gone, Gus",471,gg\n')
    path, notes = exports.export(made, NAME, "canvas", roster, tmp_path / "out.csv")
    assert [row[-1] for row in table(path)] == [NAME, "6", "0", ""] and not any("roster" in note for note in notes)
    sheet = tmp_path / "moodle.csv"
    sheet.write_text("Identifier,Full name,Grade\nParticipant 4712,Zoe Zuse,\nParticipant 4711,Ada Lovelace,\n")
    path, _ = exports.export(made, NAME, "moodle", sheet, tmp_path / "sheet.csv")
    assert [row[-1] for row in table(path)] == ["Grade", "0", "6"]


def test_nbgraders_own_table(course, tmp_path) -> None:
    path, _ = exports.export(course, NAME, "nbgrader", None, tmp_path / "out.csv")
    header, *rows = table(path)
    found = {row[header.index("student_id")]: row[header.index("score")] for row in rows}
    assert found == {"ada@x.org": "6.0", "bob": "0.0", "zoe": "6.0"}


def test_clear_words_for_what_can_not_be_exported(course, tmp_path) -> None:
    with pytest.raises(CourseError, match=f"Did you mean '{NAME}'"):
        exports.export(course, "01_smal", "canvas", None, tmp_path / "out.csv")
    (tmp_path / "other.csv").write_text("name,colour\nada,red\n")
    with pytest.raises(CourseError, match="none of the columns"):
        exports.export(course, NAME, "canvas", tmp_path / "other.csv", tmp_path / "out.csv")


def test_nobody_graded_is_said(built, tmp_path) -> None:
    with pytest.raises(CourseError, match="Nobody has been graded"):
        exports.export(Course(copy_of(built, tmp_path / "course")), NAME, "canvas", None, tmp_path / "out.csv")
