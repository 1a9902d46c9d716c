"""Memory of scoring a population against plain inference on the same five examples, and how its cost grows.

Each peak is that of a process of its own, from the moment when it has loaded the base model: on Linux the peak of
loading is forgotten first. Time is a candidate's, by number of modules and by population.

    python benchmarks/adapt_memory.py [--repeats 3] [--target last_word_upper] [--save]

Source: claim H17.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import common
import hub_inputs
import numpy as np
import peak
import torch

from lorahub_edu.hub.compose import stack
from lorahub_edu.hub.population import Population
from lorahub_edu.lora.adapter_files import read_adapter
from lorahub_edu.models import pretrained
from lorahub_edu.scoring import scoring_batches

MOST = 1.3  # times the memory of plain inference
MODULES, POPULATIONS = (5, 10, 20), (5, 10, 20, 40)
MANY = 200  # modules, in the tiny profile
VARIANTS = ("inference", "ours", "ours_exact", "original")


def measure(variant: str, options: argparse.Namespace) -> dict:
    """Peak memory of one process that only infers, or that scores a population.

    Args:
        variant: one of `VARIANTS`, followed by "-" and a dtype.
        options: of the command line; its `scratch` holds the modules.
    """
    torch.set_num_threads(options.threads)
    what, _, dtype = variant.partition("-")
    model, tokenizer = pretrained.load(options.profile, dtype=dtype, offline=True)
    examples = hub_inputs.examples(tokenizer, options.target)
    peak.forget()
    folders = sorted(Path(options.scratch).iterdir())[: options.modules]
    weights = np.random.default_rng(0).uniform(-0.5, 0.5, (options.population, len(folders)))  # (P, N)
    if what == "inference":
        texts = [f"{prompt} {answer}" for prompt, answer in zip(examples.prompts, examples.answers, strict=True)]
        with torch.no_grad():
            model(**tokenizer(texts, padding=True, return_tensors="pt"), use_cache=False)
    elif what == "original":
        import original_lorahub

        peft_model, cache = original_lorahub.load(model, folders, getattr(torch, dtype))
        dataset = original_lorahub.examples(tokenizer, examples.prompts, examples.answers)
        for candidate in weights[:3]:
            original_lorahub.score(candidate, peft_model, cache, dataset)
    else:
        composition = "exact" if what == "ours_exact" else "paper"
        modules = stack([read_adapter(folder) for folder in folders], composition=composition, dtype=torch.float32)
        with Population(model, modules, composition) as scorer:
            for _ in range(3):
                scorer.score(weights, examples.rows)
    return {"peak_gb": peak.gigabytes()}


def growth(options: argparse.Namespace, folders: list[Path]) -> dict[str, dict[str, float]]:
    """Milliseconds a candidate by number of modules (population 20) and by population (all modules), both ways."""
    model, tokenizer = pretrained.load(options.profile, dtype="bfloat16", offline=True)
    files = [read_adapter(folder) for folder in folders]
    made = scoring_batches(model, hub_inputs.examples(tokenizer, options.target).rows)
    cells = [("modules", n, options.population) for n in (*MODULES, len(files)) if n <= len(files)]
    cells += [("population", len(files), p) for p in POPULATIONS]
    runs: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.repeats + 1):
        for kind, n, count in cells:
            weights = np.random.default_rng(0).uniform(-0.5, 0.5, (count, n))  # (P, N)
            for composition in ("paper", "exact"):
                modules = stack(files[:n], composition=composition, dtype=torch.float32)
                with Population(model, modules, composition) as scorer:
                    started = time.perf_counter()
                    scorer.score(weights, made)
                    took = (time.perf_counter() - started) * 1e3 / count
                runs.setdefault((f"{composition}_by_{kind}", str(n if kind == "modules" else count)), []).append(took)
    table: dict[str, dict[str, float]] = {}
    for (row, column), taken in runs.items():
        table.setdefault(row, {})[column] = round(statistics.median(taken[1:]), 2)
    return table


def main() -> None:
    options = common.arguments(
        __doc__,
        threads=2,
        repeats=3,
        modules=20,
        population=20,
        profile="cpu",
        target="last_word_upper",
        many=MANY,
        scratch="",
    )
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    script = common.script_path(__file__)
    variants = [f"{variant}-{dtype}" for dtype in ("bfloat16", "float32") for variant in VARIANTS]
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as crowd:
        options.scratch = scratch
        folders = hub_inputs.save_random_modules(options.profile, options.modules, Path(scratch))
        runs = common.interleaved(variants, 1, lambda variant: common.isolated(script, variant, options))
        cost = growth(options, folders)
        many = argparse.Namespace(**vars(options) | {"profile": "tiny", "scratch": crowd, "modules": options.many})
        hub_inputs.save_random_modules("tiny", options.many, Path(crowd))
        peaks = {v: common.isolated(script, f"{v}-float32", many)["peak_gb"] for v in ("inference", "ours")}
    memory = {variant: runs[variant][0]["peak_gb"] for variant in variants}
    times = {variant: memory[variant] / memory[f"inference-{variant.partition('-')[2]}"] for variant in variants}
    common.report(
        "adapt_memory",
        ratios={"peak_memory": memory["original-float32"] / memory["ours-bfloat16"]},
        ours={"peak_gb": memory["ours-bfloat16"]},
        peer={"peak_gb": memory["original-float32"]},
        equal={
            "like_inference": max(v for name, v in times.items() if name.startswith("ours-")) <= MOST,
            "times_plain_inference": {name: round(value, 3) for name, value in times.items()},
            "most": MOST,
        },
        save=options.save,
        peak_gb=memory,
        milliseconds_a_candidate=cost,
        many_modules={"modules": options.many, "profile": "tiny", "peak_gb": peaks},
        settings=f"{options.modules} random modules, population {options.population}, five examples of "
        f"{options.target}; peaks of one process each; growth in bfloat16, medians of {options.repeats} rounds",
    )


if __name__ == "__main__":
    main()
