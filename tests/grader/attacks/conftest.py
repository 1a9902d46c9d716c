"""The arena's assignment, and its sandboxes: as in earnest, and without the walls."""

from __future__ import annotations

from pathlib import Path

import pytest
from grading_arena import NAME, SOURCE
from grading_course import make_course, sandbox_or_skip

from lorahub_grader import assignments
from lorahub_grader.inside.zygote import Settings
from lorahub_grader.sandbox import choose


@pytest.fixture(scope="session")
def arena_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_course(tmp_path_factory.mktemp("arena"), SOURCE, NAME)


@pytest.fixture(scope="session")
def arena(arena_root: Path) -> assignments.Assignment:
    return assignments.load(NAME, arena_root)


@pytest.fixture(scope="session")
def walls():
    """The sandbox, with torch in memory."""
    started = sandbox_or_skip(("torch",))
    yield started
    started.close()


@pytest.fixture(scope="session")
def no_walls():
    """The same process without a sandbox around it: for controls only."""
    started = choose.start(choose.UNSAFE, Settings(preload=("torch",)))
    yield started
    started.close()
