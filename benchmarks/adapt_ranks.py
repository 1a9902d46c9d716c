"""Does the modules' rank matter? LoRAHub on the zoo's modules brought to rank 1, 2, 4 and 8. Claim H15, by rank.

    python benchmarks/adapt_ranks.py --save

A module of a lower rank is the best one in the least-squares sense (a truncated SVD of each update), not one trained at
that rank. All four zoos are written by the same SVD, rank 8 too, because the paper's composition depends on each
module's basis. CMA-ES with 40 candidates; the sweep is kept in --out, so a killed run goes on.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import common
from peft import LoraConfig
from safetensors.torch import save_file

from lorahub_edu import results
from lorahub_edu.hub import zoo
from lorahub_edu.hub.compose import refactor
from lorahub_edu.lora.adapter_files import CONFIG_FILE, WEIGHTS_FILE, AdapterFile
from lorahub_studies import adapting, engine

TARGETS = ("second_word", "count_words", "less")
RANKS = (1, 2, 4, 8)


def write_module(file: AdapterFile, folder: Path) -> None:
    """A module in PEFT's layout, in float16 as the shipped ones are."""
    folder.mkdir(parents=True, exist_ok=True)
    config = next(iter(file.configs.values()))
    targets = sorted({name.rpartition(".")[2] for name in file.weights})
    peft = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=targets, base_model_name_or_path=file.base_model
    )
    peft.save_pretrained(str(folder))
    assert (folder / CONFIG_FILE).is_file()
    tensors = {}
    for name, (A, B) in file.weights.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = A.half().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = B.half().contiguous()
    save_file(tensors, str(folder / WEIGHTS_FILE))


def zoo_of_rank(rank: int, folder: Path) -> Path:
    """The shipped zoo at another rank, written once."""
    where = folder / f"rank{rank}"
    for file in zoo.load(None, zoo.SHIPPED):
        if not (where / file.path.name / WEIGHTS_FILE).is_file():
            write_module(refactor(file, rank), where / file.path.name)
    return where


def main() -> None:
    options = common.arguments(__doc__, draws=3, test_items=100, out="runs/adapt_ranks")
    rows = []
    for rank in RANKS:
        modules = zoo_of_rank(rank, Path(options.out) / "zoos")
        methods = ("single", "cma_40")
        trials = adapting.plan(TARGETS, methods, options.draws, folder=str(modules), test_items=options.test_items)
        rows += [row | {"rank": rank} for row in engine.run(trials, adapting.run, f"{options.out}/{rank}")]
    settings = {"draws": options.draws, "ranks": RANKS, "test_items": options.test_items, "profile": "cpu"}
    summary = [
        {"rank": rank, "method": method, "strict": statistics.fmean(found), "low": min(found), "high": max(found)}
        for rank in RANKS
        for method in ("single", "cma_40")
        for found in [[row["strict"] for row in rows if row["rank"] == rank and row["method"] == method]]
    ]
    engine.write(rows, "adapt_ranks", settings, summary, results.committed_folder() if options.save else None)
    for entry in summary:
        print(json.dumps(entry))


if __name__ == "__main__":
    main()
