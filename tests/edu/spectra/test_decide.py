"""The search, judged by numpy; bounds that must hold, and doubts that must be admitted: close calls on purpose."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import random_updates
import torch

from lorahub_edu.spectra import bases, intruders, measures
from lorahub_edu.spectra.bases import BaseSpectra
from lorahub_edu.spectra.solver.decide import (
    CERTIFIED,
    DECOMPOSED,
    DEFINITION,
    Cosines,
    Ritz,
    decomposed,
    largest_cosines,
    largest_eigenpairs,
    measured_again,
    searched,
)
from lorahub_edu.spectra.updates import Update


def turned_base(cosine: float, beside: float | None = None, m: int = 144, n: int = 160) -> Update:
    """A base with singular values 30 … 20 and a weak tail, whose first left vector is turned by a known angle.

    It is turned in the plane with a mean of 40 weak vectors, none of which it comes to resemble. `beside` makes it only
    that much stronger, relatively, than the second one.
    """
    values = torch.cat([torch.linspace(30, 20, 11), torch.linspace(5, 1, m - 11)]).double()
    base = random_updates.with_spectrum(values, m, n).float()
    left, kept, _ = torch.linalg.svd(base.double(), full_matrices=False)
    plane = torch.stack([left[:, 0], left[:, -40:].sum(1) / 40**0.5], 1)
    sine = (1 - cosine**2) ** 0.5
    turned = plane @ torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
    turned[:, 0] *= 1 if beside is None else kept[1] * (1 + beside) / kept[0]
    return Update("close", base, plane.T @ base.double(), turned - plane)


@pytest.mark.parametrize("cosine", [0.49, 0.4999, 0.500001, 0.51])
def test_close_cosines_are_told_apart(cosine: float) -> None:
    one = turned_base(cosine)
    spectrum = bases.compute(one.base)
    found, _ = largest_cosines(one, spectrum, 10, (0.5,))
    assert float(found.values[0]) == pytest.approx(cosine, abs=1e-6)
    assert int((found.values < 0.5).sum()) == measures.intruder_count(one.base, one.weight(torch.float64), 10, 0.5)


def test_a_cosine_at_the_threshold_is_left_to_the_definition() -> None:
    one = turned_base(0.5)
    reference = measures.largest_cosines(one.base, one.weight(torch.float64))
    found, decided = largest_cosines(one, bases.compute(one.base), 10, (float(reference[0]),))
    assert decided == DEFINITION
    assert torch.equal(found.values, reference)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("beside", [1e-3, 1e-5, 1e-7, 1e-9, 1e-11])
def test_near_ties_of_singular_values_end_in_the_definitions_count(beside: float, whole: bool) -> None:
    """Two strong vectors whose values nearly agree mix freely: bounds must widen until a decomposition decides."""
    one = turned_base(0.3, beside)
    if whole:
        one = Update(one.name, one.base, delta=one.dense(torch.float64))
    spectrum = bases.compute(one.base)
    reference = measures.largest_cosines(one.base, one.weight(torch.float64))
    epsilons = (0.29, 0.31, 0.5, 0.9)
    found, decided = largest_cosines(one, spectrum, 10, epsilons)
    for epsilon in epsilons:
        assert int((found.values < epsilon).sum()) == int((reference < epsilon).sum())
    if not whole and beside != 1e-5:  # the kept basis is in float32: what is closer can't be certified in it
        assert (decided == CERTIFIED) == (beside > 1e-5)
    # what is certified is within its bounds
    for way in [decomposed] if whole else [decomposed, searched]:
        certain = way(one, spectrum, 10)
        if certain is not None:
            assert (certain.lower <= reference + 1e-9).all()
            assert (reference <= certain.upper + 1e-9).all()


@pytest.mark.parametrize("gap", [1e-2, 1e-6, 1e-10])
def test_the_edge_between_the_tenth_and_the_eleventh(tmp_path: Path, gap: float) -> None:
    """An intruder as the tenth or as the eleventh strongest vector, by a hair: counted or not."""
    values = torch.cat([torch.linspace(30, 21, 10), torch.linspace(5, 1, 134)]).double()
    base = random_updates.with_spectrum(values, 144, 160).float()
    left, kept, right = torch.linalg.svd(base.double(), full_matrices=False)
    weak = slice(100, 140)
    mixed = (left[:, weak].sum(1) / 40**0.5, right[weak].sum(0) / 40**0.5)
    for above, expected in ((True, 1), (False, 0)):
        wanted = kept[9] * (1 + gap if above else 1 - gap)
        # Adding t times the mean of 40 parts gives them a common singular value s where t · mean of 1/(s − σᵢ) is 1.
        strength = 1 / (1 / (wanted - kept[weak])).mean()
        one = Update("edge", base, mixed[1][None], (strength * mixed[0])[:, None])
        row = intruders.count([one], BaseSpectra(tmp_path)).rows[0]
        reference = measures.intruder_count(base, one.weight(torch.float64))
        assert row.intruders == (reference,)
        if gap == 1e-2:
            assert (reference, row.decided) == (expected, CERTIFIED)


def test_a_whole_change_is_decomposed() -> None:
    """It lies outside the strongest vectors of its base."""
    p = 160
    base = torch.diag(torch.linspace(20, 1, p))
    delta = torch.zeros(p, p)
    delta[-1, -1] = 40.0
    one = Update("hidden", base, delta=delta)
    found, decided = largest_cosines(one, bases.compute(base), 10, (0.5,))
    assert decided == DECOMPOSED
    torch.testing.assert_close(
        found.values, measures.largest_cosines(base, one.weight(torch.float64)), atol=1e-6, rtol=0
    )


def test_random_decisions_agree_and_bounds_hold() -> None:
    """Factors and whole changes, both shapes, many strengths: bounds hold, and decisions are the definition's."""
    decisions = 0
    epsilons = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    for seed, strength in enumerate((0.4, 0.8, 0.95, 1.0, 1.1, 1.5, 3.0, 20.0)):
        for shape in ((144, 160), (160, 144)):
            one = random_updates.update(*shape, rank=1 + seed % 5, strength=strength, seed=10 * seed)
            spectrum = bases.compute(one.base)
            reference = measures.largest_cosines(one.base, one.weight(torch.float64))
            for way in (one, dataclasses.replace(one, down=None, up=None, delta=one.dense(torch.float64))):
                found, _ = largest_cosines(way, spectrum, 10, epsilons)
                assert (found.lower <= reference + 1e-12).all()
                assert (reference <= found.upper + 1e-12).all()
                for epsilon in epsilons:
                    assert torch.equal(found.values < epsilon, reference < epsilon)
                    decisions += 10
    assert decisions == 8 * 2 * 2 * 6 * 10


