"""The memory planner against real peaks on the CPU, against published figures, and the time that a plan takes.

Each real run is SmolLM2 in a process of its own, twice: with malloc giving back what is freed
(MALLOC_MMAP_THRESHOLD_=65536), which shows what the step itself needs, and as it comes. The peak is the process's own
from the moment when the model is loaded, less what interpreter and libraries held before, a small model having run
already. Rows fill the block. Started again with --save, it measures only what is missing.

    python benchmarks/memory_plan.py [--only NAME,NAME] [--real-runs 1] [--save]

Source: claims R9, R10, R11, R15, H17.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date

import common
import memory_published
import peak
import psutil
import torch

from lorahub_edu import results
from lorahub_edu.data.alpaca import Encoded
from lorahub_edu.data.batching import PACKED_ATTENTION
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.memory.plan import advise, allowance, capacity
from lorahub_edu.memory.predict import predict, put_method
from lorahub_edu.memory.setting import Setting
from lorahub_edu.memory.shapes import read_config
from lorahub_edu.models import pretrained
from lorahub_edu.training.loop import TrainingConfig, train

MODEL, SMALL = "SmolLM2-135M-Instruct", "tiny-random-llama"
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc: every larger piece is a mapping of its own
MODES = ("giving_back", "as_it_comes")
WITHIN = 0.10
CASES: dict[str, dict] = {
    "lora 1x128": {"micro_batch": 1, "block": 128},
    "lora 2x256": {"micro_batch": 2, "block": 256},
    "lora 2x256 checkpointing": {"micro_batch": 2, "block": 256, "checkpointing": True},
    "lora 1x128, 4 accumulated": {"micro_batch": 1, "block": 128, "accumulation": 4},
    "lora 2x128 bfloat16": {"micro_batch": 2, "block": 128, "dtype": "bfloat16"},
    "lora 4x128 bfloat16 checkpointing": {"micro_batch": 4, "block": 128, "dtype": "bfloat16", "checkpointing": True},
    "full 1x128": {"method": "full", "micro_batch": 1, "block": 128},
    "full 2x128 checkpointing": {"method": "full", "micro_batch": 2, "block": 128, "checkpointing": True},
    "full 2x128 all bfloat16": {
        "method": "full", "micro_batch": 2, "block": 128, "dtype": "bfloat16", "trained_dtype": "bfloat16",
    },
    "full 2x128 autocast bfloat16": {"method": "full", "micro_batch": 2, "block": 128, "dtype": "bfloat16"},
    "bitfit 2x128": {"method": "bitfit", "micro_batch": 2, "block": 128},
    "ia3 4x64": {"method": "ia3", "micro_batch": 4, "block": 64},
    "llama_adapter 2x128": {"method": "llama_adapter", "micro_batch": 2, "block": 128},
    "scoring 8x128": {"method": "none", "task": "scoring", "micro_batch": 8, "block": 128},
    "generation 4x256": {"method": "none", "task": "generation", "micro_batch": 4, "block": 256},
    "generation 4x256 bfloat16": {
        "method": "none", "task": "generation", "micro_batch": 4, "block": 256, "dtype": "bfloat16",
    },
}  # fmt: skip
PLANS = ("llama-7b", "llama-3-8b", "tinyllama-1.1b", "flan-t5-large")


def setting_of(case: dict) -> Setting:
    """The planner's setting of a case."""
    return Setting(**{"dtype": "float32", "device": "cpu"} | case)


def run_step(model: torch.nn.Module, setting: Setting) -> None:
    """Two optimizer steps of the course's loop, or the inference that the setting names."""
    vocabulary = model.config.vocab_size
    ids = [[(7 * row + place) % vocabulary for place in range(setting.block)] for row in range(setting.micro_batch)]
    if setting.task == "generation":
        model.generate(input_ids=torch.tensor(ids), max_new_tokens=2, min_new_tokens=2, do_sample=False)
        return
    rows = [Encoded(input_ids=row, labels=list(row)) for row in ids]
    if setting.task == "scoring":
        from lorahub_edu.evaluation import loss

        loss(model, rows, setting.micro_batch)
        return
    config = TrainingConfig(
        steps=2,
        batch_size=setting.micro_batch * setting.accumulation,
        micro_batch_size=setting.micro_batch,
        gradient_checkpointing=setting.checkpointing,
        autocast=None if setting.dtype == "float32" else setting.dtype,
    )
    train(model, rows * setting.accumulation, config, progress=False)


def prepared(name: str, setting: Setting) -> torch.nn.Module:
    """The real model with its method, its weights in memory that is this process's own."""
    model, _ = pretrained.load(
        "tiny" if name == SMALL else "cpu", dtype=setting.dtype, attention=PACKED_ATTENTION, offline=True
    )
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # loading maps the file
    return put_method(model, setting)


