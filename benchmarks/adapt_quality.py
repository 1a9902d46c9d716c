"""Loss on the five examples after equal wall time: ours against the original LoRAHub's search, on several targets.

The original searches as released (float32, NGOpt, 40 steps); the time it takes is what ours has got. All results are
judged alike: mean token loss on the five examples, in float32.

    python benchmarks/adapt_quality.py [--targets 5] [--draw 0] [--zoo FOLDER] [--save]

Source: claims H4, H5 and X5.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import common
import hub_inputs
import numpy as np
import original_lorahub
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorahub_edu.data import tasks
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.hub.adapt import AUTO, History, SearchConfig, adapt
from lorahub_edu.hub.compose import ModuleStack, stack
from lorahub_edu.hub.population import Population
from lorahub_edu.lora.adapter_files import read_adapter
from lorahub_edu.models import pretrained

ENDLESS = 100_000  # candidates: time ends a search, not its budget
SEARCHES = {"auto": AUTO["composition"], "cma": "paper"}  # ours, and what each composes by


class TimeIsOverError(Exception):
    """Leaves a search whose time is over; carries what it has tried."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self.history = history


@dataclass(frozen=True)
class Found:
    """What one search found in its time: weights (N,), evaluations and seconds of wall time."""

    weights: np.ndarray
    evaluations: int
    seconds: float


def within(
    model: PreTrainedModel, modules: ModuleStack, rows: list[PromptedRow], optimizer: str, limit: float, seed: int
) -> Found:
    """The best candidate by its own objective that a search had scored when its time was over.

    Args:
        model: the base, in the dtype to search in.
        modules: the stack.
        rows: the examples.
        optimizer: a name of `SEARCHES`.
        limit: seconds; a batch that ends later does not count, unless it is the first.
        seed: of the search.
    """

    def stop(history: History) -> None:
        if history.seconds[-1] >= limit:
            raise TimeIsOverError(history)

    try:
        history = adapt(model, modules, rows, SearchConfig(optimizer, ENDLESS, seed), on_batch=stop).history
    except TimeIsOverError as end:
        history = end.history
    in_time = history.seconds <= max(limit, history.seconds[0])
    best = int(np.nanargmin(np.where(in_time, history.objectives, np.inf)))
    return Found(history.weights[best], int(in_time.sum()), float(history.seconds[in_time][-1]))


def judge(
    model: PreTrainedModel, modules: ModuleStack, composition: str, rows: list[PromptedRow], weights: np.ndarray
) -> float:
    """Mean token loss of one composition, weights (N,), on the rows, in nats."""
    with Population(model, modules, composition) as scorer:
        return float(scorer.score(weights[None], rows).losses[0])


def warm_up(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    stacks: dict[str, ModuleStack],
    peer_model: PeftModel,
    cache: original_lorahub.Cache,
) -> None:
    """One evaluation of each kind, so that nobody's time holds what is only done once."""
    examples = hub_inputs.examples(tokenizer, tasks.names("settling")[0])
    weights = np.zeros(len(cache))
    for way, modules in stacks.items():
        judge(model, modules, way, examples.rows, weights)
    dataset = original_lorahub.examples(tokenizer, examples.prompts, examples.answers)
    original_lorahub.score(weights, peer_model, cache, dataset)


def main() -> None:
    options = common.arguments(__doc__, threads=2, targets=5, draw=0, modules=20, steps=40, profile="cpu", zoo="")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folders, kind = hub_inputs.module_folders(options.profile, options.modules, options.zoo, Path(scratch))
        exact_model, tokenizer = pretrained.load(options.profile, dtype="float32", offline=True)
        peer_model, cache = original_lorahub.load(
            pretrained.load(options.profile, dtype="float32", offline=True)[0], folders
        )
        files = [read_adapter(folder) for folder in folders]
    search_model, _ = pretrained.load(options.profile, dtype="bfloat16", offline=True)
    stacks = {way: stack(files, composition=way, dtype=torch.float32) for way in ("paper", "exact")}
    warm_up(tokenizer, search_model, stacks, peer_model, cache)
    losses: dict[str, dict[str, float]] = {}
    spent: dict[str, dict[str, dict[str, float]]] = {}
    for target in tasks.names("target")[: options.targets]:
        examples = hub_inputs.examples(tokenizer, target, options.draw)
        dataset = original_lorahub.examples(tokenizer, examples.prompts, examples.answers)
        started = time.perf_counter()
        best, tried = original_lorahub.search(peer_model, cache, dataset, options.steps)
        limit = time.perf_counter() - started
        found = {"original": Found(best, len(tried), limit)}
        for name, way in SEARCHES.items():
            found[name] = within(search_model, stacks[way], examples.rows, name, limit, options.draw)
        losses[target] = {
            name: round(judge(exact_model, stacks[way], way, examples.rows, found[name].weights), 4)
            for name, way in {"original": "paper", **SEARCHES}.items()
        }
        spent[target] = {n: {"evaluations": f.evaluations, "seconds": round(f.seconds, 2)} for n, f in found.items()}
        print(target, losses[target], spent[target], flush=True)

    def median(name: str) -> float:
        return round(statistics.median(row[name] for row in losses.values()), 4)

    def gain(name: str) -> float:
        return round(statistics.median(row["original"] - row[name] for row in losses.values()), 4)

    common.report(
        "adapt_quality",
        ratios={name: statistics.median(row["original"] / row[name] for row in losses.values()) for name in SEARCHES},
        ours={"loss": {name: median(name) for name in SEARCHES}},
        peer={"loss": dict.fromkeys(SEARCHES, median("original"))},
        equal={"time": all(s[n]["seconds"] <= s["original"]["seconds"] for s in spent.values() for n in SEARCHES)},
        save=options.save,
        losses=losses,
        spent=spent,
        median_gain={name: gain(name) for name in SEARCHES},
        settings=f"{len(files)} {kind}, five examples a target (draw {options.draw}); the original in float32, "
        f"{options.steps} steps; ours searches in bfloat16 for as long; losses in float32",
    )


if __name__ == "__main__":
    main()
