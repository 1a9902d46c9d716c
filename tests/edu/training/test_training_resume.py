"""Training is resumable to the bit after kill -9, and stopped with advice."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import CONFIG, adapted, encoded_rows, same, trained

from lorahub_edu.data import alpaca
from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import tiny
from lorahub_edu.training import loop
from lorahub_edu.training.loop import train


@pytest.fixture(scope="module")
def rows():
    return encoded_rows()


# Resuming.


def test_a_run_in_two_halves_equals_one(rows, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=8, checkpoint_every=3, validate_every=2)
    whole = adapted(dropout=0.2)
    expected = train(whole, rows, config, validation=rows[:4], progress=False)

    class StopHereError(Exception):
        pass

    def stop(record: dict) -> None:
        if record["step"] == 5:
            raise StopHereError

    with pytest.raises(StopHereError):
        train(adapted(dropout=0.2), rows, config, validation=rows[:4], folder=tmp_path, progress=False, on_step=stop)
    fresh = tiny.model(attention="packed")
    adapters.inject(fresh, LoRAConfig(rank=4, alpha=8, dropout=0.2), seed=123)  # another start: the folder decides
    found = train(fresh, rows, config, validation=rows[:4], folder=tmp_path, progress=False)
    assert same(trained(fresh), trained(whole))
    strip = [{k: v for k, v in r.items() if "second" not in k} for r in found.history]
    assert strip == [{k: v for k, v in r.items() if "second" not in k} for r in expected.history]
    assert len((tmp_path / loop.LOG_FILE).read_text().splitlines()) == 8


def test_a_finished_run_is_not_run_again(rows, tmp_path: Path) -> None:
    first = adapted()
    train(first, rows, CONFIG, folder=tmp_path, progress=False)
    seen = []
    second = adapted()
    result = train(second, rows, CONFIG, folder=tmp_path, progress=False, on_step=seen.append)
    assert seen == [] and result.steps == 6
    assert same(trained(first), trained(second))


KILLED = textwrap.dedent(
    """
    import hashlib, os, random, signal, sys, time
    import torch
    torch.set_num_threads(1)
    from pathlib import Path
    from lorahub_edu.lora import adapters
    from lorahub_edu.models import tiny
    from lorahub_edu.data import alpaca
    from lorahub_edu.lora.layer import LoRAConfig
    from lorahub_edu.training.loop import TrainingConfig, train

    rows = alpaca.encode_rows(alpaca.shipped_examples()[:40], tiny.tokenizer(), 96, too_long="drop")
    config = TrainingConfig(steps=40, learning_rate=5e-3, batch_size=4, micro_batch_size=2, warmup_steps=2,
                            checkpoint_every=2, validate_every=10)

    def digest(folder):
        model = tiny.model(attention="packed")
        adapters.inject(model, LoRAConfig(rank=4, dropout=0.1), seed=0)
        train(model, rows, config, validation=rows[:3], folder=folder, progress=False)
        sha = hashlib.sha256()
        for name, p in model.named_parameters():
            if p.requires_grad:
                sha.update(name.encode() + p.detach().numpy().tobytes())
        return sha.hexdigest()

    def child(folder, answer):
        pid = os.fork()
        if pid == 0:
            answer.write_text(digest(folder))
            os._exit(0)
        return pid

    scratch, chance, kills, started = Path(sys.argv[1]), random.Random(0), 0, time.perf_counter()
    pid = child(scratch / "whole", scratch / "whole.txt")
    assert os.waitpid(pid, 0)[1] == 0
    length = time.perf_counter() - started
    while True:
        pid = child(scratch / "killed", scratch / "killed.txt")
        time.sleep(chance.uniform(0.02, length / 6))
        if kills < 12 and os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1
            continue
        if kills >= 12:
            assert os.waitpid(pid, 0)[1] == 0
        break
    print(kills, (scratch / "whole.txt").read_text() == (scratch / "killed.txt").read_text())
    """
)


def test_kill_9_at_random_moments_ends_in_bit_identical_weights(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    kills, identical = done.stdout.split()
    assert int(kills) >= 10 and identical == "True"


def test_a_checkpoint_cut_short_falls_back_to_the_one_before(rows, tmp_path: Path) -> None:
    whole = adapted()
    train(whole, rows, CONFIG, progress=False)
    train(adapted(), rows, replace(CONFIG, checkpoint_every=2), folder=tmp_path, progress=False)
    newest = sorted(tmp_path.glob("step-*"))[-1] / loop.TENSORS_FILE
    newest.write_bytes(newest.read_bytes()[:100])
    again = adapted()
    result = train(again, rows, replace(CONFIG, checkpoint_every=2), folder=tmp_path, progress=False)
    assert result.steps == 6 and same(trained(again), trained(whole))


def test_checkpoints_hold_no_pickle_and_old_ones_go(rows, tmp_path: Path) -> None:
    train(adapted(), rows, replace(CONFIG, checkpoint_every=1), folder=tmp_path, progress=False)
    assert len(list(tmp_path.glob("step-*"))) == loop.KEEP
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {loop.LOG_FILE, loop.TENSORS_FILE, loop.META_FILE}


def test_interrupt_keeps_the_last_step_and_says_how_to_go_on(rows, tmp_path: Path, capsys) -> None:
    config = replace(CONFIG, steps=8, checkpoint_every=100)
    whole = adapted(dropout=0.1)
    train(whole, rows, config, progress=False)

    def press_ctrl_c(record: dict) -> None:
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    model = adapted(dropout=0.1)
    result = train(model, rows, config, folder=tmp_path, progress=False, on_step=press_ctrl_c)
    assert result.stopped == "interrupted" and result.steps == 3
    assert "after step 3 of 8" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    again = adapted(dropout=0.1)
    finished = train(again, rows, config, folder=tmp_path, progress=False)
    assert finished.stopped == "finished" and same(trained(again), trained(whole))


def test_a_second_interrupt_stops_at_once(rows) -> None:
    def press_twice(_record: dict) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        train(adapted(), rows, CONFIG, progress=False, on_step=press_twice)


def test_trains_outside_the_main_thread(rows) -> None:
    done = []
    thread = threading.Thread(
        target=lambda: done.append(train(adapted(), rows, replace(CONFIG, steps=1), progress=False))
    )
    thread.start()
    thread.join()
    assert done[0].steps == 1


# Bad input.


def test_nan_loss_stops_with_step_rate_and_advice_and_keeps_the_weights(rows) -> None:
    model = adapted()
    seen: list[dict[str, torch.Tensor]] = []

    def spoil(record: dict) -> None:
        if record["step"] == 2:
            seen.append(trained(model))
            model.get_decoder().norm.weight.data.fill_(math.nan)

    with pytest.raises(
        CourseError, match=r"became nan at step 3, at learning rate 5.00e-03.*weights are those of step 2"
    ):
        train(model, rows, CONFIG, progress=False, on_step=spoil)
    assert same(trained(model), seen[0])


def test_another_run_in_the_folder_is_refused(rows, tmp_path: Path) -> None:
    train(adapted(), rows, CONFIG, folder=tmp_path, progress=False)
    with pytest.raises(CourseError, match=r"holds another run: learning_rate \(0.005 there, 0.1 now\)"):
        train(adapted(), rows, replace(CONFIG, learning_rate=0.1), folder=tmp_path, progress=False)
    with pytest.raises(CourseError, match="holds another run: rows"):
        train(adapted(), rows[1:], CONFIG, folder=tmp_path, progress=False)
    with pytest.raises(CourseError, match="holds another run: parameters"):
        train(adapted(dropout=0.5), rows, CONFIG, folder=tmp_path, progress=False)


def test_nothing_to_train(rows) -> None:
    frozen = tiny.model().requires_grad_(False)
    with pytest.raises(CourseError, match="No parameter is trainable"):
        train(frozen, rows, CONFIG, progress=False)
    with pytest.raises(CourseError, match="no rows"):
        train(adapted(), [], CONFIG, progress=False)
    merged = adapted()
    adapters.merge(merged)
    with pytest.raises(CourseError, match="merged"):
        train(merged, rows, CONFIG, progress=False)
    only_prompt = [alpaca.Encoded([5, 6, 7], [-100, -100, -100])]
    with pytest.raises(CourseError, match="no labelled token"):
        train(adapted(), only_prompt, CONFIG, progress=False)


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"micro_batch_size": -1}])
def test_bad_settings(change: dict) -> None:
    with pytest.raises(CourseError, match=next(iter(change))):
        replace(CONFIG, **change)


def test_a_full_disk_keeps_earlier_checkpoints(rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, checkpoint_every=2)
    real = loop.save_file

    def full_later(tensors, path) -> None:
        if path.parent.parent == tmp_path and (tmp_path / "step-00000002").exists():
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(loop, "save_file", full_later)
    with pytest.raises(CourseError, match="checkpoint of step 4 .earlier ones are intact.*No space left"):
        train(adapted(), rows, config, folder=tmp_path, progress=False)
    monkeypatch.setattr(loop, "save_file", real)
    assert loop.load_latest(tmp_path)[0] == 2
    whole, again = adapted(), adapted()
    train(whole, rows, config, progress=False)
    train(again, rows, config, folder=tmp_path, progress=False)
    assert same(trained(again), trained(whole))
