"""On a GPU: twenty steps of the 7B's recipe under a cap of 24 GB, beside the prediction."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from memory_runs import rows
from transformers import AutoModelForCausalLM

from lorahub_edu.data.batching import PACKED_ATTENTION
from lorahub_edu.lora import adapters
from lorahub_edu.memory.plan import GIB, plan
from lorahub_edu.memory.setting import available_memory
from lorahub_edu.memory.shapes import read_config
from lorahub_edu.runs import recipes
from lorahub_edu.runs.finetune import lora_config, memory_setting, training_config
from lorahub_edu.training.loop import TrainingResult, train

RECIPE = "llama_7b_lora_alpaca"
CAP = 24 * GIB
STEPS = 20


def run_steps(model_name: str, device: str, steps: int, **changes: int) -> TrainingResult:
    """The recipe's step on random weights of a shape: rows that fill the block, two micro-batches a step."""
    profile = replace(recipes.read(RECIPE).profile, **changes)
    profile = replace(profile, batch_size=2 * profile.micro_batch_size)
    config = read_config(model_name)
    config._attn_implementation = PACKED_ATTENTION
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, profile.dtype), attn_implementation=PACKED_ATTENTION
        )
    adapters.inject(model, lora_config(profile), seed=0)
    made = rows(profile.batch_size, profile.block_size, config.vocab_size)
    return train(model, made, training_config(profile, steps=steps, validate_every=0), progress=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU with 24 GB, and torch finds none")
def test_the_recipe_stays_under_its_prediction() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    if total < 0.97 * CAP:
        pytest.skip(f"this GPU has {total / GIB:.1f} GiB, and the recipe is for 24")
    model_name = os.environ.get("LORAHUB_EDU_GPU_MODEL", "llama-7b")
    torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / total))
    torch.cuda.reset_peak_memory_stats()
    recipe = recipes.read(RECIPE)
    setting = memory_setting(recipe.profile, recipe.method, recipe.settings)
    found = plan(read_config(model_name), setting, available_memory("cuda"))
    assert found.fits
    assert run_steps(model_name, "cuda", STEPS).steps == STEPS
    assert torch.cuda.max_memory_allocated() == pytest.approx(
        found.prediction.peak + found.allowance.workspace, rel=0.1
    )
    assert torch.cuda.max_memory_reserved() <= 1.05 * found.needed


def test_the_steps_run_on_a_small_model() -> None:
    """What the test above does on a GPU, walked on a CPU with the small model, so that it is known to run."""
    done = run_steps("tiny-random-llama", "cpu", 2, block_size=32)
    assert done.steps == 2 and done.losses[1] < done.losses[0] + 0.1
    assert done.history[0]["tokens"] == 8 * 32
