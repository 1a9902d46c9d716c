"""The lint of the checks finds what it is there to find: misjudged answers, other words, too few variants."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from grading_course import HEADER, make_course

from lorahub_checks import problems
from lorahub_checks.problems import problem
from lorahub_checks.properties import equals
from lorahub_edu.cli import app
from lorahub_edu.errors import CourseError
from lorahub_grader import lint
from lorahub_grader.assignments import load

NAME = "98_small"
SOURCE = (
    HEADER
    + """# %%
offset = 0

# %% answer="double"
def double(x):
    ### BEGIN SOLUTION
    return 2 * x + offset
    ### END SOLUTION

# %%
print(double(3))

# %% test="test_double" points=2
assert callable(double)
### BEGIN HIDDEN TESTS
from lorahub_edu.checks.graded import require

require("98.3", double)
### END HIDDEN TESTS
"""
)
SOUND = """
RIGHT = {"98.3": {"sum": lambda x: x + x, "product": lambda x: x * 2}}
WRONG = {"98.3": {
    "squared": (lambda x: x**2, "it was squared"),
    "halved": (lambda x: x / 2, "it was halved"),
    "as it is": (lambda x: x, "nothing was done"),
    "negative": (lambda x: -2 * x, "the sign is wrong"),
    "no return": (lambda x: None, "a return missing"),
}}
"""


@pytest.fixture
def course(tmp_path: Path):
    @problem("98.3", "doubling", ("nudge", "concept", "worked step"))
    def _specification(answer, generator):
        x = 3 + int(lint.torch.randint(0, 9, (), generator=generator))
        wrong = {"it was squared": x**2, "it was halved": x / 2, "nothing was done": x, "the sign is wrong": -2 * x}
        yield equals("twice the input", answer(x), 2 * x, misconceptions=wrong)

    made = make_course(tmp_path / "course", SOURCE, NAME)
    (made / "solutions" / "variants").mkdir()
    write(made, SOUND)
    yield made
    problems._PROBLEMS.pop("98.3")


def write(course: Path, text: str, name: str = "lesson98") -> None:
    (course / "solutions" / "variants" / f"{name}.py").write_text(text, encoding="utf-8")


def only(course: Path) -> lint.Judgement:
    (found,) = lint.judgements(course)
    return found


def test_sound_variants(course: Path) -> None:
    found = only(course)
    assert not found.faults and (found.problem, found.assignment, found.right, found.wrong) == ("98.3", NAME, 3, 5)
    (asked,) = lint.asked(load(NAME, course))
    assert asked.reference(4) == 8 and asked.name == "double"
    with pytest.raises(NotImplementedError):
        asked.stub(4)


@pytest.mark.parametrize(
    ("old", "new", "where", "words"),
    [
        ("x + x", "x + x + 1", lint.REFUSED, "sum: twice the input: "),
        ("lambda x: x**2", "lambda x: 2 * x", lint.ACCEPTED, "squared"),
        ("lambda x: x**2", "lambda x: [x**2, 2 * x][x % 2]", lint.ACCEPTED, "squared"),  # on some inputs only
        ("it was halved", "it was quartered", lint.OTHER_WORDS, "halved: told 'it was halved', not 'it was quartered'"),
        ('"sum": lambda x: x + x, ', "", lint.MISSING, "1 more right answers"),
        ('"as it is": (lambda x: x, "nothing was done"),', "", lint.MISSING, "1 more wrong answers"),
    ],
)
def test_each_fault_is_found(old: str, new: str, where: str, words: str, course: Path) -> None:
    assert SOUND.count(old) == 1
    write(course, SOUND.replace(old, new))
    found = only(course)
    assert any(kind == where and line.startswith(words) for kind, line in found.faults), found


def test_a_stub_that_is_accepted_and_a_reference_that_is_not(course: Path) -> None:
    (asked,) = lint.asked(load(NAME, course))
    given = lint.variants(course)["98.3"]
    filled = lint.Asked("98.3", NAME, "double", lambda x: 3 * x, lambda x: 2 * x)
    found = lint.judgement(given, filled)
    (refused, told), accepted = found.faults
    assert refused == lint.REFUSED and told.startswith("the reference")
    assert accepted == (lint.ACCEPTED, "the blank stub")


def test_a_problem_without_variants_is_missing_them(course: Path) -> None:
    write(course, "RIGHT, WRONG = {}, {}\n")
    lines = ["2 more right answers", "5 more wrong answers"]
    assert only(course).faults == [(lint.MISSING, line) for line in lines]


def test_files_that_are_not_in_the_agreed_form(course: Path) -> None:
    write(course, SOUND, "lesson98_more")
    with pytest.raises(CourseError, match="another file does so too"):
        lint.variants(course)
    write(course, "RIGHT = {}\n", "lesson98_more")
    with pytest.raises(CourseError, match="lesson98_more.py needs RIGHT"):
        lint.variants(course)


def test_assignments_that_can_not_be_read(course: Path, tmp_path: Path) -> None:
    unasked = make_course(tmp_path / "unasked", SOURCE.replace('require("98.3", double)', "pass"), NAME)
    with pytest.raises(CourseError, match="test_double calls no require"):
        lint.asked(load(NAME, unasked))
    failing = make_course(tmp_path / "failing", SOURCE.replace("offset = 0", "offset = 1 / 0"), NAME)
    with pytest.raises(CourseError, match="a cell ends with ZeroDivisionError"):
        lint.asked(load(NAME, failing))


def test_the_command_prints_a_table_and_fails_when_a_check_does(course: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    def typed() -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lorahub-edu", "lint-exercises", "--course", str(course)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return ended.value.code or 0, "".join(capsys.readouterr())

    code, said = typed()
    assert (
        code == 0
        and "98.3" in said
        and "1 problem, 3 right answers, 5 wrong answers, 0 false accepts, 0 false rejects, 0 refused" in said
    )
    write(course, SOUND.replace("x + x", "x + x + 1").replace("lambda x: x**2", "lambda x: 2 * x"))
    code, said = typed()
    assert code == 1 and "1 false accept, 1 false reject" in said and "98.3: accepted though wrong: squared" in said
