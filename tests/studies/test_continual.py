"""Tasks in a row: merged, started anew, tested; and resumed where a kill left them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from lorahub_edu.errors import CourseError
from lorahub_edu.forgetting.lab import Lab
from lorahub_edu.forgetting.tails import Tuning
from lorahub_studies import continual as module
from lorahub_studies.continual import ContinualRun, continual, run_continual

TASKS = ("reverse", "capitals", "sort")
TUNING = Tuning(5e-3, 3, rank=2)


def comparable(stages: list[module.Stage]) -> list[dict]:
    return [asdict(stage) | {"cpu_seconds": 0} for stage in stages]


def test_every_task_is_tested_after_each(lab: Lab) -> None:
    stages = continual(lab, TASKS, TUNING)
    assert [stage.task for stage in stages] == ["", *TASKS]
    assert all(tuple(stage.losses) == TASKS for stage in stages)
    assert stages[0].pretraining_loss == lab.pretraining_loss and stages[0].spectrum == {}
    for stage, before in zip(stages[1:], stages, strict=False):
        assert stage.losses[stage.task] < before.losses[stage.task]
    ranks = [stage.spectrum["effective_rank"] for stage in stages[1:]]
    assert ranks[0] <= 2 + 1e-6 < ranks[-1] <= 6  # the whole change grows by an adapter of rank 2 a task
    assert lab.tail.weights is lab.tail.original or all(
        torch.equal(lab.tail.weights[name], weight) for name, weight in lab.tail.original.items()
    )


def test_a_killed_sequence_goes_on_to_the_same_end(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = continual(lab, TASKS, TUNING)
    trained: list[str] = []
    train = module._train

    def interrupted(place: Lab, task: str, tuning: Tuning):  # noqa: ANN202
        if task == "sort" and "killed" not in trained:
            trained.append("killed")
            raise KeyboardInterrupt
        trained.append(task)
        return train(place, task, tuning)

    monkeypatch.setattr(module, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        continual(lab, TASKS, TUNING, folder=tmp_path / "run")
    resumed = continual(lab, TASKS, TUNING, folder=tmp_path / "run")
    assert trained == ["reverse", "capitals", "killed", "sort"]
    assert comparable(resumed) == comparable(whole)
    assert len(list((tmp_path / "run").glob("*.safetensors"))) == 1
    assert comparable(continual(lab, TASKS, TUNING, folder=tmp_path / "run")) == comparable(whole)


def test_another_sequence_in_the_folder_is_not_continued(lab: Lab, tmp_path: Path) -> None:
    continual(lab, TASKS[:1], TUNING, folder=tmp_path)
    with pytest.raises(CourseError, match="other tasks or settings"):
        continual(lab, TASKS[:2], TUNING, folder=tmp_path)
    next(tmp_path.glob("*.safetensors")).write_bytes(b"cut short")
    with pytest.raises(CourseError, match="holds no whole sequence"):
        continual(lab, TASKS[:1], TUNING, folder=tmp_path)


def test_impossible_sequences_are_refused(lab: Lab) -> None:
    with pytest.raises(CourseError, match="at least one, and none twice"):
        continual(lab, (), TUNING)
    with pytest.raises(CourseError, match="at least one, and none twice"):
        continual(lab, ("sort", "sort"), TUNING)
    with pytest.raises(CourseError, match="Did you mean 'sort'"):
        continual(lab, ("sotr",), TUNING)


def test_a_run_of_a_study_is_the_same_sequence(lab: Lab) -> None:
    run = ContinualRun(TASKS[:2], 2, "alpha = 2r", 2.0, 5e-3, 3, 0, profile="tiny", layers=2)
    row = run_continual(run)
    assert [{**stage, "cpu_seconds": 0} for stage in row["stages"]] == comparable(continual(lab, TASKS[:2], TUNING))
    diverged = run_continual(ContinualRun(TASKS[:2], 0, "", 1.0, 1e30, 4, 0, profile="tiny", layers=2))
    assert "diverged" in diverged["diverged"] and diverged["stages"] == []
