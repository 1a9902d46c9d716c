"""Real steps of small models under the tracker: what the planner's figures are judged by."""

from __future__ import annotations

import torch

from lorahub_edu.data.alpaca import Encoded
from lorahub_edu.memory.predict import CPU_ROUNDING, put_method
from lorahub_edu.memory.setting import Setting
from lorahub_edu.memory.tracker import WEIGHTS, Moment, StorageTracker
from lorahub_edu.models import tiny
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.runs.finetune import lora_config
from lorahub_edu.training.loop import TrainingConfig, train

LORA = lora_config(get_profile("tiny"))


def rows(count: int, length: int, vocabulary: int) -> list[Encoded]:
    """Rows of one length with a label at every token."""
    ids = [[(7 * row + place) % vocabulary for place in range(length)] for row in range(count)]
    return [Encoded(input_ids=row, labels=list(row)) for row in ids]


def real_peak(setting: Setting) -> Moment:
    """The peak of two real optimizer steps of the course's own loop on the tiny model."""
    model = tiny.model(attention="packed").to(getattr(torch, setting.dtype))
    model = put_method(model, setting)
    config = TrainingConfig(
        steps=2,
        batch_size=setting.micro_batch * setting.accumulation,
        micro_batch_size=setting.micro_batch,
        gradient_checkpointing=setting.checkpointing,
        autocast=None if setting.dtype == "float32" else setting.dtype,
    )
    made = rows(config.batch_size, setting.block, model.config.vocab_size)
    tracker = StorageTracker(CPU_ROUNDING, model.config.vocab_size)
    tracker.add([*model.parameters(), *model.buffers()], WEIGHTS)
    with tracker:
        tracker.enter("run")
        train(model, made, config, progress=False)
    return tracker.peak