def give_back() -> None:
    """Free what is unused, so that it is not counted twice."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def measure(name: str, options: argparse.Namespace) -> dict:
    """The real peak of one case in this process, in GB, less what was there before the model."""
    torch.set_num_threads(options.threads)
    setting = setting_of(CASES[name])
    small = replace(setting, micro_batch=2, block=32)
    run_step(prepared(SMALL, small), small)
    give_back()
    before = psutil.Process().memory_info().rss
    model = prepared(options.model, setting)
    give_back()
    peak.forget()
    started = time.perf_counter()
    run_step(model, setting)
    return {"real_gb": peak.gigabytes() - before / 1e9, "seconds": time.perf_counter() - started}


def isolated(name: str, mode: str, options: argparse.Namespace) -> dict:
    """`measure` in a fresh process, with malloc as the mode has it."""
    command = [sys.executable, common.script_path(__file__), "--measure", name, f"--threads={options.threads}"]
    environment = os.environ | (GIVING_BACK if mode == "giving_back" else {})
    done = subprocess.run([*command, f"--model={options.model}"], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def predicted(name: str, model: str) -> dict:
    """What the planner says of a case, in GB: tensors by part, with workspaces, and with malloc's part as it comes."""
    config, setting = read_config(model), setting_of(CASES[name])
    found = predict(config, setting)
    beyond = allowance(config, setting, found)
    return {
        "tensors_gb": round((found.peak + beyond.workspace) / 1e9, 4),
        "with_allowance_gb": round((found.peak + beyond.total) / 1e9, 4),
        "parts_gb": {part: round(size / 1e9, 4) for part, size in found.parts.items()},
    }


def measured(name: str, options: argparse.Namespace) -> dict:
    """The real peaks of one case, in both modes."""
    row = {"setting": dict(CASES[name])}
    for mode in MODES:
        run = isolated(name, mode, options)
        row[mode] = {"real_gb": round(run["real_gb"], 4), "seconds": round(run["seconds"], 1)}
    return row


def compared(name: str, row: dict, model: str) -> dict:
    """A case with what the planner says of it now, and the errors in percent of the real peaks."""
    found = predicted(name, model)
    errors = {
        mode: row[mode] | {"error_percent": round(100 * (found[of] / row[mode]["real_gb"] - 1), 2)}
        for mode, of in zip(MODES, ("tensors_gb", "with_allowance_gb"), strict=True)
    }
    return row | found | errors


def plan_seconds() -> dict:
    """Processor seconds of a whole plan, advice included, for models that fit and models that do not."""
    taken = {}
    for name in PLANS:
        targets = ("q", "v") if "t5" in name else ("q_proj", "v_proj")
        setting = Setting(lora=LoRAConfig(dropout=0.05, target_modules=targets), micro_batch=8, block=1024)
        started = time.process_time()
        found = advise(name, read_config(name), setting, capacity(24), "a 24 GB card")
        taken[name] = {
            "seconds": round(time.process_time() - started, 1),
            "needed_gb": round(found.plan.needed / 1e9, 2),
            "fits": found.plan.fits,
            "change": found.cheapest.options if found.cheapest else "",
        }
    return taken


def summary(cases: dict[str, dict]) -> dict:
    """How many cases are within a tenth, and the largest error, in both modes."""
    errors = {mode: [abs(row[mode]["error_percent"]) for row in cases.values()] for mode in MODES}
    return {
        mode: {
            "cases": len(of),
            "within_10_percent": sum(e <= 100 * WITHIN for e in of),
            "largest_error_percent": max(of),
        }
        for mode, of in errors.items()
    }


def main() -> None:
    options = common.arguments(__doc__, threads=1, model=MODEL, only="", real_runs=1)
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    path = results.committed_folder() / "memory_plan.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if options.save and path.is_file() else {}
    line = {"name": "memory_plan", "model": options.model, "cases": kept.get("cases", {})}
    wanted = options.only.split(",") if options.only else list(CASES)
    for name in wanted if options.real_runs else ():
        if line["cases"].get(name, {}).get("setting") == CASES[name]:
            continue
        line["cases"][name] = measured(name, options)
        print(name, line["cases"][name], flush=True)
        if options.save:
            results.write_json(path, kept | line)
    line["cases"] = {
        name: compared(name, line["cases"][name], options.model) for name in CASES if name in line["cases"]
    }
    line |= {
        "summary": summary(line["cases"]) if line["cases"] else {},
        "published": memory_published.compare(),
        "plans": plan_seconds(),
        "within": WITHIN,
        "versions": results.library_versions(),
        "device": results.describe_device(),
        "date": date.today().isoformat(),
    }
    if options.save:
        results.write_json(path, line)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
