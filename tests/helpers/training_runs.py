"""A small model with an adapter, the weights that training changes, and the settings of a short run."""

from __future__ import annotations

import torch

from lorahub_edu.data import alpaca
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import tiny
from lorahub_edu.training.loop import TrainingConfig


def encoded_rows():
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
