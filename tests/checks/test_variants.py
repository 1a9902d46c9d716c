"""Every check accepts the right answers to its problem, in whatever form, and refuses the wrong ones with the words."""

from __future__ import annotations

import pytest

from lorahub_edu.grading import assignments, lint

pytest.importorskip("nbgrader", reason="nbgrader is not installed: pip install lorahub-edu[teach]")
VARIANTS = lint.variants()


@pytest.fixture(scope="module")
def asked() -> dict[str, lint.Asked]:
    return {one.problem: one for name in assignments.names() for one in lint.asked(assignments.load(name))}


@pytest.mark.parametrize("id", VARIANTS)
def test_right_answers_pass_and_wrong_ones_are_named(id: str, asked: dict[str, lint.Asked]) -> None:
    found = lint.verdict(VARIANTS[id], asked.get(id))
    assert found.sound, found


def test_every_problem_of_an_assignment_has_variants(asked: dict[str, lint.Asked]) -> None:
    assert asked and set(asked) <= set(VARIANTS)
