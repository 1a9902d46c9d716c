"""Later mergers against sums that are made by hand, and a model that is left as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hub_modules
import numpy as np
import pytest
import torch

from lorahub_edu.hub import zoo
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.models import tiny
from lorahub_studies import adapting, mergers
from lorahub_studies.approaches import MERGERS, METHODS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("zoo")
    for file in hub_modules.random_modules(tiny.model()):
        hub_modules.write(file, where)
    return where


@pytest.fixture
def files(folder: Path) -> list[AdapterFile]:
    return zoo.load(None, folder)


def updates(files: list[AdapterFile]) -> dict[str, np.ndarray]:
    """By layer the updates of the modules, (modules, out, in), in float64."""
    each = [hub_modules.deltas([file], [1.0], "exact") for file in files]
    return {layer: np.stack([one[layer] for one in each]) for layer in each[0]}


def ties(deltas: np.ndarray, density: float) -> np.ndarray:
    """TIES by its paper: trim each update, elect a sign for each entry, and take the mean of those that agree."""
    trimmed = np.zeros_like(deltas)
    for update, kept in zip(deltas, trimmed, strict=True):
        largest = np.argsort(-np.abs(update), axis=None)[: int(density * update.size)]
        kept.flat[largest] = update.flat[largest]
    agree = np.sign(trimmed) == np.sign(trimmed.sum(0))
    agree &= trimmed != 0
    return (trimmed * agree).sum(0) / np.maximum(agree.sum(0), 1)


@pytest.mark.parametrize("kind", [*MERGERS])
def test_a_merger_gives_what_its_paper_says(files: list[AdapterFile], kind: str, monkeypatch) -> None:
    if kind.startswith("dare"):
        monkeypatch.setattr(mergers, "DENSITY", 1.0)  # nothing is dropped, so the result is not random
    model = tiny.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = updates([mergers.merge(model, files, kind)])
    for layer, deltas in updates(files).items():
        if kind in ("arithmetic", "svd", "dare"):
            right = deltas.mean(0)
        elif kind in ("ties", "dare_ties"):
            right = ties(deltas, mergers.DENSITY)
        elif kind == "pruned":
            limits = [np.sort(np.abs(d), axis=None)[-int(mergers.DENSITY * d.size)] for d in deltas]
            right = np.mean([np.where(np.abs(d) >= limit, d, 0) for d, limit in zip(deltas, limits, strict=True)], 0)
        else:
            u, s, v = np.linalg.svd(np.concatenate(deltas, 1), full_matrices=False)
            rank = np.linalg.matrix_rank(np.concatenate(deltas, 1))
            right = u[:, :rank] * s[:rank] @ ties(np.stack(np.split(v[:rank], len(files), 1)), mergers.DENSITY)
        if kind not in ("arithmetic", "knots"):
            u, s, v = np.linalg.svd(right)
            right = u[:, : mergers.RANK] * s[: mergers.RANK] @ v[: mergers.RANK]
        np.testing.assert_allclose(merged[layer][0], right, atol=2e-5)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not hasattr(model, "peft_config")


def test_dare_follows_its_seed(files: list[AdapterFile]) -> None:
    layer = next(iter(files[0].weights))
    once, again, other = (mergers.merge(tiny.model(), files, "dare", seed).weights[layer][1] for seed in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other)


@pytest.mark.parametrize("method", ["ties", "ties_tuned", "arrow", "soups"])
def test_a_merger_is_a_line_of_the_comparison(folder: Path, method: str) -> None:
    adapting.bench.cache_clear()
    trial = adapting.Trial("gerund_upper", 0, method, folder=str(folder), profile="tiny", test_items=3)
    row = adapting.run(trial)
    base = adapting.run(replace(trial, method="zero_shot"))
    assert row["test_items"] == 3 and METHODS[method].kind in ("merge", "tune") and row["loss"] != base["loss"]
    assert adapting.run(replace(trial, method="zero_shot"))["loss"] == base["loss"], "the bench is left as it was"
    if method == "ties_tuned":
        assert row["top"][0][1] in mergers.SCALES and row["evaluations"] == len(mergers.SCALES)
    adapting.bench.cache_clear()
