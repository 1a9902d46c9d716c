"""Evaluations a second of weight vectors: ours against the original LoRAHub's own get_score.

The same modules, five examples and weights. The original composes one candidate, loads it into a PEFT model and runs
five padded rows, in float32 as released; ours scores a whole population in one forward.

    python benchmarks/adapt_eval.py [--repeats 7] [--target last_word_upper] [--zoo FOLDER] [--save | --quick]

Source: claims H1 and H4.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import common
import hub_inputs
import numpy as np
import original_lorahub
import torch
from datasets import Dataset
from peft import PeftModel, set_peft_model_state_dict
from transformers import PreTrainedModel

from lorahub_edu.data.fewshot import ScoringBatch
from lorahub_edu.hub.adapt import SearchConfig, adapt
from lorahub_edu.hub.compose import ModuleStack, compose, stack
from lorahub_edu.hub.population import Population
from lorahub_edu.lora import adapters
from lorahub_edu.lora.adapter_files import put_adapter, read_adapter
from lorahub_edu.models import pretrained
from lorahub_edu.scoring import scoring_batches

TOLERANCE = 1e-5  # on a candidate's mean token loss, in nats, and on each entry of A and B; float32
SAME_RANKING = 0.99  # least rank correlation of bfloat16 and float32 losses
TIMED_ORIGINALS = 4  # candidates that the original scores in one round
QUICK = {"repeats": 1, "ranked": 24}
UNIFORM = 0.5  # bound of each weight of the candidates drawn at random


@dataclass(frozen=True)
class Sides:
    """All that is timed, loaded once, by the dtype's name where there are two."""

    ours: dict[str, PreTrainedModel]
    modules: ModuleStack
    examples: hub_inputs.Examples
    batches: list[ScoringBatch]
    originals: dict[str, tuple[PeftModel, original_lorahub.Cache]]
    dataset: Dataset
    kind_of_modules: str


def load(options: argparse.Namespace, scratch: Path) -> Sides:
    """Ours and the original's in both dtypes, over the same modules and examples."""
    folders, kind = hub_inputs.module_folders(options.profile, options.modules, options.zoo, scratch)
    ours, originals = {}, {}
    for name in ("float32", "bfloat16"):
        ours[name], tokenizer = pretrained.load(options.profile, dtype=name, offline=True)
        base, _ = pretrained.load(options.profile, dtype=name, offline=True)
        originals[name] = original_lorahub.load(base, folders, getattr(torch, name))
    examples = hub_inputs.examples(tokenizer, options.target)
    dataset = original_lorahub.examples(tokenizer, examples.prompts, examples.answers)
    modules = stack([read_adapter(folder) for folder in folders], dtype=torch.float32)
    batches = scoring_batches(ours["float32"], examples.rows)
    return Sides(ours, modules, examples, batches, originals, dataset, kind)


def uniform(count: int, dimension: int, seed: int) -> np.ndarray:
    """(count, dimension) weights as a search meets them early on."""
    return np.random.default_rng(seed).uniform(-UNIFORM, UNIFORM, (count, dimension))


