"""Training the tail is training the model: against torch and PEFT on the whole model."""

from __future__ import annotations

import copy
import itertools
import math

import peft
import pytest
import torch
from forgetting_rows import whole_loss
from transformers import get_linear_schedule_with_warmup

from lorahub_edu.data.batching import step_rows
from lorahub_edu.errors import CourseError
from lorahub_edu.forgetting import tails
from lorahub_edu.forgetting.hidden import CachedRows, Tail
from lorahub_edu.forgetting.tails import DivergedError, Tuning, train, training


def reference(model: torch.nn.Module, parameters: list, rows: CachedRows, tuning: Tuning) -> list[float]:
    """The same recipe in plain torch on a whole model; returns the loss before each step."""
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.0)
    losses = []
    for step in range(tuning.steps):
        chosen = [rows.rows[place] for place in step_rows(len(rows), 8, step, tuning.seed)]
        labels = sum(len(row.answer_ids) for row in chosen)
        loss = sum(whole_loss(model, row) for row in chosen) / labels
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = tuning.rates()(step)
        optimizer.step()
    return losses


def last(tail: Tail, cached: CachedRows, tuning: Tuning) -> tails.Trained:
    """A run's state after its last step."""
    run = training(tail, cached, tuning, (tuning.steps,))
    state = next(run)
    run.close()
    return state


def test_full_fine_tuning_is_torchs(tail: Tail, cached: CachedRows) -> None:
    tuning = Tuning(learning_rate=2e-3, steps=4, seed=3)
    model = copy.deepcopy(tail.model)
    matrices = [model.get_submodule(name).weight.requires_grad_(True) for name in tail.names]
    expected = reference(model, matrices, cached, tuning)
    progress = last(tail, cached, tuning)
    assert progress.train_losses == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < expected[0]
    for update, matrix in zip(progress.updates, matrices, strict=True):
        difference = (update.weight() - matrix.detach()).norm() / update.dense().norm()
        assert difference < 0.02, update.name  # Adam divides by the size of a gradient, also of a rounded one


def test_lora_is_pefts(tail: Tail, cached: CachedRows) -> None:
    tuning = Tuning(learning_rate=5e-3, steps=4, rank=3, scaling=4.0, seed=3)
    config = peft.LoraConfig(r=3, lora_alpha=12, target_modules=list(tail.names))
    model = peft.get_peft_model(copy.deepcopy(tail.model), config)
    ours = tails.LoRAChange(tail, tuning)  # only for the start that its seed gives
    with torch.no_grad():
        for name, layer in ours.layers:
            model.base_model.model.get_submodule(name).lora_A["default"].weight.copy_(layer.lora_A["default"])
    ours.undo()
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = reference(model, parameters, cached, tuning)
    progress = last(tail, cached, tuning)
    assert progress.train_losses == pytest.approx(expected, rel=1e-4)
    for update in progress.updates:
        theirs = model.base_model.model.get_submodule(update.name).get_delta_weight("default").detach()
        assert (update.dense() - theirs).norm() / theirs.norm() < 0.02, update.name


def test_the_schedule_is_a_linear_warm_up_and_decay() -> None:
    tuning = Tuning(learning_rate=1.0, steps=50)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    # transformers' schedule starts at 0 and never uses its last value; ours starts one step later
    schedule = get_linear_schedule_with_warmup(optimizer, 3, 51)
    for done in range(50):
        optimizer.step()
        schedule.step()
        assert tuning.rates()(done) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_the_model_is_back_after_a_run_that_ended_or_was_closed(tail: Tail, cached: CachedRows) -> None:
    before = {name: p.detach().clone() for name, p in tail.model.named_parameters()}
    for rank, scaling in ((0, 1.0), (2, 2.0)):
        run = training(tail, cached, Tuning(1e-2, 5, rank, scaling), (1, 3))
        next(run)
        run.close()
        after = dict(tail.model.named_parameters())
        assert after.keys() == before.keys()
        assert all(torch.equal(before[name], p) for name, p in after.items())
        assert not any(p.requires_grad for p in after.values())


