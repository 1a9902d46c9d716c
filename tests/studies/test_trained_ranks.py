"""Zoos of several ranks: what they are trained as, the rates, and a verdict that asks for equality within a margin."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from lorahub_edu.hub import zoo
from lorahub_studies import adapting, engine, trained_ranks, zoo_training


def card(rank: int, rate: float, loss: float) -> dict:
    return {"rank": rank, "learning_rate": rate, "loss_after": loss}


def test_a_rank_takes_the_rate_with_the_lowest_mean_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained_ranks, "RANKS", (1, 8))
    monkeypatch.setattr(trained_ranks, "RATES", (0.1, 0.2))
    cards = [card(1, 0.1, 1.0), card(1, 0.1, 3.0), card(1, 0.2, 1.9), card(1, 0.2, 2.0), card(8, 0.1, 0.5)]
    assert trained_ranks.own_rates([*cards, card(8, 0.2, 0.6)]) == {1: 0.2, 8: 0.1}


@pytest.mark.parametrize(
    ("second", "usual", "verdict"),
    [
        ((-4.9, 4.9), 30.0, "shown"),
        ((-4.9, 4.9), 9.0, "not shown here"),  # nothing to lose
        ((-1.0, 5.1), 30.0, "not shown here"),  # an interval that holds zero shows nothing by itself
        ((1.0, 9.0), 30.0, "not shown here"),  # a difference that may be below the margin
        ((5.1, 9.0), 30.0, "refuted here"),
        ((-9.0, -5.1), 30.0, "refuted here"),
    ],
)
def test_the_rank_matters_little_only_inside_the_margin(
    second: tuple[float, float], usual: float, verdict: str
) -> None:
    arms = [
        {"rank": rank, "strict": {"mean": mean}, "against": {"low": low, "high": high}}
        for rank, mean, (low, high) in ((1, 1.0, (-2.0, 3.0)), (8, usual, (0.0, 0.0)), (16, 1.0, second))
    ]
    assert trained_ranks.verdict(arms) == verdict


def test_the_study_runs_and_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANKS": (1, 2), "USUAL": 2, "MODULES": ("upper", "bool"), "TARGETS": ("add", "past")}.items():
        monkeypatch.setattr(trained_ranks, name, value)
    monkeypatch.setattr(zoo_training, "CARD_ITEMS", 4)
    zoo_training.base.cache_clear()
    adapting.bench.cache_clear()
    rows, cards = trained_ranks.run(tmp_path, draws=2, test_items=3, profile="tiny", steps=2)
    assert len(cards) == 8 and {(c["rank"], c["alpha"], c["steps"]) for c in cards} == {(1, 2.0, 2), (2, 4.0, 2)}
    for folder in (tmp_path / "zoos").iterdir():
        rank = int(folder.name.removeprefix("rank").partition("_")[0])
        files = zoo.load(None, folder)
        assert [file.path.name for file in files] == ["bool", "upper"]
        assert all(A.shape[0] == rank for file in files for A, _ in file.weights.values())
    path = trained_ranks.write(rows, cards, tmp_path, "tiny")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert len(content["rows"]) == 2 * 2 * 2 * 2  # ranks, arms, targets, draws
    arms = content["summary"]["arms"]
    assert [(each["rank"], each["arm"]) for each in arms] == [(1, "common"), (2, "common"), (1, "own"), (2, "own")]
    for each in arms:
        mine, usual = (
            statistics.fmean(row["strict"] for row in rows if row["method"] == trained_ranks.arm(rank, each["arm"]))
            for rank in (each["rank"], 2)
        )
        assert each["strict"]["mean"] == pytest.approx(100 * mine)
        assert each["against"]["mean"] == pytest.approx(100 * (mine - usual))
    assert arms[0]["rate"] == trained_ranks.COMMON and content["summary"]["verdict"]
    before = engine.count(tmp_path / "modules")
    assert trained_ranks.run(tmp_path, draws=2, test_items=3, profile="tiny", steps=2) == (rows, cards)
    assert engine.count(tmp_path / "modules") == before == 8
    zoo_training.base.cache_clear()
    adapting.bench.cache_clear()
