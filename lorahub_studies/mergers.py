"""Later ways to merge modules than LoRAHub's: task arithmetic, SVD, TIES, DARE, magnitude pruning, KnOTS, Arrow.

A merger takes all modules with equal weights and no example. "Tuned" chooses one factor of the merged update, from
`SCALES`, by its loss on the five examples. All but KnOTS are PEFT's own.

Claim X7, "later mergers beat LoRAHub", is decided for each of the fifteen lines alone, over the verdict targets: by
`adapting_tables.verdict_over_targets` on strict exact match against "cma_40", the paper's search, and against "auto".
In thirty comparisons one or two lie outside their interval by luck. This was written before the first run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import ArrowConfig, PeftModel, create_arrow_model
from peft.utils.merge_utils import ties
from torch import Tensor
from transformers import PreTrainedModel

from lorahub_edu.lora.adapter_files import AdapterFile, read_adapter

DENSITY = 0.2  # share of entries that TIES, DARE and pruning keep, as TIES has it
RANK = 32  # of the merged update, where a merger decomposes it: four times a module's
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
OWN = "knots"
# PEFT's name of each, and the weight of a module: an average for sums, 1 where signs are elected and means are taken.
PEFTS = {
    "arithmetic": ("cat", "mean"),
    "svd": ("svd", "mean"),
    "ties": ("ties_svd", "one"),
    "dare": ("dare_linear_svd", "mean"),
    "dare_ties": ("dare_ties_svd", "one"),
    "pruned": ("magnitude_prune_svd", "mean"),
}


def merge(model: PreTrainedModel, files: Sequence[AdapterFile], kind: str, seed: int = 0) -> AdapterFile:
    """All modules as one, by a merger's name; the model is left as it was.

    Source: Ilharco et al. 2022 (arithmetic), Yadav et al. 2023 (TIES), Yu et al. 2023 (DARE).
    """
    if kind == OWN:
        return _knots(files)
    combination, weight = PEFTS[kind]
    names = [f"module{i}" for i in range(len(files))]  # a bare number would be read as a layer
    wrapper = _loaded(model, files, names)
    options = {"svd_rank": RANK} if combination.endswith("svd") else {}
    if combination not in ("cat", "svd"):
        options["density"] = DENSITY
    weights = [1 / len(files) if weight == "mean" else 1.0] * len(files)
    with torch.random.fork_rng(), TemporaryDirectory() as folder:
        torch.manual_seed(seed)  # DARE drops entries at random
        wrapper.add_weighted_adapter(names, weights, "merged", combination_type=combination, **options)
        wrapper.save_pretrained(folder, selected_adapters=["merged"], save_embedding_layers=False)
        wrapper.unload()
        return replace(read_adapter(Path(folder) / "merged"), path=Path(kind))


def routed(model: PreTrainedModel, files: Sequence[AdapterFile]) -> PeftModel:
    """The model with Arrow on it: each token takes the three modules that its hidden state points to.

    Source: Ostapenko et al. 2024, arXiv 2405.11157, section 4.
    """
    config = ArrowConfig(top_k=3, router_temperature=1.0, rng_seed=0)
    return create_arrow_model(model, [str(file.path) for file in files], config)


def _loaded(model: PreTrainedModel, files: Sequence[AdapterFile], names: Sequence[str]) -> PeftModel:
    wrapper = PeftModel.from_pretrained(model, str(files[0].path), adapter_name=names[0])
    for name, file in zip(names[1:], files[1:], strict=True):
        wrapper.load_adapter(str(file.path), adapter_name=name)
    return wrapper


def _knots(files: Sequence[AdapterFile]) -> AdapterFile:
    """One module whose updates share their left singular vectors; the right ones are merged by TIES.

    Source: Stoica et al. 2024, arXiv 2410.19735, section 4.
    """
    first, pairs, configs = files[0], {}, {}
    for layer in first.weights:
        updates = [_update(file, layer).double() for file in files]
        # U and S² of the updates side by side, (out, N in), from their product with themselves
        squares, left = torch.linalg.eigh(sum(update @ update.T for update in updates))
        kept = squares > 1e-12 * squares[-1]  # float64: what is smaller is rounding
        left = left[:, kept]  # (out, rank)
        slices = [left.T @ update for update in updates]  # S Vᵀ, N of (rank, in); S is a factor of each row
        values = squares[kept].sqrt()
        merged = ties([piece / values[:, None] for piece in slices], torch.ones(len(files)), DENSITY, "total")
        pairs[layer] = merged.float(), (left * values).float()
        rank = len(values)
        configs[layer] = replace(first.configs[layer], rank=rank, alpha=float(rank))
    return replace(first, path=Path(OWN), weights=pairs, configs=configs)


def _update(file: AdapterFile, layer: str) -> Tensor:
    """(out, in) what a module adds to a layer's weight."""
    down, up = (tensor.float() for tensor in file.weights[layer])
    return file.configs[layer].scaling * up @ down
