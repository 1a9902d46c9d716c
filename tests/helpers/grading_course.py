"""A teacher's folder with one small assignment, submissions for it, and sandboxes for tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

from lorahub_edu.errors import CourseError
from lorahub_grader import assignments
from lorahub_grader.collect import collect
from lorahub_grader.inside.zygote import Limits, Settings
from lorahub_grader.sandbox import choose
from lorahub_grader.sandbox.process import SandboxError

if TYPE_CHECKING:
    from lorahub_grader import runner
    from lorahub_grader.gradebook import Course

NAME = "01_small"
HEADER = "# ---\n# jupyter:\n#   jupytext:\n#     text_representation:\n#       format_name: percent\n# ---\n\n"
SMALL = (
    HEADER
    + '''# %% [markdown]
# # A small assignment

# %%
import math

# %% answer="double"
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION

# %% test="test_double" points=2
assert double(3) == 6, "twice three is six"
### BEGIN HIDDEN TESTS
assert double(21) == 42, "the hidden number is doubled wrongly"
### END HIDDEN TESTS

# %% answer="root"
def root(x):
    ### BEGIN SOLUTION
    return math.sqrt(x)
    ### END SOLUTION

# %% test="test_root" points=3
### BEGIN HIDDEN TESTS
assert abs(root(1369) - 37) < 1e-9, "the root is wrong"
### END HIDDEN TESTS

# %% answer="guess"
guess = None
### BEGIN SOLUTION
guess = 7
### END SOLUTION

# %% test="test_guess" points=1
assert guess == 7, "seven was meant"

# %% [markdown] manual="essay" points=4
# ### BEGIN SOLUTION
# Because.
# ### END SOLUTION
'''
)
RIGHT = {
    "double": "def double(x):\n    return x + x",
    "root": "def root(x):\n    return x ** 0.5",
    "guess": "guess = 7",
}
POINTS = 6.0  # of the tests; the essay has 4 more


def make_course(root: Path, source: str = SMALL, name: str = NAME) -> Path:
    """A course's folder with the assignment built."""
    (root / "solutions" / "src").mkdir(parents=True)
    (root / "solutions" / "src" / f"{name}.py").write_text(source, encoding="utf-8")
    assignments.build(name, root)
    return root


def notebook(root: Path, answers: dict[str, str], name: str = NAME) -> nbformat.NotebookNode:
    """What a learner hands in: the released notebook with answers filled in."""
    made = nbformat.read(root / "exercises" / name / f"{name}.ipynb", as_version=4)
    for cell in made.cells:
        grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
        cell.source = answers.get(grade_id, cell.source)
    return made


def submit(root: Path, student: str, answers: dict[str, str], name: str = NAME, flat: bool = False) -> Path:
    """Put a submission where nbgrader collects it, or into a flat folder."""
    place = root / "submitted" if flat else root / "submitted" / student / name
    place.mkdir(parents=True, exist_ok=True)
    path = place / (f"{student}.ipynb" if flat else f"{name}.ipynb")
    path.write_text(json.dumps(notebook(root, answers, name)), encoding="utf-8")
    return path


def students(place: Path, known: dict[str, frozenset[str]], wanted: str | None = None) -> list[tuple[str, str]]:
    """(assignment, student) of each submission that is found in a place."""
    return [(found.assignment, found.student) for found in collect(place, known, wanted).submissions]


def put(place: Path, files: dict[str, bytes | str]) -> Path:
    """Write files into a folder."""
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return place


def grade(course: Course, **more: object) -> runner.Graded:
    """Grade what was submitted in a course, with nothing preloaded."""
    from lorahub_grader import runner

    return runner.grade(course, course.root / "submitted", settings={"preload": ()}, **more)


def scores(course: Course) -> dict[str, float]:
    """What the gradebook says of each student."""
    with course.open() as book:
        return {s.student_id: s.score for s in book.find_assignment(NAME).submissions}


def copy_of(course: Path, to: Path) -> Path:
    """The same course in a folder of its own."""
    shutil.copytree(course, to)
    return to


def sandbox_or_skip(preload: tuple[str, ...] = (), **limits: int) -> choose.Sandbox:
    """Bubblewrap's sandbox; where there is none the test is skipped and says so."""
    try:
        return choose.start("bubblewrap", Settings(preload=preload, limits=Limits(**limits)))
    except (SandboxError, CourseError) as error:
        pytest.skip(f"no sandbox here: {error}")
