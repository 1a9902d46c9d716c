"""The training loop: equal to transformers' Trainer, whatever the batches, with validation, schedule and log."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from training_runs import CONFIG, adapted, encoded_rows, same, trained
from transformers import Trainer, TrainingArguments

from lorahub_edu.data.batching import make_batches, step_rows
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import tiny
from lorahub_edu.training import loop, losses
from lorahub_edu.training.loop import train


@pytest.fixture(scope="module")
def rows():
    return encoded_rows()


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


def test_a_copy_of_the_model_trains_alike(rows) -> None:
    model = adapted()
    twin = copy.deepcopy(model)
    train(model, rows, CONFIG, progress=False)
    train(twin, rows, CONFIG, progress=False)
    assert same(trained(model), trained(twin))


# Schedule, validation, log.


def test_warm_up_and_decay(rows) -> None:
    history = train(adapted(), rows, replace(CONFIG, steps=8, warmup_steps=4), progress=False).history
    rates = [record["learning_rate"] / CONFIG.learning_rate for record in history]
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25])


def test_log_has_one_line_a_step_and_callbacks_see_it(rows, tmp_path: Path) -> None:
    seen = []
    config = replace(CONFIG, validate_every=3)
    result = train(adapted(), rows, config, validation=rows[:4], folder=tmp_path, progress=False, on_step=seen.append)
    lines = [json.loads(line) for line in (tmp_path / loop.LOG_FILE).read_text().splitlines()]
    assert lines == result.history == seen
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "validation_loss" in line] == [3, 6]
    assert all(line["tokens_per_second"] > 0 for line in lines)
