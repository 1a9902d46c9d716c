"""Lesson 03's LoRA run over several seeds: another split, order of rows, A and dropout each time.

    python benchmarks/alpaca_seeds.py [--seeds 3]

Writes results/alpaca_seeds.json, which lesson 03 reads; one run says little about a loss that differs by a few percent.
"""

from __future__ import annotations

import tempfile

import common
import torch

from lorahub_edu import results
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.results import Finding
from lorahub_edu.runs import finetune


def main() -> None:
    options = common.arguments(__doc__, seeds=3)
    torch.set_num_threads(2)
    profile = get_profile("cpu")
    before, after = [], []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            done = finetune.finetune(profile, out=folder, seed=seed, offline=True, progress=False)
        before.append(done.loss_before)
        after.append(done.loss_after)
        print(f"seed {seed}: {done.loss_before:.4f} -> {done.loss_after:.4f} nats", flush=True)
    common_fields = {"seeds": tuple(range(options.seeds)), "model": profile.base_model, "profile": profile.name}
    gains = tuple(b - a for b, a in zip(before, after, strict=True))
    results.record(
        [
            Finding("validation_loss_before", tuple(before), "nats", **common_fields),
            Finding("validation_loss_after", tuple(after), "nats", **common_fields),
            Finding("validation_gain", gains, "nats", **common_fields),
        ],
        "alpaca_seeds",
        results.committed_folder(),
    )


if __name__ == "__main__":
    main()
