"""One built course for all tests of the grading, and whether this machine has a sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest
from grading_course import make_course, sandbox_or_skip

pytest.importorskip("nbgrader", reason="nbgrader is not installed: pip install lorahub-edu[teach]")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course's folder; tests that change it take a copy."""
    return make_course(tmp_path_factory.mktemp("course"))


@pytest.fixture(scope="session")
def sandbox():
    """One zygote without torch for all tests."""
    started = sandbox_or_skip()
    yield started
    started.close()
