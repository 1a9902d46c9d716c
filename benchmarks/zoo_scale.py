"""A zoo of 20, 200 and 2,000 modules of rank 8: opening it, pre-filtering it to 20, adapting over these.

    python benchmarks/zoo_scale.py [--sizes 20,200,2000] [--save]

The modules are the shipped ones under new names, each with its B scaled by its own factor. Each size is measured in a
process of its own. Memory is what the process holds beyond the loaded base model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import common
import hub_inputs
import peak
import torch
from safetensors.torch import load_file, save_file

from lorahub_edu.data import tasks
from lorahub_edu.hub import candidates, zoo
from lorahub_edu.hub.adapt import SearchConfig, adapt
from lorahub_edu.models import pretrained

CHOSEN, BUDGET = 20, 40


def write_zoo(folder: Path, size: int) -> None:
    """So many modules, of the shipped zoo's tasks in turn."""
    for number in range(size):
        name = zoo.names()[number % len(zoo.names())]
        where = folder / f"{number:04d}_{name}"
        where.mkdir(parents=True)
        tensors = load_file(zoo.SHIPPED / name / "adapter_model.safetensors")
        factor = 1 - number // len(zoo.names()) / size
        tensors = {key: tensor * factor if "lora_B" in key else tensor for key, tensor in tensors.items()}
        save_file(tensors, where / "adapter_model.safetensors", {"base_model_sha256": zoo.card(name).base_model_sha256})
        for file in ("adapter_config.json", "card.json"):
            (where / file).write_bytes((zoo.SHIPPED / name / file).read_bytes())


def measure(size: str, options: argparse.Namespace) -> dict:
    """Seconds and memory of each step over one zoo, in this process."""
    torch.set_num_threads(options.threads)
    folder = Path(options.scratch) / size
    model, tokenizer = pretrained.load("cpu", dtype="bfloat16", offline=True)
    rows = hub_inputs.examples(tokenizer, options.target).rows
    instruction = tasks.get(options.target).instructions[0]
    peak.forget()
    held = peak.gigabytes()
    started = time.perf_counter()
    listed = len(zoo.headers(folder))
    found = {"listed": listed, "open_seconds": round(time.perf_counter() - started, 3)}
    found["open_mb"] = round((peak.gigabytes() - held) * 1000, 1)
    for how in candidates.PREFILTERS:
        started = time.perf_counter()
        chosen = candidates.prefilter(f"{how}:{CHOSEN}", folder, model, tokenizer, instruction, rows)
        found[f"{how}_seconds"] = round(time.perf_counter() - started, 2)
    found["prefilter_mb"] = round((peak.gigabytes() - held) * 1000, 1)
    started = time.perf_counter()
    adapt(model, zoo.load(chosen, folder), rows, SearchConfig("cma", BUDGET))
    found["adapt_seconds"] = round(time.perf_counter() - started, 2)
    return found


def main() -> None:
    options = common.arguments(__doc__, sizes="20,200,2000", threads=2, scratch="", target="last_word_upper")
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    sizes = options.sizes.split(",")
    with tempfile.TemporaryDirectory(prefix="lorahub-edu-", dir=options.scratch or None) as folder:
        options.scratch = folder
        for size in sizes:
            write_zoo(Path(folder) / size, int(size))
        module_bytes = (Path(folder) / sizes[0] / f"0000_{zoo.names()[0]}" / "adapter_model.safetensors").stat().st_size
        found = {size: common.isolated(common.script_path(__file__), size, options) for size in sizes}
    options.scratch = ""
    least, most = found[sizes[0]], found[sizes[-1]]
    common.report(
        "zoo_scale",
        ratios={
            "open_seconds_under_1": 1 / most["open_seconds"],
            "open_mb_under_100": 100 / max(1, most["open_mb"]),
            "open_linear": int(sizes[-1]) / int(sizes[0]) * least["open_seconds"] / most["open_seconds"],
        },
        ours=most,
        peer={"modules": int(sizes[-1]), "rank": 8, "module_bytes": module_bytes},
        equal={"all_listed": all(row["listed"] == int(size) for size, row in found.items())},
        save=options.save,
        by_size=found,
    )


if __name__ == "__main__":
    main()