def test_decided_means_on_one_side_of_every_threshold() -> None:
    two = torch.tensor([0.2, 0.7], dtype=torch.float64)
    found = Cosines(two, two - 0.05, two + 0.05)
    assert found.decided((0.5, 0.9))
    assert not found.decided((0.5, 0.72))
    assert not found.decided((0.17,))


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


def test_an_update_far_above_its_base_is_counted_right_and_no_cosine_exceeds_one(tmp_path: Path) -> None:
    """Behind a huge vector of the update stand weak ones of the base; the reference is two SVDs by numpy in float64."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(288, 288, generator=generator)
    left, _, right = torch.linalg.svd(base)
    base = (left * (10.0 / (1 + torch.arange(288)) ** 0.7)) @ right
    known = np.linalg.svd(base.double().numpy())[0]
    for power in (0, 2, 3, 3.5, 4, 5):
        for rank, k in ((1, 2), (1, 10), (4, 10)):
            A = torch.linalg.qr(torch.randn(288, rank, generator=generator)).Q.T.contiguous()
            B = torch.linalg.qr(torch.randn(288, rank, generator=generator)).Q
            one = Update("huge", base, A, B, 10.0 * 10**power)
            tuned = np.linalg.svd(one.weight(torch.float64).numpy())[0][:, :k]
            reference = np.abs(tuned.T @ known).max(1)
            row = intruders.count([one], BaseSpectra(tmp_path), k).rows[0]
            assert row.intruders == (int((reference < 0.5).sum()),), (power, rank, k, row.decided)
            assert max(row.cosines) <= 1 + 1e-6


def test_a_search_that_lost_its_right_angles_proves_nothing() -> None:
    """Two vectors that are nearly one have small residuals both, so residuals alone would certify them."""
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    true = torch.eye(3, 2, dtype=torch.float64)
    values = torch.tensor([3.0, 2.0], dtype=torch.float64)
    assert measured_again(matrix.matmul, Ritz(values, true, values)).residuals.max() == 0
    twice = true[:, [0, 0]] + 1e-9 * true
    assert measured_again(matrix.matmul, Ritz(values, twice, 0 * values)) is None
    too_long = Cosines(values, values, values)
    assert not too_long.decided((0.5,))
