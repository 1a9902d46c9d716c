"""Does it fit, and the cheapest change that makes it fit: every proposal is checked by predicting it apart."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from lorahub_edu.errors import CourseError
from lorahub_edu.memory import plan as planning
from lorahub_edu.memory.plan import CONTEXT, GIB, KINDS, MIB, advise, allowance, capacity, plan, tried_changes
from lorahub_edu.memory.predict import predict, with_layers
from lorahub_edu.memory.setting import Setting
from lorahub_edu.models import tiny

CONFIG = with_layers(tiny.config(), 2)
SETTING = Setting(method="lora", micro_batch=4, block=256)


@cache
def needed(**changes: object) -> int:
    """Bytes of the small step with changes."""
    return plan(CONFIG, replace(SETTING, **changes), 0).needed


def test_room_and_fit() -> None:
    enough = plan(CONFIG, SETTING, needed())
    assert enough.fits and enough.room == 0
    short = plan(CONFIG, SETTING, needed() - 1)
    assert not short.fits and short.room == -1
    assert enough.needed == enough.prediction.peak + enough.allowance.total


def test_a_card_sold_with_24_gb() -> None:
    assert capacity(24) == 24 * GIB - CONTEXT
    for size in (0, -8, 0.5):
        with pytest.raises(CourseError, match="No model fits"):
            capacity(size)


def test_allowances_follow_what_they_stand_for() -> None:
    prediction = predict(CONFIG, SETTING)
    trained, scored = (
        allowance(CONFIG, replace(SETTING, task=task), prediction).workspace for task in ("training", "scoring")
    )
    assert trained - scored == 4 * 4 * 256 * CONFIG.hidden_size  # float32 sums of the queries' gradient
    assert allowance(CONFIG, SETTING, prediction).allocator == 128 * MIB + round(0.025 * prediction.peak)


def test_a_cpu_copies_the_head_for_every_row_that_it_generates_in_half_precision() -> None:
    """What `torch.nn.functional.linear` does with the last position of a bfloat16 batch; float32 needs no copy."""
    prediction = predict(CONFIG, SETTING)
    generating = replace(SETTING, task="generation", device="cpu", micro_batch=4)
    head = CONFIG.vocab_size * CONFIG.hidden_size * 2
    for dtype, copies in (("bfloat16", 4), ("float32", 0)):
        beyond = allowance(CONFIG, replace(generating, dtype=dtype), prediction)
        assert beyond.workspace == copies * head
    assert allowance(CONFIG, replace(SETTING, device="cpu"), prediction).workspace == 0  # training takes no such slice


def test_the_first_that_fits_is_taken_in_the_order_of_cost() -> None:
    (change,) = tried_changes(plan(CONFIG, SETTING, needed(micro_batch=2, accumulation=2)))
    assert change.options == "--micro-batch 2" and change.plan.fits
    assert change.plan.setting == replace(SETTING, micro_batch=2, accumulation=2)
    least = needed(micro_batch=1, accumulation=4)
    *others, change = tried_changes(plan(CONFIG, replace(SETTING, micro_batch=1), least - 1))
    assert change.options == "--checkpointing"
    assert change.plan.fits and all(not other.plan.fits for other in others)


@pytest.mark.parametrize("rows", [1, 4, 16, 32])
def test_of_many_sizes_the_mildest_that_fits_is_found(rows: int) -> None:
    """Beside every half planned, one after the other."""
    setting = replace(SETTING, micro_batch=64)
    available = plan(CONFIG, replace(setting, micro_batch=rows, accumulation=64 // rows), 0).needed
    tried = list(tried_changes(plan(CONFIG, setting, available), only=("micro-batch",)))
    assert tried[-1].options == f"--micro-batch {rows}" and not any(change.plan.fits for change in tried[:-1])
    assert [c.plan.setting.micro_batch for c in tried] == sorted(
        (c.plan.setting.micro_batch for c in tried), reverse=True
    )


def test_changes_are_put_together_where_none_is_enough_alone() -> None:
    both = needed(micro_batch=1, accumulation=4, checkpointing=True)
    alone = min(needed(micro_batch=1, accumulation=4), needed(checkpointing=True), needed(quantisation="nf4-dq"))
    assert both < alone - 1
    short = plan(CONFIG, SETTING, (both + alone) // 2)
    *_, change = tried_changes(short, only=("micro-batch", "checkpointing", "base"))
    assert change.options == "--micro-batch 1 --checkpointing" and change.plan.needed == both
    assert "; " in change.words and change.cost.count("the same result") == 2


@pytest.mark.parametrize("only", [("checkpointing", "block"), ("base", "block"), ("micro-batch", "optimizer")])
def test_only_what_the_caller_can_change(only: tuple[str, ...]) -> None:
    tried = list(tried_changes(plan(CONFIG, SETTING, MIB), only=only))
    options = {word for change in tried for word in change.options.split() if word.startswith("--")}
    assert options and options <= {f"--{name}" for name in only} and set(only) <= set(KINDS)


def test_no_change_is_enough() -> None:
    found = advise("small", CONFIG, SETTING, MIB, "a card")
    assert found.cheapest is None and found.changes
    least = min(change.plan.needed for change in found.changes)
    assert f"the least of those tried takes {least / 1e9:.1f} GB" in found.verdict()
    assert "larger card" in str(found)


def test_full_fine_tuning_is_advised_to_become_lora() -> None:
    setting = Setting(method="full", micro_batch=1, block=64)
    lora = plan(CONFIG, replace(setting, method="lora"), 0).needed
    *_, change = tried_changes(plan(CONFIG, setting, lora), only=("optimizer", "method"))
    assert change.options == "--method lora"


def test_inference_is_not_advised_to_train_otherwise() -> None:
    setting = replace(SETTING, task="generation")
    found = plan(CONFIG, setting, plan(CONFIG, setting, 0).needed - 1)
    tried = list(tried_changes(found))
    assert tried and not any("checkpointing" in change.words or "optimizer" in change.words for change in tried)


def test_hopeless_single_changes_are_not_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An 8-bit optimizer can't save more than the optimizer holds, which is little for LoRA."""
    seen = []
    real = planning.predict
    monkeypatch.setattr(planning, "predict", lambda config, setting: seen.append(setting) or real(config, setting))
    found = plan(CONFIG, replace(SETTING, micro_batch=1), 2 * MIB)
    assert all(not change.plan.fits for change in tried_changes(found))
    assert not [s for s in seen if s.optimizer == "adamw-8bit" and not s.checkpointing]


def test_the_report_says_what_was_asked() -> None:
    setting = replace(SETTING, checkpointing=True, accumulation=8, quantisation="nf4")
    words = str(setting)
    for part in ("lora", "4 x 256 tokens", "bfloat16", "8 micro-batches", "checkpointing", "nf4", "adamw"):
        assert part in words
    text = str(advise("small", CONFIG, setting, GIB, "what there is"))
    assert "It fits, with" in text and "what there is" in text and "layer" in text
