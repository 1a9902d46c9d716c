"""The machinery of checks: fresh inputs, named misconceptions, one more hint a time, no false promise."""

from __future__ import annotations

import pytest
import torch

from lorahub_checks import problems
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds
from lorahub_edu.errors import CourseError
from lorahub_edu.show.check import check
from lorahub_edu.show.graded import NotSatisfiedError, require

DRAWN = []


@pytest.fixture(autouse=True)
def doubling():
    @problem("98.1", "doubling", ("nudge", "concept", "worked step"))
    def _specification(answer, generator):
        x = torch.rand(3, generator=generator)
        DRAWN.append(x)
        yield equals("twice the input", answer(x), 2 * x, misconceptions={"it was squared": x**2})
        yield holds("never negative", (torch.as_tensor(answer(x)) >= 0).all(), "a negative number", "a sign is wrong")

    problems._TRIED.clear()
    DRAWN.clear()
    yield
    problems._PROBLEMS.pop("98.1")


def test_a_right_answer_passes_public_checks_only() -> None:
    report = check("98.1", lambda x: x + x)
    assert report.passed and "public checks passed" in str(report)
    assert "all" not in str(report).split(":")[1].split("\n")[0]


def test_where_there_are_no_checks_nothing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    report = check("98.1", lambda x: 2 * x)
    assert not report.passed and repr(report) == "98.1: the checks are not installed here, so nothing was checked"
    with pytest.raises(NotSatisfiedError, match="nothing was checked"):
        require("98.1", lambda x: 2 * x)


def test_inputs_are_fresh_each_time_unless_seeded() -> None:
    for _ in range(3):
        check("98.1", lambda x: 2 * x)
    assert not torch.equal(DRAWN[0], DRAWN[1])
    check("98.1", lambda x: 2 * x, seed=5)
    check("98.1", lambda x: 2 * x, seed=5)
    assert torch.equal(DRAWN[-1], DRAWN[-2])


def test_the_misconception_is_named_and_hints_go_on() -> None:
    def again(x):
        return x**2

    answers = [again, again, lambda x: x**2 + 0, lambda x: 1 * x**2, lambda x: x**2 * 1, again]
    reports = [check("98.1", answer) for answer in answers]
    assert all("probably: it was squared" in str(report) for report in reports)
    hints = [report.hint for report in reports]
    assert hints == ["nudge", "nudge", "concept", "worked step", "worked step", "nudge"], "what was tried stays one try"
    assert "<details>" in reports[0]._repr_html_() and "hint: nudge" in str(reports[0])
    check("98.1", lambda x: 2 * x)
    assert check("98.1", lambda x: x).hint == "nudge"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: None, "a return missing"),
        (lambda x: "two", "a number or tensor was expected"),
        (lambda x: x[:2] * 2, r"shape (2,), expected (3,)"),
        (lambda x: x @ x.T @ x / 0 if False else 1 / 0, "ZeroDivisionError"),
        (lambda: 1, "TypeError"),
    ],
)
def test_every_failure_is_feedback(answer, words) -> None:
    report = check("98.1", answer)
    assert not report.passed and words in str(report)


def test_an_empty_place_is_no_failed_try() -> None:
    def stub(x):
        raise NotImplementedError

    report = check("98.1", stub)
    assert str(report) == "98.1 doubling: not tried yet" and not report.passed
    assert "dotted" in report._repr_html_() and "FAILED" not in report._repr_html_()
    assert check("98.1", lambda x: x).hint == "nudge"
    with pytest.raises(NotSatisfiedError, match="not tried yet"):
        require("98.1", stub)


def test_values_that_lie_about_equality_do_not_pass() -> None:
    class Agrees:
        def __eq__(self, other):
            return True

    assert not check("98.1", lambda x: Agrees()).passed


def test_unknown_problems() -> None:
    with pytest.raises(CourseError, match="Did you mean '98.1'"):
        check("98.2", None)
    with pytest.raises(CourseError, match="no checks for a lesson '77'"):
        check("77.1", None)


def test_rendering_escapes_what_the_answer_printed() -> None:
    report = problems.Report("98.1", "t", (Property("p", False, "<script>alert(1)</script>"),))
    assert "<script>" not in report._repr_html_() and "FAILED" in report._repr_html_()
    assert "dashed" in report._repr_html_()  # a second cue beside colour


def test_nan_never_equals() -> None:
    assert not equals("x", float("nan"), float("nan")).passed
    assert not equals("x", torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])).passed
