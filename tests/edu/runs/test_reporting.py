"""A run's figures reach TensorBoard's files and Trackio's calls, step by step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lorahub_edu.cli import app


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    def run(*words: str) -> tuple[int, str]:
        arguments = ["train", "--profile", "tiny", "--steps", "3", "--out", str(tmp_path / "run"), *words]
        monkeypatch.setattr(sys, "argv", ["lorahub-edu", *arguments])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return ended.value.code or 0, "".join(capsys.readouterr())

    return run


def test_tensorboard_reads_what_was_logged(train, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train("--report-to", "tensorboard")[0] == 0
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"loss", "learning_rate", "tokens_per_second", "validation_loss"} <= set(events.Tags()["scalars"])
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (record["step"], pytest.approx(record["loss"])) for record in logged
    ]


def test_trackio_gets_settings_steps_and_an_end(train, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list = []
    stand_in = SimpleNamespace(
        init=lambda **named: calls.append(named),
        log=lambda record, step: calls.append((step, record["loss"])),
        finish=lambda: calls.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    assert train("--report-to", "trackio")[0] == 0
    begun, *steps, ended = calls
    assert begun["name"] == "run" and begun["config"]["rank"] == 4 and ended == "finished"
    assert [step for step, _ in steps] == [1, 2, 3]


def test_a_library_that_is_missing_is_named_before_any_work(train, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    code, said = train("--report-to", "trackio")
    assert code == 1 and "pip install trackio" in said
    assert not (tmp_path / "run" / "log.jsonl").exists()
