"""`lorahub-edu intruders sweep` as a user types it, on the tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorahub_edu import results
from lorahub_edu.cli.app import app
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_studies import engine
from lorahub_studies.forgetting_sweep import STUDIES, settling_jobs


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settling is two runs of two steps on the tiny model."""
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    jobs = [replace(job, steps=2, profile="tiny", layers=1) for job in settling_jobs()[:2]]
    monkeypatch.setitem(STUDIES, "settling", replace(STUDIES["settling"], jobs=lambda: jobs))


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["intruders", "sweep", *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_study_is_planned_run_continued_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "2 runs, 2 still to be done" in run("--study", "settling", "--plan")
    shown = run("--study", "settling")
    assert shown.count("reverse: rank ") == 2 and "loss" in shown
    written = json.loads((results.folder() / "intruders_settling.json").read_text(encoding="utf-8"))
    assert len(written["rows"]) == 2 and len(written["summary"]["chosen"]) == 1
    assert engine.count(tmp_path / "runs" / "intruders") == 2
    assert "2 runs, 0 still to be done" in run("--study", "settling", "--plan")
    assert "reverse: rank" not in run("--study", "settling")  # nothing is run twice


def test_a_study_without_a_name_or_with_a_wrong_one_is_refused() -> None:
    with pytest.raises(CourseError, match="one of settling, ranks, predict"):
        run()
    with pytest.raises(CourseError, match="Did you mean 'ranks'"):
        run("--study", "rank")
