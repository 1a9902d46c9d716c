"""A learner's progress as two tables: lessons with their checks, assignments with their points."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lorahub_edu.results import Table
from lorahub_edu.show import lessons, progress

CHECK = re.compile(r'\bcheck\(\s*"(\d\d\.\d+)"')
NONE = "–"


def tables(root: Path = lessons.ROOT) -> tuple[Table, Table]:
    """Two tables of what was done, of all there is to do.

    Lessons: when each was last run to its end, and how many of its checks were passed. Assignments: the same for their
    checks, and the points of the last grading on this machine.

    Raises:
        CourseError: the lessons are not beside the package.
    """
    done = progress.read()
    rows = [
        (
            name,
            done.lessons.get(name[:2], NONE),
            _passed(_ids((lessons.SOURCES / f"{name}.py").read_text("utf-8")), done),
        )
        for name in lessons.names()
    ]
    work = [(path.stem, _passed(_ids(_code(path)), done), _points(path.stem, done)) for path in _released(root)]
    where = f"Kept in {progress.path()} on this machine only." if progress.kept() else "Nothing is kept here."
    return (
        Table(("lesson", "last run to its end", "checks passed"), tuple(rows)),
        Table(("assignment", "checks passed", "points when last graded here"), tuple(work), where),
    )


def _released(root: Path) -> list[Path]:
    """The learners' notebooks of all assignments, in order."""
    return sorted(path for path in (root / "exercises").glob("*/*.ipynb") if path.stem == path.parent.name)


def _code(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def _ids(source: str) -> set[str]:
    """The checks that a lesson or an assignment asks for."""
    return set(CHECK.findall(source))


def _passed(ids: set[str], done: progress.Progress) -> str:
    return f"{len(ids & set(done.checks))} of {len(ids)}" if ids else NONE


def _points(name: str, done: progress.Progress) -> str:
    return "{:g} of {:g}".format(*done.points[name]) if name in done.points else NONE
