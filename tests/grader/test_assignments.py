"""Assignments are what their sources give, the same every time, and no solution reaches a learner."""

from __future__ import annotations

import html
import re
from pathlib import Path

import mistune  # what nbconvert renders Markdown with
import nbformat
import pytest
from grading_course import HEADER, NAME, SMALL, make_course

from lorahub_checks.problems import get_problem
from lorahub_edu.errors import CourseError
from lorahub_grader import assignments
from lorahub_grader.assignments import ROOT, load


def test_what_is_committed_is_what_the_sources_give() -> None:
    assert assignments.sources(), "there are assignments"
    assert assignments.differences() == []


@pytest.mark.parametrize("name", assignments.names())
def test_no_solution_is_left_in_what_learners_get(name: str) -> None:
    text = (ROOT / "exercises" / name / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not [word for word in ("SOLUTION", "HIDDEN TESTS", "require(") if word in text]
    code = [cell.source for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "code"]
    written = {line.strip() for source in code for line in source.splitlines()}
    loaded = load(name)
    for cell in loaded.cells:
        if cell.role in ("answer", "manual"):
            assert cell.stub != cell.source
            inside = cell.source.partition("BEGIN SOLUTION")[2].partition("### END SOLUTION")[0]
            for line in inside.strip().splitlines():
                if any(character.isalnum() for character in line):  # a bracket alone gives nothing away
                    assert line.strip() not in written


@pytest.mark.parametrize("name", assignments.names())
def test_a_learner_sees_a_check_or_a_test_below_each_answer(name: str) -> None:
    cells = load(name).cells
    for index, cell in enumerate(cells):
        if cell.role == "answer":
            after = next(later for later in cells[index + 1 :] if later.role in ("answer", "test"))
            assert after.role == "test" and after.stub.strip(), f"{cell.grade_id} has no visible check"


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    course = make_course(tmp_path / "one")
    first = {path: path.read_bytes() for path in course.rglob("*.ipynb")}
    assignments.build(NAME, course)
    assert {path: path.read_bytes() for path in course.rglob("*.ipynb")} == first and len(first) == 2
    assert assignments.differences(course) == []


def test_every_difference_and_leftover_is_found(tmp_path: Path) -> None:
    course = make_course(tmp_path / "one")
    release = course / "exercises" / NAME / f"{NAME}.ipynb"
    release.write_text(release.read_text().replace("A small assignment", "### BEGIN SOLUTION"))
    found = "\n".join(assignments.differences(course))
    assert f"exercises/{NAME}/{NAME}.ipynb is not what its source gives" in found
    (course / "solutions" / "src" / f"{NAME}.py").rename(course / "solutions" / "src" / "02_other.py")
    assert "has no source" in "\n".join(assignments.differences(course))


def test_roles_points_and_names(tmp_path: Path) -> None:
    loaded = load(NAME, make_course(tmp_path / "one"))
    assert [(c.role, c.grade_id, c.points) for c in loaded.cells if c.role not in ("text", "code")] == [
        ("answer", "double", 0),
        ("test", "test_double", 2),
        ("answer", "root", 0),
        ("test", "test_root", 3),
        ("answer", "guess", 0),
        ("test", "test_guess", 1),
        ("manual", "essay", 4),
    ]
    assert loaded.points == 10 and loaded.answer_ids == {"double", "root", "guess", "essay"}
    double, guess = (next(c for c in loaded.cells if c.grade_id == name) for name in ("double", "guess"))
    assert double.names == {"double": "function"} and guess.names == {"guess": "value"}
    released = nbformat.read(tmp_path / "one" / "exercises" / NAME / f"{NAME}.ipynb", as_version=4)
    test = next(c for c in released.cells if c.metadata.get("nbgrader", {}).get("grade_id") == "test_double")
    assert "21" not in test.source and test.metadata.editable is False


def test_hints_come_from_the_check(tmp_path: Path) -> None:
    """As they read: a power is no bold type, and a comparison no tag, but code in backticks stays as it is."""
    course = make_course(tmp_path / "one", SMALL.replace("# # A small assignment", "# # Small\n#\n# {{hints 03.14}}"))
    text = nbformat.read(course / "exercises" / NAME / f"{NAME}.ipynb", as_version=4).cells[0].source
    hints = get_problem("03.14").hints
    assert text.count("<details>") == 3 and hints[1].count("**") > 1
    shown = html.unescape(mistune.html(text))
    assert all(hint in shown for hint in hints)
    assert assignments._as_markdown("if a < b: `a * b < 1`") == "if a &lt; b: `a * b < 1`"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('answer="a" test="b" points=1', "don't go together"),
        ('test="b"', "needs points"),
        ('answer="b" points=1', "has none if an answer"),
        ('answer="b" colour=true', "colour"),
        ('answer="ü"', "letters, digits"),
        ('answer="double"', "used twice"),
    ],
)
def test_a_cells_first_line_must_make_sense(line: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(CourseError, match=words):
        make_course(tmp_path / "one", SMALL + f"\n# %% {line}\npass\n")


def test_unknown_names_and_problems_are_near_matched(tmp_path: Path) -> None:
    course = make_course(tmp_path / "one")
    with pytest.raises(CourseError, match=f"Did you mean '{NAME}'"):
        load("01_smal", course)
    with pytest.raises(CourseError, match=f"Did you mean '{NAME}'"):
        assignments.build_source("1_small", course)
    with pytest.raises(CourseError, match="Did you mean '01.2'"):
        make_course(tmp_path / "two", HEADER + "# %% [markdown]\n# {{hints 01.22}}\n")


def test_what_nbgrader_refuses_is_said(tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="Solution region detected in a non-solution cell"):
        make_course(tmp_path / "one", SMALL + "\n# %%\n### BEGIN SOLUTION\nx = 1\n### END SOLUTION\n")


NUMBERS = ("Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")


@pytest.mark.parametrize("name", assignments.names())
def test_an_assignment_counts_its_problems_and_minutes(name: str) -> None:
    text = (assignments.ROOT / "solutions" / "src" / f"{name}.py").read_text(encoding="utf-8")
    said = re.search(r"^# (\w+) problems on lesson", text, re.MULTILINE).group(1)
    assert NUMBERS.index(said) + 5 == text.count("\n# ## Problem ")
    minutes = re.findall(r"^# \| \d of 5 \| (\d+) \|", text, re.MULTILINE)
    assert re.search(r"About\s(?:# )?(\d+) minutes", text).group(1) == str(sum(map(int, minutes)))
    assert text.rindex("{{hints") > text.rindex("# %% test="), "hints stand below the check"