@pytest.mark.parametrize("rank", [0, 4])
def test_a_recorded_loss_is_that_of_the_merged_weights(tail: Tail, cached: CachedRows, rank: int) -> None:
    trained = train(tail, cached, Tuning(5e-3, 3, rank), validation=cached.batches(), texts=None, at=(1,))
    assert [point.step for point in trained.points] == [1, 3]
    assert math.isnan(trained.points[0].pretraining_loss)
    tail.put({update.name: update.weight() for update in trained.updates})
    assert tail.loss(cached.batches()) == pytest.approx(trained.points[-1].validation_loss, rel=1e-5)


def test_a_run_starts_from_the_weights_that_were_put_and_reports_the_whole_change(
    tail: Tail, cached: CachedRows
) -> None:
    first = last(tail, cached, Tuning(5e-3, 2, rank=2)).updates
    tail.put({update.name: update.weight() for update in first})
    again = tails.LoRAChange(tail, Tuning(5e-3, 2, rank=2))
    for update, merged in zip(again.updates(), first, strict=True):  # B = 0: nothing has come on top yet
        torch.testing.assert_close(update.dense(), merged.dense(), atol=1e-6, rtol=1e-4)
    again.undo()
    second = last(tail, cached, Tuning(5e-3, 2, rank=2, seed=1)).updates
    assert all(torch.linalg.matrix_rank(update.dense(), tol=1e-5) <= 4 for update in second)
    assert any(torch.linalg.matrix_rank(update.dense(), tol=1e-5) > 2 for update in second)


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(tail: Tail, cached: CachedRows) -> None:
    runs = [last(tail, cached, Tuning(5e-3, 3, rank=2, seed=seed)) for seed in (0, 0, 1)]
    assert runs[0].train_losses == runs[1].train_losses != runs[2].train_losses
    for one, same in zip(runs[0].updates, runs[1].updates, strict=True):
        assert torch.equal(one.dense(), same.dense())


def test_steps_far_below_a_bfloat16_spacing_are_not_lost(cached: CachedRows) -> None:
    from lorahub_edu.models import tiny

    tail = Tail(tiny.model(), layers=2)
    rows = tail.cache(list(cached.rows))
    updates = last(tail, rows, Tuning(1e-5, 3)).updates
    changed = [(update.dense().abs() > 0).float().mean().item() for update in updates]
    assert min(changed) > 0.9


def test_a_run_stops_at_its_target(tail: Tail, cached: CachedRows) -> None:
    everything = {"validation": cached.batches(), "texts": None}
    free = train(tail, cached, Tuning(5e-3, 8), at=range(1, 9), **everything)
    target = free.points[3].validation_loss
    stopped = train(tail, cached, Tuning(5e-3, 8), at=range(1, 9), target_loss=target, **everything)
    assert stopped.points[-1].step <= 4
    assert stopped.points[-1].validation_loss <= target
    assert len(stopped.train_losses) == stopped.points[-1].step


def test_a_run_that_diverges_says_so_and_leaves_the_model_whole(tail: Tail, cached: CachedRows) -> None:
    before = tail.loss(cached.batches())
    with pytest.raises(DivergedError, match="Lower the learning rate"):
        list(itertools.islice(training(tail, cached, Tuning(1e30, 6), (6,)), 1))
    assert tail.loss(cached.batches()) == before


def test_impossible_settings_are_refused(tail: Tail, cached: CachedRows) -> None:
    for wrong in ({"steps": 0}, {"rank": -1}, {"learning_rate": 0.0}, {"scaling": -1.0}):
        with pytest.raises(CourseError, match="at least 1 step"):
            Tuning(**{"learning_rate": 1e-3, "steps": 2} | wrong)
    with pytest.raises(CourseError, match="Choose a rank from 1 to"):
        next(training(tail, cached, Tuning(1e-3, 1, rank=1000), (1,)))
