"""The training loop: equal to transformers' Trainer, resumable to the bit after kill -9, and stopped with advice."""

from __future__ import annotations

import copy
import json
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
import torch.nn.functional as F
from transformers import Trainer, TrainingArguments

from lorahub_edu import adapters, checkpoints, losses, tiny, training
from lorahub_edu.data import alpaca
from lorahub_edu.data.batching import make_batches, step_rows
from lorahub_edu.errors import CourseError
from lorahub_edu.lora import LoRAConfig
from lorahub_edu.training import TrainingConfig, train


@pytest.fixture(scope="module")
def rows():
    return alpaca.encode_rows(alpaca.shipped_examples()[:40], tiny.tokenizer(), 160, too_long="drop")


def adapted(dropout: float = 0.0, attention: str = "packed"):
    model = tiny.model(attention=attention)
    adapters.inject(model, LoRAConfig(rank=4, alpha=8, dropout=dropout), seed=0)
    return model


def trained(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


CONFIG = TrainingConfig(steps=6, learning_rate=5e-3, batch_size=6, micro_batch_size=2, warmup_steps=2)


# The loss.


@pytest.mark.parametrize("count", [1, 127, 128, 300])
def test_chunked_cross_entropy_equals_torch(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(50, (count,), generator=generator)
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    wanted = torch.autograd.grad(3.0 * expected, (hidden, weight))
    loss = losses.chunked_cross_entropy(hidden, weight, labels)
    found = torch.autograd.grad(3.0 * loss, (hidden, weight))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_chunked_cross_entropy_in_bfloat16_keeps_a_float32_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 64, generator=generator).bfloat16()
    weight = (0.1 * torch.randn(500, 64, generator=generator)).bfloat16()
    labels = torch.randint(500, (200,), generator=generator)
    loss = losses.chunked_cross_entropy(hidden, weight, labels)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, labels, reduction="sum")
    assert loss.dtype == torch.float32
    assert abs(loss.item() / exact.item() - 1) < 2e-3


@pytest.mark.parametrize("batching", ["padded", "grouped", "packed"])
def test_batch_loss_equals_transformers_own_loss(rows, batching: str) -> None:
    model = tiny.model(attention="packed").double()
    total = sum(losses.batch_loss(model, batch).item() for batch in make_batches(rows[:7], batching, 3, 2))
    expected, labels = 0.0, 0
    for row in rows[:7]:
        count = sum(label != -100 for label in row.labels[1:])
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]  # (T - 1, vocabulary)
        expected += F.cross_entropy(logits, torch.tensor(row.labels[1:]), ignore_index=-100, reduction="sum").item()
        labels += count
    assert total == pytest.approx(expected, rel=1e-10)
    assert losses.mean_loss(model, make_batches(rows[:7], batching, 3, 2)) == pytest.approx(
        expected / labels, rel=1e-10
    )


# The loop against an independent one.


@pytest.mark.parametrize("batching", ["padded", "packed"])
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_equals_transformers_trainer(rows, tmp_path: Path, batching: str, full: bool) -> None:
    def start():
        model = tiny.model(attention="packed" if batching == "packed" else "sdpa")
        if full:
            return model.requires_grad_(True)
        adapters.inject(model, LoRAConfig(rank=4, alpha=8), seed=0)
        return model

    config = replace(CONFIG, batching=batching, weight_decay=0.1, learning_rate=1e-3, clip_norm=0.3)
    ours = start()
    result = train(ours, rows, config, progress=False)

    ordered = [rows[i] for step in range(config.steps) for i in step_rows(len(rows), config.batch_size, step, 0)]

    class Ordered(Trainer):
        def _get_train_sampler(self, *_args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    def pad(features):
        width = max(len(row.input_ids) for row in features)
        return {
            "input_ids": torch.tensor([row.input_ids + [2] * (width - len(row.input_ids)) for row in features]),
            "labels": torch.tensor([row.labels + [-100] * (width - len(row.labels)) for row in features]),
            "attention_mask": torch.tensor(
                [[1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in features]
            ),
        }

    theirs = start()
    theirs.set_attn_implementation("sdpa")
    trainer = Ordered(
        theirs,
        TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=config.steps,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=3,
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup_steps,
            lr_scheduler_type="linear",
            weight_decay=config.weight_decay,
            max_grad_norm=config.clip_norm,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        ),
        train_dataset=ordered,
        data_collator=pad,
    )
    trainer.train()
    theirs_losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert result.losses == pytest.approx(theirs_losses, abs=2e-4)
    start_weights, ours_weights, theirs_weights = trained(start()), trained(ours), trained(theirs)
    for name in ours_weights:
        # Trainer decays every weight but norms, ours every one: compare what both decay.
        if full and "norm" in name:
            continue
        torch.testing.assert_close(ours_weights[name], theirs_weights[name], rtol=2e-3, atol=2e-5)
    assert any(not torch.equal(start_weights[name], ours_weights[name]) for name in ours_weights)


def test_gradient_checkpointing_and_micro_batches_change_nothing(rows) -> None:
    reference = adapted()
    train(reference, rows, CONFIG, progress=False)
    for change in ({"gradient_checkpointing": True}, {"micro_batch_size": 6}, {"batching": "grouped"}):
        model = adapted()
        train(model, rows, replace(CONFIG, **change), progress=False)
        for name, weight in trained(model).items():
            torch.testing.assert_close(weight, trained(reference)[name], rtol=1e-3, atol=1e-5)


def test_gradient_checkpointing_is_off_again_afterwards(rows) -> None:
    model = adapted()
    train(model, rows, replace(CONFIG, steps=1, gradient_checkpointing=True), progress=False)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_autocast_trains_float32_weights_close_to_float32(rows) -> None:
    plain, mixed = adapted(), adapted()
    expected = train(plain, rows, CONFIG, progress=False).losses
    found = train(mixed, rows, replace(CONFIG, autocast="bfloat16"), progress=False).losses
    assert found == pytest.approx(expected, abs=0.05)
    assert all(weight.dtype == torch.float32 for weight in trained(mixed).values())


def test_training_lowers_the_loss_and_touches_only_the_adapter(rows) -> None:
    model = adapted()
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    batches = make_batches(rows[:6], "packed", 2, 2)
    start = losses.mean_loss(model, batches)
    train(model, rows[:6], replace(CONFIG, steps=15, learning_rate=2e-2), progress=False)
    assert losses.mean_loss(model, batches) < start - 0.1
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters() if not p.requires_grad)


