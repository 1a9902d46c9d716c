"""What the assignments ask for, read off their notebooks: problems, points and the minutes on their cards.

python tools/assignments_table.py     prints the table for docs/teaching.md
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lorahub_grader import assignments
from lorahub_grader.assignments import RELEASE, ROOT, Assignment

MINUTES = re.compile(r"^\| \d of 5 \| (\d+) \|", flags=re.MULTILINE)  # on a problem's card
TITLE = re.compile(r"^# (?:Assignment \d+ · )?(.+)$", flags=re.MULTILINE)


@dataclass(frozen=True)
class Line:
    """One assignment: problems that tests grade and that a person does, points of all, minutes on the cards."""

    name: str
    title: str
    tested: int
    manual: int
    points: float
    minutes: int


def line(assignment: Assignment) -> Line:
    """An assignment in one line."""
    roles = [cell.role for cell in assignment.cells]
    text = "\n\n".join(cell.source for cell in assignment.cells if cell.role == "text")
    title = TITLE.search(text)
    return Line(
        assignment.name,
        title.group(1) if title else assignment.name,
        roles.count("test"),
        roles.count("manual"),
        assignment.points,
        sum(int(minutes) for minutes in MINUTES.findall(text)),
    )


def table(root: Path = ROOT) -> str:
    """All assignments as a table in Markdown, with what they add up to."""
    lines = [line(assignments.load(name, root)) for name in assignments.names(root)]
    rows = [
        (
            f"[{entry.title}](../{RELEASE}/{entry.name}/{entry.name}.ipynb)",
            entry.tested,
            entry.manual,
            entry.points,
            entry.minutes,
        )
        for entry in lines
    ]
    rows.append(("together", *(sum(row[column] for row in rows) for column in range(1, 5))))
    head = "| assignment | problems with tests | answered in words | points | minutes |\n|---|---|---|---|---|\n"
    return head + "\n".join(
        f"| {title} | {a} | {b} | {points:g} | {minutes} |" for title, a, b, points, minutes in rows
    )


if __name__ == "__main__":
    print(table())
