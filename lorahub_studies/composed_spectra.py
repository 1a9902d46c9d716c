"""Has a composed LoRAHub module intruder dimensions, more or other ones than its parts? Claim X1, with its controls.

Every composition that a search found is counted beside what differs from it in one thing only: the signs of its
weights, which module got which weight, the weights themselves, the directions of its update, the update's size.
Source: claim X1; intruder dimensions after arXiv 2410.21228, compositions after arXiv 2307.13269, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch

from lorahub_edu.data.fewshot import find_task, rows_for, split
from lorahub_edu.hub import zoo
from lorahub_edu.hub.compose import compose
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.models import pretrained
from lorahub_edu.results import spread
from lorahub_edu.spectra import measures, updates
from lorahub_edu.spectra.bases import BaseSpectra
from lorahub_edu.spectra.intruders import count
from lorahub_edu.spectra.updates import Update, Weights, base_weights
from lorahub_studies import adapting
from lorahub_studies.adapting import METHODS, Bench

EPSILONS = (0.5, 0.6, 0.7, 0.8)
VARIANTS = {
    "found": "as the search found it",
    "no signs": "the same weights, all positive",
    "dealt anew": "the same weights, on other modules",
    "random weights": "random weights of the same size",
    "random directions": "the same singular values, random directions",
    "size of a part": "shrunk to the mean size of a single module",
}


@dataclass(frozen=True)
class Composition:
    """One search whose result is examined; it can be sent to a worker as it is.

    `search` is a key of `adapting.METHODS` that searches weights; the other fields are those of `adapting.Trial`. The
    draw is also the seed of the controls.
    """

    target: str
    draw: int
    search: str
    modules: tuple[str, ...] = ()
    folder: str = str(zoo.SHIPPED)
    profile: str = "cpu"


def run(composition: Composition) -> dict:
    """Search, compose, and count the intruder dimensions of the result and of its controls.

    Returns: `rows`, one a variant: target, draw, search, variant, `intruders` (a count for each of `EPSILONS`),
        `matrices`, over these the mean `relative_size` ‖ΔW‖/‖W₀‖ and the median `spike_ratio` σ₁(ΔW)/σ₁₀(W₀);
        `weight_norm` ‖w‖₂ and `negative`, the number of weights below zero.
    Raises CourseError: unknown target.
    """
    bench = adapting.bench(composition.profile, composition.modules, composition.folder)
    task = find_task(composition.target)
    examples, _ = split(task, composition.draw, 5, 1)
    rows = rows_for(bench.model, bench.tokenizer, task.instructions[0], examples)
    result = adapting.search(bench, rows, METHODS[composition.search], composition.draw)
    generator = np.random.default_rng(composition.draw)
    measured = []
    for variant in VARIANTS:
        changes, w = _variant(variant, bench, result.weights, result.composition, generator)
        row = asdict(composition) | {"variant": variant, "composition": result.composition}
        row |= {"weight_norm": float(np.linalg.norm(w)), "negative": int((w < 0).sum())}
        measured.append(row | measure(changes))
    return {"rows": measured}


def parts(modules: tuple[str, ...] = (), folder: str = str(zoo.SHIPPED), profile: str = "cpu") -> list[dict]:
    """The same figures of every module alone: one row a module."""
    bench = adapting.bench(profile, modules, folder)
    return [{"module": file.path.name} | measure(updates.iter_updates(file, _base(bench))) for file in bench.files]


def measure(changes: Iterable[Update]) -> dict:
    """Intruder counts and sizes of an update, over all its matrices."""
    report = count(changes, BaseSpectra(), epsilons=EPSILONS)
    return {
        "intruders": list(report.intruders),
        "matrices": len(report.rows),
        "relative_size": float(np.mean([row.relative_size for row in report.rows])),
        "spike_ratio": float(np.median([row.spike_ratio for row in report.rows])),
    }


def summarise(rows: Sequence[dict]) -> list[dict]:
    """Per search and variant the number of `compositions`, and the spread of the first ε's intruders and of sizes."""
    frame = pd.DataFrame(rows)
    return [
        {"search": search, "variant": variant, "compositions": len(group)}
        | {"intruders": spread([counts[0] for counts in group["intruders"]])}
        | {key: spread(list(group[key])) for key in ("relative_size", "spike_ratio")}
        for (search, variant), group in frame.groupby(["search", "variant"], sort=False)
    ]


def _variant(
    variant: str, bench: Bench, weights: np.ndarray, composition: str, generator: np.random.Generator
) -> tuple[list[Update], np.ndarray]:
    """A variant's updates, and the weights it was composed with."""
    w = weights
    if variant == "no signs":
        w = np.abs(weights)
    elif variant == "dealt anew":
        w = generator.permutation(weights)
    elif variant == "random weights":
        drawn = generator.uniform(-1.5, 1.5, len(weights))
        w = drawn * np.linalg.norm(weights) / np.linalg.norm(drawn)
    file = compose(bench.stacks[composition], w, composition)
    changes = list(updates.iter_updates(file, _base(bench)))
    if variant == "random directions":
        seeded = torch.Generator().manual_seed(int(generator.integers(2**31)))
        changes = [same_spectrum(change, seeded) for change in changes]
    elif variant == "size of a part":
        mean = _mean_sizes(bench.files)
        changes = [replace(c, scaling=c.scaling * mean[c.name] / max(_size(c), 1e-30)) for c in changes]
    return changes, w


def same_spectrum(change: Update, generator: torch.Generator) -> Update:
    """A change of the same singular values whose singular vectors are drawn at random."""
    values = change.singular_values().float()
    left, right = (torch.linalg.qr(torch.randn(size, len(values), generator=generator)).Q for size in change.base.shape)
    return replace(change, up=left * values, down=right.T, scaling=1.0)


def _size(change: Update) -> float:
    return float(change.singular_values().norm())


def _mean_sizes(files: Sequence[AdapterFile]) -> dict[str, float]:
    """Frobenius norm of each matrix's update, mean over the modules."""
    norms: dict[str, list[float]] = {}
    for file in files:
        for name, (A, B) in file.weights.items():
            values = measures.factored_singular_values(B, A, file.configs[name].scaling)
            norms.setdefault(name, []).append(float(values.norm()))
    return {name: float(np.mean(of_matrix)) for name, of_matrix in norms.items()}


def _base(bench: Bench) -> Weights:
    """The base in full precision, as it was prepared; the bench's own copy is rounded to bfloat16."""
    name = pretrained.name_of(bench.model)
    return base_weights(name if name and pretrained.is_prepared(name) else bench.model)
