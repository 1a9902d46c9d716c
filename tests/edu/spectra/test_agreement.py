"""Decisions on SmolLM2's own matrices: the search against the definition, vector by vector, at six thresholds."""

from __future__ import annotations

import pytest
import random_updates
import torch

from lorahub_edu.models import pretrained
from lorahub_edu.spectra import bases, measures
from lorahub_edu.spectra.solver import decide
from lorahub_edu.spectra.updates import Update, base_weights

EPSILONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
STRENGTHS = (0.9, 1.0, 1.1, 2.0)  # σ₁(ΔW)/σ₁₀(W₀): where intruders begin to be among the ten strongest
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj")


@pytest.mark.real
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_every_decision_is_the_definitions(projection: str) -> None:
    if not pretrained.is_prepared("SmolLM2-135M-Instruct"):
        pytest.skip("the real model is not here: run make setup")
    model = base_weights("SmolLM2-135M-Instruct", offline=True)
    base = model.read(f"model.layers.17.{projection}")
    spectrum, known = bases.compute(base), measures.left_vectors(base)
    decisions, found_some = 0, 0
    for seed, strength in enumerate(STRENGTHS):
        down, up = random_updates.matrix(8, base.shape[1], seed), random_updates.matrix(base.shape[0], 8, seed + 50)
        up = up * torch.logspace(0, -0.5, 8)
        size = float(strength * spectrum.values[9] / measures.factored_singular_values(up, down)[0])
        one = Update(projection, base, down, up, size)
        tuned = measures.left_vectors(one.weight(torch.float64))[:, :10]
        expected = measures.similarity(tuned, known).max(dim=1).values
        found, decided = decide.largest_cosines(one, spectrum, 10, EPSILONS)
        assert (found.lower <= expected).all()
        assert (expected <= found.upper).all()
        assert decided in (decide.CERTIFIED, decide.DECOMPOSED)
        for epsilon in EPSILONS:
            assert torch.equal(found.values < epsilon, expected < epsilon)
            decisions += 10
            found_some += int((expected < epsilon).sum())
    assert decisions == 10 * len(EPSILONS) * len(STRENGTHS)
    assert 0 < found_some < decisions
