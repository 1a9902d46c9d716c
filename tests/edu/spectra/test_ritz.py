"""The growing subspace, judged by numpy's full decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import random_updates
import torch

from lorahub_edu.spectra.solver.decide import largest_eigenpairs


def symmetric(p: int = 150, seed: int = 0) -> torch.Tensor:
    w = random_updates.matrix(p, p, seed).double()
    return w @ w.T


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_it_finds_the_largest_from_a_rough_start(noise: float) -> None:
    G = symmetric()
    values, vectors = np.linalg.eigh(G.numpy())
    start = torch.from_numpy(vectors[:, ::-1][:, :20].copy()) + noise * random_updates.matrix(150, 20, 5).double() / 12
    found = largest_eigenpairs(lambda x: G @ x, start, 8)
    np.testing.assert_allclose(found.values[:7].numpy(), values[::-1][:7], rtol=1e-12)
    cosines = np.abs((found.vectors[:, :7].numpy() * vectors[:, ::-1][:, :7]).sum(axis=0))
    np.testing.assert_allclose(cosines, 1.0, atol=1e-9)


def test_residuals_are_those_of_the_pairs_and_values_never_too_large() -> None:
    G = symmetric(seed=3)
    found = largest_eigenpairs(lambda x: G @ x, random_updates.matrix(150, 30, 6).double(), 11, tolerance=1e-2)
    torch.testing.assert_close(found.residuals, (G @ found.vectors - found.vectors * found.values).norm(dim=0))
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(11).double(), atol=1e-12, rtol=0)
    assert (found.values <= torch.linalg.eigvalsh(G).flip(0)[:11] * (1 + 1e-12)).all()


def test_a_start_that_is_invariant_stays_where_it_is() -> None:
    """What the search can't see must be found by the certificates: here the largest value is missed."""
    diagonal = torch.arange(200.0, 0.0, -1.0, dtype=torch.float64)
    start = torch.eye(200, dtype=torch.float64)[:, 1:31]
    found = largest_eigenpairs(lambda x: diagonal[:, None] * x, start, 5)
    assert found.values.tolist() == pytest.approx([199, 198, 197, 196, 195])
    assert found.residuals.max() < 1e-12
