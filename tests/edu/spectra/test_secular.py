"""The base's coordinates, judged by the tuned matrix itself; the count of eigenvalues, by all of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import random_updates
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorahub_edu.spectra import bases, measures
from lorahub_edu.spectra.solver import secular
from lorahub_edu.spectra.solver.decide import Ritz, none_missed, searched
from lorahub_edu.spectra.solver.secular import Secular


def explicit(inside: Secular) -> np.ndarray:
    return inside.apply(torch.eye(len(inside.squares), dtype=torch.float64)).numpy()


@pytest.mark.parametrize("shape", [(40, 56), (56, 40), (48, 48)])
@pytest.mark.parametrize("rank", [1, 5, 44])
def test_eigenvalues_are_the_squared_singular_values_of_the_tuned_matrix(shape: tuple[int, int], rank: int) -> None:
    one = random_updates.update(*shape, rank=rank, strength=1.5)
    inside = secular.in_base_coordinates(one, bases.compute(one.base))
    tuned = np.linalg.svd(one.weight(torch.float64).numpy(), compute_uv=False)
    # the basis is kept in float32, so the two agree to about that
    np.testing.assert_allclose(np.linalg.eigvalsh(explicit(inside))[::-1], tuned**2, atol=3e-6 * tuned[0] ** 2)


def test_directions_that_are_rounding_are_left_out() -> None:
    one = random_updates.update(rank=2)
    padded = dataclasses.replace(
        one, down=torch.cat([one.down, one.down]), up=torch.cat([one.up, torch.zeros_like(one.up)], 1)
    )
    spectrum = bases.compute(one.base)
    assert secular.in_base_coordinates(padded, spectrum).rank == 2


@settings(max_examples=60, deadline=None)
@given(
    p=st.integers(3, 24),
    r=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    size=st.floats(1e-3, 1e3),
    at=st.floats(0.01, 1.2),
    repeated=st.booleans(),
)
def test_the_count_is_that_of_all_eigenvalues(
    p: int, r: int, seed: int, size: float, at: float, repeated: bool
) -> None:
    squares = random_updates.matrix(p, 1, seed)[:, 0].double().square().sort(descending=True).values
    if repeated:
        squares[: p // 2] = squares[0]
    change, old = (size * random_updates.matrix(p, r, seed + i).double() for i in (1, 2))
    inside = Secular(squares, torch.cat([change + old, old], 1), change)
    values = np.linalg.eigvalsh(explicit(inside))
    mu = at * values[-1]
    counted = inside.count_above(torch.tensor(mu, dtype=torch.float64))
    if np.abs(values - mu).min() > 1e-6 * np.abs(values).max():
        assert counted in (int((values > mu).sum()), None)
        if np.abs(squares.numpy() - mu).min() > 1e-3 * np.abs(values).max():
            assert counted is not None
    else:
        assert counted is None or abs(counted - int((values > mu).sum())) <= int(
            (np.abs(values - mu) <= 1e-6 * np.abs(values).max()).sum()
        )


def test_a_missed_vector_is_noticed() -> None:
    one = random_updates.update(rank=4, strength=2.0)
    inside = secular.in_base_coordinates(one, bases.compute(one.base))
    values, vectors = (x.flip(-1) for x in torch.linalg.eigh(torch.from_numpy(explicit(inside))))
    nothing = torch.zeros(11, dtype=torch.float64)
    assert none_missed(inside, Ritz(values[:11], vectors[:, :11], nothing)) is not None
    for missed in (0, 4, 9):
        kept = [i for i in range(12) if i != missed]
        assert none_missed(inside, Ritz(values[kept], vectors[:, kept], nothing)) is None


@pytest.mark.parametrize("shape", [(144, 160), (160, 144)])
def test_a_step_toward_a_vector_solves_the_shifted_system(shape: tuple[int, int]) -> None:
    one = random_updates.update(*shape, rank=3)
    inside = secular.in_base_coordinates(one, bases.compute(one.base))
    value, vector = inside.squares[3] * 1.001, random_updates.matrix(144, 1, 9).double()
    step = inside.toward(value[None], vector)
    torch.testing.assert_close(inside.apply(step) - value * step, vector, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("shape", [(144, 160), (160, 144)])
def test_cosines_are_those_of_the_definition(shape: tuple[int, int]) -> None:
    one = random_updates.update(*shape, rank=6, strength=1.4)
    found = searched(one, bases.compute(one.base), 10)
    expected = measures.largest_cosines(one.base, one.weight(torch.float64))
    torch.testing.assert_close(found.values, expected, atol=1e-6, rtol=0)
    assert (found.lower <= expected).all()
    assert (expected <= found.upper).all()
    assert (found.upper - found.lower).max() < 1e-2
