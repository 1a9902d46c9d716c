"""One search with few and with many modules: which ones, and how a target's instability is compared."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from lorahub_edu.data import tasks
from lorahub_edu.hub import zoo
from lorahub_studies import adapting, many_modules, zoo_training


def test_twenty_modules_are_added_to_the_shipped_ones(tmp_path: Path) -> None:
    jobs = many_modules.modules(tmp_path, steps=1)
    assert len({job.task for job in jobs}) == len(jobs) == len(zoo.names()) == many_modules.MANY // 2
    assert {job.task for job in jobs} | set(zoo.names()) == set(tasks.names("module"))
    assert not {job.task for job in jobs} & set(many_modules.TARGETS)


def test_the_study_runs_from_zoo_to_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COUNTS": (2, 4), "FEW": 2, "MANY": 4, "TARGETS": ("less", "bool_not")}.items():
        monkeypatch.setattr(many_modules, name, value)
    monkeypatch.setattr(zoo_training, "CARD_ITEMS", 4)
    zoo_training.base.cache_clear()
    for name in ("upper", "bool"):
        zoo_training.run(zoo_training.ModuleJob(name, str(tmp_path / "shipped"), "tiny", steps=1))
    monkeypatch.setattr(many_modules, "SHIPPED", tmp_path / "shipped")
    rows = many_modules.run(tmp_path / "out", draws=2, test_items=3, profile="tiny", steps=1)
    assert [(row["target"], row["modules"], row["draw"]) for row in rows] == [
        (target, count, draw) for target in ("less", "bool_not") for count in (2, 4) for draw in (0, 1)
    ]
    assert many_modules.run(tmp_path / "out", draws=2, test_items=3, profile="tiny", steps=1) == rows
    assert set(many_modules.summary(rows)["instability"]) == {2, 4}
    zoo_training.base.cache_clear()
    adapting.bench.cache_clear()


def test_instability_is_compared_over_targets() -> None:
    def row(target: str, count: int, draw: int, loss: float) -> dict:
        return {"target": target, "modules": count, "draw": draw, "method": many_modules.METHOD, "loss": loss}

    losses = {5: (1.0, 1.2), 40: (1.0, 2.0)}
    rows = [row(t, n, draw, value) for t in "abc" for n, values in losses.items() for draw, value in enumerate(values)]
    summary = many_modules.summary(rows)
    assert summary["instability"][40]["a"] == pytest.approx(statistics.stdev(losses[40]))
    more = statistics.stdev(losses[40]) - statistics.stdev(losses[5])
    assert summary["interval"] == pytest.approx({"mean": more, "low": more, "high": more, "ahead": 3, "behind": 0})
