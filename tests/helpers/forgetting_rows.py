"""Rows as the studies make them, with numbers that a test chooses, and a loss by torch alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from lorahub_edu.data.fewshot import PromptedRow

BASE = {"loss": 4.0, "pretraining_loss": 3.0}


def point(step: int, loss: float, forgetting: float, intruders: int = 0, size: float = 0.1) -> dict:
    """A recorded step; the other quantities of the spectra follow from `size`."""
    return {
        "step": step,
        "loss": loss,
        "pretraining_loss": BASE["pretraining_loss"] + forgetting,
        "intruders": {"0.5": intruders, "0.6": 2 * intruders},
        "spike_ratio": 2 * size,
        "largest_spike_ratio": 3 * size,
        "relative_size": size,
        "nuclear_norm": 100 * size,
        "effective_rank": 1.0 + size,
    }


def run_row(
    rank: int, rule: str, seed: int, points: Sequence[dict], matrices: dict | None = None, rate: float = 1e-3
) -> dict:
    """A row of `study.run_tail`."""
    run = {"task": "reverse", "rank": rank, "rule": rule, "scaling": 2.0, "learning_rate": rate, "seed": seed}
    return {
        "run": run | {"profile": "tiny"},
        "base": BASE,
        "points": list(points),
        "matrices": matrices or {},
        "diverged": "" if points else "the run diverged",
    }


def intervened_row(rank: int, seed: int, scaled: Sequence[tuple[str, float, float, float]]) -> dict:
    """A row of `interventions.run_intervention`: tuned to loss 2.0 with a forgetting of 1.0 nat.

    `scaled` holds kind, scale, task loss and forgetting.
    """
    run = {"task": "reverse", "rank": rank, "rule": "alpha = 2r", "scaling": 2.0, "learning_rate": 1e-3, "seed": seed}
    return {
        "run": run | {"profile": "tiny"},
        "base": BASE,
        "diverged": "",
        "intruders": 7,
        "tuned": {"loss": 2.0, "pretraining_loss": 4.0},
        "scaled": [
            {"kind": kind, "scale": scale, "loss": loss, "pretraining_loss": 3.0 + forgotten}
            for kind, scale, loss, forgotten in scaled
        ],
    }


def whole_loss(model: torch.nn.Module, row: PromptedRow) -> torch.Tensor:
    """Summed loss of one row's answer through the whole model, alone and unpacked, by torch's cross-entropy."""
    ids = torch.tensor([row.prompt_ids + row.answer_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1]
    return F.cross_entropy(logits, torch.tensor(row.answer_ids), reduction="sum")
