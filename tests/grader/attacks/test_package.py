"""Attacks that let the package answer: what an assignment asks for can't be imported while it is graded."""

from __future__ import annotations

import time

import pytest
from grading_course import sandbox_or_skip

from lorahub_grader import assignments
from lorahub_grader.inside.zygote import Settings
from lorahub_grader.sandbox import choose

BORROWED = {
    "by its name": "from lorahub_edu.spectra.measures import largest_cosines",
    "by importlib": "import importlib\nimportlib.import_module('lorahub_edu.spectra.measures').largest_cosines",
    "by its file": "import glob, lorahub_edu\npath = glob.glob(lorahub_edu.__path__[0] + '/spectra/measures.py')[0]\n"
    "space = {}\nexec(open(path).read(), space)\nlargest_cosines = space['largest_cosines']",
    "by another room's import": "from lorahub_edu.hub.zoo import *\nfrom lorahub_edu.spectra import measures",
    "by a module at the top": "from lorahub_edu.evaluation import perplexity",
    "by what was compiled": "import glob, lorahub_edu\n"
    "assert glob.glob(lorahub_edu.__path__[0] + '/__pycache__/errors.*.pyc')",
    "by the command line": "import subprocess, sys\n"
    "subprocess.run([sys.executable, '-c', 'import lorahub_edu.spectra.measures'], check=True)",
}
ALLOWED = "from lorahub_edu.show import check, graded, objects\nfrom lorahub_edu import results"


def errors(may_import: tuple[str, ...] | None, sources: list[str]) -> list[object]:
    """How cells end, each in a process of its own."""
    sandbox_or_skip().close()
    sandbox = choose.start("bubblewrap", Settings(preload=("torch",), may_import=may_import))
    found = []
    try:
        for source in sources:
            process = sandbox.open()
            process.channel.send({"do": "cell", "source": source, "number": 1}, deadline=time.monotonic() + 120)
            found.append(process.channel.receive(time.monotonic() + 120)[0]["error"])
            process.stop()
    finally:
        sandbox.close()
    return found


def test_the_package_does_not_answer() -> None:
    ends = errors((), [*BORROWED.values(), ALLOWED])
    assert all(ends[:-1]) and ends[-1] is None
    assert "can't be imported while this is graded" in ends[0][1]
    assert errors(None, list(BORROWED.values())) == [None] * len(BORROWED)


def test_a_room_that_may_be_imported_is_there() -> None:
    first, second = errors(("lora", "models", "data"), ["import lorahub_edu.lora.adapters", BORROWED["by its name"]])
    assert first is None and second is not None


@pytest.mark.parametrize("name", assignments.names())
def test_the_courses_assignments_say_so(name: str) -> None:
    assignment = assignments.load(name)
    assert assignment.may_import is not None
    said = "answers can't import `lorahub_edu`" in "".join(
        cell.source for cell in assignment.cells if cell.role == "text"
    )
    assert said == (assignment.may_import == ())