def in_turn(work: Mapping[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """Seconds a candidate of every round; the variants take turns after one round that is not counted."""

    def measure(variant: str) -> dict:
        started = time.perf_counter()
        count = work[variant]()
        return {"seconds": round((time.perf_counter() - started) / count, 6)}

    runs = common.interleaved(list(work), repeats + 1, measure)
    return {variant: [run["seconds"] for run in runs[variant][1:]] for variant in work}


def time_scoring(sides: Sides, candidates: np.ndarray, repeats: int) -> dict[str, list[float]]:
    """Seconds an evaluation: the original one candidate after another, ours all of `candidates` (P, N) at once."""

    def original(dtype: str) -> Callable[[], int]:
        source = itertools.cycle(candidates)

        def run() -> int:
            for weights in itertools.islice(source, TIMED_ORIGINALS):
                original_lorahub.score(weights, *sides.originals[dtype], sides.dataset)
            return TIMED_ORIGINALS

        return run

    def population(dtype: str, composition: str) -> Callable[[], int]:
        def run() -> int:
            with Population(sides.ours[dtype], sides.modules, composition) as scorer:
                return len(scorer.score(candidates, sides.batches).losses)

        return run

    work = {
        "original_float32": original("float32"),
        "ours_bfloat16": population("bfloat16", "paper"),
        "original_bfloat16": original("bfloat16"),
        "ours_float32": population("float32", "paper"),
        "ours_exact_bfloat16": population("bfloat16", "exact"),
    }
    return in_turn(work, repeats)


class InPlace:
    """Composes one candidate by one product straight into a model's adapter, whose A and B are views of the result."""

    def __init__(self, model: PreTrainedModel, modules: ModuleStack) -> None:
        put_adapter(model, compose(modules, np.zeros(len(modules))))
        self.flat = modules.flat  # (N, total)
        self.composed = torch.empty(modules.flat.shape[1])  # (total,)
        layers = dict(adapters.lora_layers(model))
        for site, (A, B) in modules.split(self.composed).items():
            layers[site].lora_A["default"].data, layers[site].lora_B["default"].data = A, B

    def __call__(self, weights: np.ndarray) -> None:
        torch.mv(self.flat.mT, torch.from_numpy(weights).float(), out=self.composed)  # (total, N) @ (N,) -> (total,)


def time_composing(sides: Sides, candidates: np.ndarray, repeats: int) -> tuple[dict[str, list[float]], float]:
    """Seconds to compose one candidate into the adapter of a model, and the largest difference between the two."""
    import lorahub

    model, (peft_model, cache) = sides.ours["float32"], sides.originals["float32"]
    ours = InPlace(model, sides.modules)

    def run_original() -> int:
        for weights in candidates[:TIMED_ORIGINALS]:  # the sum is the one in get_score, line by line
            set_peft_model_state_dict(peft_model, lorahub.get_final_weights(weights, list(cache), cache))
        return TIMED_ORIGINALS

    def run_ours() -> int:
        for weights in candidates:
            ours(weights)
        return len(candidates)

    found = in_turn({"original": run_original, "ours": run_ours}, repeats)
    ours(candidates[TIMED_ORIGINALS - 1])
    theirs, worst = dict(peft_model.named_parameters()), 0.0
    for site, layer in adapters.lora_layers(model):
        for name, mine in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            other = theirs[f"base_model.model.{site}.{name}.default.weight"]
            worst = max(worst, (mine["default"] - other).abs().max().item())
    return found, worst


def loss_difference(sides: Sides, candidates: np.ndarray) -> float:
    """The largest difference between our float32 losses and the original's, without its division and its penalty."""
    with Population(sides.ours["float32"], sides.modules) as scorer:
        mine = scorer.score(candidates, sides.batches).losses
    scores = [original_lorahub.score(w, *sides.originals["float32"], sides.dataset) for w in candidates]
    theirs = (np.array(scores) - 0.05 * np.abs(candidates).mean(1)) * len(sides.examples.rows)
    return float(np.abs(mine - theirs).max())


def rank_correlation(sides: Sides, count: int) -> tuple[float, float]:
    """Spearman's correlation of bfloat16 and float32 losses, and their largest difference, over `count` candidates.

    Half of them are those that CMA-ES tries on these examples, half are uniform.
    """
    rows = sides.examples.rows
    tried = adapt(sides.ours["bfloat16"], sides.modules, rows, SearchConfig("cma", budget=count // 2)).history.weights
    candidates = np.concatenate([tried, uniform(count - len(tried), len(sides.modules), seed=1)])
    losses = []
    for model in sides.ours.values():
        with Population(model, sides.modules) as scorer:
            parts = [scorer.score(candidates[i : i + 20], sides.batches).losses for i in range(0, count, 20)]
        losses.append(np.concatenate(parts))
    ranks = [values.argsort().argsort() for values in losses]
    return float(np.corrcoef(*ranks)[0, 1]), float(np.abs(losses[0] - losses[1]).max())


def main() -> None:
    options = common.arguments(
        __doc__,
        QUICK,
        threads=2,
        repeats=7,
        modules=20,
        population=20,
        ranked=120,
        profile="cpu",
        target="last_word_upper",
        zoo="",
    )
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        sides = load(options, Path(scratch))
    candidates = uniform(options.population, len(sides.modules), seed=0)  # (P, N)
    difference = loss_difference(sides, candidates)
    correlation, moved = rank_correlation(sides, options.ranked)
    scoring = time_scoring(sides, candidates, options.repeats)
    composing, composed = time_composing(sides, candidates, options.repeats)

    def ratio(peer: list[float], ours: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(peer, ours, strict=True))

    rates = {name: round(1 / statistics.median(runs), 2) for name, runs in scoring.items()}
    milliseconds = {name: round(statistics.median(runs) * 1e3, 3) for name, runs in composing.items()}
    tokens = sum(batch.num_tokens for batch in sides.batches), sum(map(len, sides.dataset["input_ids"]))
    common.report(
        "adapt_eval",
        ratios={
            "bfloat16": ratio(scoring["original_float32"], scoring["ours_bfloat16"]),
            "float32": ratio(scoring["original_float32"], scoring["ours_float32"]),
            "both_bfloat16": ratio(scoring["original_bfloat16"], scoring["ours_bfloat16"]),
            "exact_bfloat16": ratio(scoring["original_float32"], scoring["ours_exact_bfloat16"]),
            "composing": ratio(composing["original"], composing["ours"]),
        },
        ours={
            "evaluations_per_second": {
                "bfloat16": rates["ours_bfloat16"],
                "float32": rates["ours_float32"],
                "both_bfloat16": rates["ours_bfloat16"],
                "exact_bfloat16": rates["ours_exact_bfloat16"],
            },
            "milliseconds": {"composing": milliseconds["ours"]},
            "tokens": tokens[0],
        },
        peer={
            "evaluations_per_second": {
                "bfloat16": rates["original_float32"],
                "float32": rates["original_float32"],
                "both_bfloat16": rates["original_bfloat16"],
                "exact_bfloat16": rates["original_float32"],
            },
            "milliseconds": {"composing": milliseconds["original"]},
            "tokens": tokens[1],
        },
        equal={
            "losses": difference <= TOLERANCE,
            "largest_difference": difference,
            "composed": composed <= TOLERANCE,
            "largest_difference_composed": composed,
            "tolerance": TOLERANCE,
            "same_ranking": correlation >= SAME_RANKING,
            "rank_correlation": round(correlation, 5),
            "largest_bfloat16_difference": round(moved, 4),
        },
        save=options.save,
        settings=f"{len(sides.modules)} {sides.kind_of_modules}, population {options.population}, five examples of "
        f"{options.target}, weights within ±{UNIFORM}; {options.repeats} rounds, ratios are paired; rank correlation "
        f"over {options.ranked} candidates, half of them tried by CMA-ES from zero and half uniform",
    )


if __name__ == "__main__":
    main()
