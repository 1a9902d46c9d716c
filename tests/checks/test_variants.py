"""Every check accepts the right answers to its problem, in whatever form, and refuses the wrong ones with the words."""

from __future__ import annotations

import re

import pytest

from lorahub_grader import assignments, lint

VARIANTS = lint.variants()


@pytest.fixture(scope="module")
def asked() -> dict[str, lint.Asked]:
    return {one.problem: one for name in assignments.names() for one in lint.asked(assignments.load(name))}


@pytest.mark.parametrize("id", VARIANTS)
def test_right_answers_pass_and_wrong_ones_are_named(id: str, asked: dict[str, lint.Asked]) -> None:
    found = lint.judgement(VARIANTS[id], asked.get(id))
    assert not found.faults, found


def test_every_problem_has_variants(asked: dict[str, lint.Asked]) -> None:
    folder = assignments.ROOT / "lorahub_checks"
    sources = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("lesson*.py"))
    written = re.findall(r'^@problem\(\s*"([\d.]+)"', sources, flags=re.MULTILINE)
    assert len(written) == len(set(written)) > 60
    assert set(asked) <= set(written) == set(VARIANTS)
