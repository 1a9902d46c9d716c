"""One training step of a 7B, really executed on the CPU in bfloat16, its peak beside the planner's figure.

Random weights of LLaMA-7B's shape, LoRA with r = 8 on query and value, micro-batch 1 x 256, gradient checkpointing. The
whole needs about 17 GB of free memory and some minutes; `--layers 4` walks it in seconds.

    python benchmarks/step_7b.py [--layers 32] [--block 256] [--threads 2] [--save]

Source: claim R9.
"""

from __future__ import annotations

import json
import time
from datetime import date

import common
import memory_plan
import peak
import psutil
import torch
from transformers import AutoModelForCausalLM

from lorahub_edu import results
from lorahub_edu.data.alpaca import Encoded
from lorahub_edu.data.batching import PACKED_ATTENTION
from lorahub_edu.lora import adapters
from lorahub_edu.memory.plan import allowance
from lorahub_edu.memory.predict import predict, with_layers
from lorahub_edu.memory.setting import Setting
from lorahub_edu.memory.shapes import read_config
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.runs.finetune import lora_config
from lorahub_edu.training.loop import TrainingConfig, train

MODEL = "llama-7b"


def random_model(layers: int) -> torch.nn.Module:
    """The shape with random weights, made in bfloat16 at once: in float32 they would not fit."""
    config = with_layers(read_config(MODEL), layers)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=PACKED_ATTENTION)


def main() -> None:
    options = common.arguments(__doc__, layers=32, block=256, threads=2)
    torch.set_num_threads(options.threads)
    config = with_layers(read_config(MODEL), options.layers)
    setting = Setting(
        lora=lora_config(get_profile("gpu24")), micro_batch=1, block=options.block, checkpointing=True,
        device="cpu",
    )  # fmt: skip
    found = predict(config, setting)
    needed = found.peak + allowance(config, setting, found).total
    free = psutil.virtual_memory().available
    if free < needed:
        raise SystemExit(f"It needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are available: --layers 4")
    memory_plan.give_back()
    before = psutil.Process().memory_info().rss
    model = random_model(options.layers)
    adapters.inject(model, lora_config(get_profile("gpu24")), seed=0)
    memory_plan.give_back()
    peak.forget()
    ids = [(7 * place) % config.vocab_size for place in range(options.block)]
    run = TrainingConfig(
        steps=1, batch_size=1, micro_batch_size=1, gradient_checkpointing=True, autocast="bfloat16", learning_rate=3e-4
    )
    started = time.perf_counter()
    done = train(model, [Encoded(input_ids=ids, labels=list(ids))], run, progress=False)
    seconds = time.perf_counter() - started
    real = peak.gigabytes() - before / 1e9
    line = {
        "name": "step_7b",
        "layers": options.layers,
        "setting": f"{found.parameters:,} parameters, LoRA r 8 on q, v, 1 x {options.block}, checkpointing, bfloat16",
        "predicted_gb": round(found.peak / 1e9, 3),
        "with_allowance_gb": round(needed / 1e9, 3),
        "real_gb": round(real, 3),
        "error_percent": round(100 * (found.peak / 1e9 / real - 1), 2),
        "error_with_allowance_percent": round(100 * (needed / 1e9 / real - 1), 2),
        "loss": round(done.losses[0], 3),
        "seconds": round(seconds, 1),
        "versions": results.library_versions(),
        "device": results.describe_device(),
        "date": date.today().isoformat(),
    }
    if options.save:
        results.write_json(results.committed_folder() / "step_7b.json", line)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
