"""Lesson 05's formula for a step is what the planner counts."""

from __future__ import annotations

import pytest

from lorahub_edu.memory.predict import predict
from lorahub_edu.memory.setting import Setting
from lorahub_edu.models import tiny


def test_the_answer_is_what_the_planner_counts() -> None:
    """The formula of 05.1 on a LoRA step is the planner's weights, gradients and optimizer."""
    config = tiny.config()
    setting = Setting(method="lora", micro_batch=1, block=8, dtype="bfloat16", device="cpu", optimizer="adamw")
    found = predict(config, setting)
    frozen, trained = found.parameters - found.trained, found.trained
    wanted = 2 * frozen + 4 * 4 * trained
    gradient = 4 * trained
    assert found.parts["weights"] + gradient + found.parts["optimizer"] == pytest.approx(wanted, rel=0.01)
