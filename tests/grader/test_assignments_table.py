"""The table of assignments says what the notebooks hold, and the guide for teachers holds the table."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from grading_course import NAME, SMALL, make_course

from lorahub_grader import assignments
from lorahub_grader.assignments import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import assignments_table as overview  # noqa: E402

CARD = "# | difficulty | minutes | source | the bug |\n# |---|---|---|---|\n# | 2 of 5 | {} | a paper | a bug |\n"


def test_a_line_counts_tests_words_points_and_minutes(tmp_path: Path) -> None:
    cards = "".join(f"\n# %% [markdown]\n{CARD.format(minutes)}" for minutes in (10, 25))
    course = make_course(tmp_path / "course", SMALL.replace("# # A small", "# # Assignment 07 · A small") + cards)
    found = overview.line(assignments.load(NAME, course))
    assert found == overview.Line(NAME, "A small assignment", 3, 1, 10.0, 35)
    rows = overview.table(course).splitlines()
    assert rows[2] == f"| [A small assignment](../exercises/{NAME}/{NAME}.ipynb) | 3 | 1 | 10 | 35 |"
    assert rows[3] == "| together | 3 | 1 | 10 | 35 |"


def test_the_guide_for_teachers_has_the_table() -> None:
    guide = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    table = overview.table()
    assert table in guide, f"docs/teaching.md needs this table:\n{table}"
    together = re.search(r"\| together \| (\d+) ", table)
    assert int(together.group(1)) >= 40


def test_every_problem_with_a_test_has_a_card() -> None:
    for name in assignments.names():
        cells = assignments.load(name).cells
        text = "\n".join(cell.source for cell in cells if cell.role == "text")
        tested = sum(cell.role == "test" for cell in cells)
        assert len(overview.MINUTES.findall(text)) == tested, name
        assert text.count("**Expected:**") == tested and text.count("Hint 3, a worked step") == tested, name
