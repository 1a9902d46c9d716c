"""On a GPU: twenty steps of the `gpu24` profile under a cap of 24 GB, beside the prediction."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from memory_runs import rows
from transformers import AutoModelForCausalLM

from lorahub_edu import adapters
from lorahub_edu.data.batching import PACKED_ATTENTION
from lorahub_edu.finetune import lora_config, memory_setting, training_config
from lorahub_edu.memory.advice import plan
from lorahub_edu.memory.allowance import GIB
from lorahub_edu.memory.guard import available_memory
from lorahub_edu.memory.shapes import read_config
from lorahub_edu.profiles import get_profile
from lorahub_edu.training import train

CAP = 24 * GIB
STEPS = 20


def run_steps(model_name: str, device: str, steps: int, **changes: int) -> None:
    """The profile's step on random weights of a shape: rows that fill the block, two micro-batches a step."""
    profile = replace(get_profile("gpu24"), **changes)
    profile = replace(profile, batch_size=2 * profile.micro_batch_size)
    config = read_config(model_name)
    config._attn_implementation = PACKED_ATTENTION
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, profile.dtype), attn_implementation=PACKED_ATTENTION
        )
    adapters.inject(model, lora_config(profile), seed=0)
    made = rows(profile.batch_size, profile.block_size, config.vocab_size)
    done = train(model, made, training_config(profile, steps=steps, validate_every=0), progress=False)
    assert done.steps == steps


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU with 24 GB, and torch finds none")
def test_the_gpu24_profile_stays_under_its_prediction() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    if total < 0.97 * CAP:
        pytest.skip(f"this GPU has {total / GIB:.1f} GiB, and the profile is for 24")
    model_name = os.environ.get("LORAHUB_EDU_GPU_MODEL", "llama-7b")
    torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / total))
    torch.cuda.reset_peak_memory_stats()
    found = plan(read_config(model_name), memory_setting(get_profile("gpu24")), available_memory("cuda"))
    assert found.fits
    run_steps(model_name, "cuda", STEPS)
    assert torch.cuda.max_memory_allocated() == pytest.approx(
        found.prediction.peak + found.allowance.workspace, rel=0.1
    )
    assert torch.cuda.max_memory_reserved() <= 1.05 * found.needed


def test_the_steps_run_on_a_small_model() -> None:
    """What the test above does on a GPU, walked on a CPU with the small model, so that it is known to run."""
    run_steps("tiny-random-llama", "cpu", 2, block_size=32)