def test_leaves_the_global_generator_and_the_mode_alone(rows) -> None:
    model = adapted(dropout=0.1)
    state = torch.get_rng_state()
    train(model, rows, replace(CONFIG, steps=2), progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training


# Schedule, validation, log.


def test_warm_up_and_decay(rows) -> None:
    history = train(adapted(), rows, replace(CONFIG, steps=8, warmup_steps=4), progress=False).history
    rates = [record["learning_rate"] / CONFIG.learning_rate for record in history]
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25])


def test_early_stop_returns_to_the_best_weights(rows) -> None:
    model = adapted()
    config = replace(CONFIG, steps=60, learning_rate=0.3, warmup_steps=0, validate_every=1, patience=3, clip_norm=None)
    result = train(model, rows[:6], config, validation=rows[20:30], progress=False)
    assert result.stopped == "early" and result.steps < 60
    values = dict(result.validation_losses)
    assert values[result.best_step] == min(values.values())
    assert result.steps == result.best_step + 3
    again = losses.mean_loss(model, make_batches(rows[20:30], "packed", 2, 2))
    assert again == pytest.approx(values[result.best_step], abs=1e-6)


def test_log_has_one_line_a_step_and_callbacks_see_it(rows, tmp_path: Path) -> None:
    seen = []
    config = replace(CONFIG, validate_every=3)
    result = train(adapted(), rows, config, validation=rows[:4], folder=tmp_path, progress=False, on_step=seen.append)
    lines = [json.loads(line) for line in (tmp_path / training.LOG_FILE).read_text().splitlines()]
    assert lines == result.history == seen
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "validation_loss" in line] == [3, 6]
    assert all(line["tokens_per_second"] > 0 for line in lines)


# Resuming.


def test_a_run_in_two_halves_equals_one(rows, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=8, checkpoint_every=3, validate_every=2, patience=9)
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
    assert len((tmp_path / training.LOG_FILE).read_text().splitlines()) == 8


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
    from lorahub_edu import adapters, tiny
    from lorahub_edu.data import alpaca
    from lorahub_edu.lora import LoRAConfig
    from lorahub_edu.training import TrainingConfig, train

    rows = alpaca.encode_rows(alpaca.shipped_examples()[:40], tiny.tokenizer(), 96, too_long="drop")
    config = TrainingConfig(steps=40, learning_rate=5e-3, batch_size=4, micro_batch_size=2, warmup_steps=2,
                            checkpoint_every=2, validate_every=10, patience=50)

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
    newest = sorted(tmp_path.glob("step-*"))[-1] / checkpoints.TENSORS_FILE
    newest.write_bytes(newest.read_bytes()[:100])
    again = adapted()
    result = train(again, rows, replace(CONFIG, checkpoint_every=2), folder=tmp_path, progress=False)
    assert result.steps == 6 and same(trained(again), trained(whole))


def test_checkpoints_hold_no_pickle_and_old_ones_go(rows, tmp_path: Path) -> None:
    train(adapted(), rows, replace(CONFIG, checkpoint_every=1), folder=tmp_path, progress=False)
    assert len(list(tmp_path.glob("step-*"))) == checkpoints.KEEP
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {training.LOG_FILE, checkpoints.TENSORS_FILE, checkpoints.META_FILE}


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
    real = checkpoints.save_file

    def full_later(tensors, path) -> None:
        if path.parent.parent == tmp_path and (tmp_path / "step-00000002").exists():
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full_later)
    with pytest.raises(CourseError, match="checkpoint of step 4.*No space left.*Earlier checkpoints are intact"):
        train(adapted(), rows, config, folder=tmp_path, progress=False)
    monkeypatch.setattr(checkpoints, "save_file", real)
    assert checkpoints.load_latest(tmp_path).step == 2
    whole, again = adapted(), adapted()
    train(whole, rows, config, progress=False)
    train(again, rows, config, folder=tmp_path, progress=False)
    assert same(trained(again), trained(whole))


def test_a_copy_of_the_model_trains_alike(rows) -> None:
    model = adapted()
    twin = copy.deepcopy(model)
    train(model, rows, CONFIG, progress=False)
    train(twin, rows, CONFIG, progress=False)
    assert same(trained(model), trained(twin))
