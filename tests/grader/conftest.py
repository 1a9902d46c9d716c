"""One built course for all tests of the grading, and whether this machine has a sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest
from grading_course import NAME, make_course, sandbox_or_skip

pytest.importorskip("nbgrader", reason="nbgrader is not installed: pip install lorahub-edu[teach]")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course's folder, its assignment in the gradebook; tests that change it take a copy."""
    from lorahub_grader import assignments, gradebook

    root = make_course(tmp_path_factory.mktemp("course"))
    course = gradebook.Course(root)
    with gradebook.writing(course):
        gradebook.prepare(course, assignments.load(NAME, root))
    return root


@pytest.fixture(scope="session")
def known(built: Path) -> dict[str, frozenset[str]]:
    """The ids of each assignment's answers, as collecting asks for them."""
    from lorahub_grader import assignments

    return {NAME: assignments.load(NAME, built).answer_ids, "02_other": frozenset({"something"})}


@pytest.fixture(scope="session")
def answers(built: Path) -> bytes:
    """A notebook that is handed in as it was released."""
    return (built / "exercises" / NAME / f"{NAME}.ipynb").read_bytes()


@pytest.fixture(scope="session")
def sandbox():
    """One zygote without torch for all tests."""
    started = sandbox_or_skip()
    yield started
    started.close()


@pytest.fixture
def quick(sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grade in the one sandbox that is open already, for tests that are not about sandboxes."""
    from lorahub_grader import runner, worker

    class Open:
        get = staticmethod(lambda job: sandbox)
        close = staticmethod(lambda: None)

    monkeypatch.setattr(runner.choose, "choose", lambda *a, **k: "bubblewrap")
    monkeypatch.setattr(runner, "SANDBOXES", Open)
    monkeypatch.setattr(worker, "SANDBOXES", Open)
