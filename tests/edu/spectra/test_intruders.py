"""Counting over updates, judged by the definition on the whole matrices."""

from __future__ import annotations

from pathlib import Path

import pytest
import random_updates
import torch

from lorahub_edu.errors import CourseError
from lorahub_edu.spectra import measures
from lorahub_edu.spectra.bases import BaseSpectra
from lorahub_edu.spectra.intruders import UNCHANGED, count
from lorahub_edu.spectra.updates import Update


@pytest.mark.parametrize("shape", [(48, 64), (160, 144), (144, 144)])
@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
def test_counts_are_those_of_the_definition(tmp_path: Path, shape: tuple[int, int], strength: float) -> None:
    one = random_updates.update(*shape, strength=strength)
    row = count([one], BaseSpectra(tmp_path), 10, (0.3, 0.5, 0.7)).rows[0]
    tuned = one.weight(torch.float64)
    assert row.intruders == tuple(measures.intruder_count(one.base, tuned, 10, e) for e in (0.3, 0.5, 0.7))
    torch.testing.assert_close(
        torch.tensor(row.cosines, dtype=torch.float64),
        measures.largest_cosines(one.base, tuned, 10),
        atol=1e-5,
        rtol=0,
    )


def test_what_a_row_says_of_the_update(tmp_path: Path) -> None:
    one = random_updates.update(strength=1.5)
    row = count([one], BaseSpectra(tmp_path)).rows[0]
    values = torch.linalg.svdvals(one.dense(torch.float64))
    assert row.spike_ratio == pytest.approx(1.5, rel=1e-5)
    assert row.relative_size == pytest.approx(float(one.dense().norm() / one.base.norm()), rel=1e-5)
    assert row.effective_rank == pytest.approx(measures.effective_rank(values), rel=1e-5)
    assert row.nuclear_norm == pytest.approx(float(values.sum()), rel=1e-5)


def test_a_whole_delta_counts_like_its_factors(tmp_path: Path) -> None:
    factored = random_updates.update(strength=2.0)
    whole = Update(factored.name, factored.base, delta=factored.dense(torch.float64))
    a, b = count([factored, whole], BaseSpectra(tmp_path)).rows
    assert a.intruders == b.intruders
    assert (a.effective_rank, a.nuclear_norm) == pytest.approx((b.effective_rank, b.nuclear_norm), rel=1e-5)


def test_an_update_of_zero_has_no_intruders_and_says_so(tmp_path: Path) -> None:
    one = random_updates.update()
    still = Update("still", one.base, one.down, torch.zeros_like(one.up))
    report = count([still], BaseSpectra(tmp_path))
    assert report.unchanged
    assert report.intruders == (0,)
    assert report.rows[0].decided == UNCHANGED


def test_bad_input_is_named(tmp_path: Path) -> None:
    one, bases = random_updates.update(), BaseSpectra(tmp_path)
    with pytest.raises(CourseError, match="no 145 strongest"):
        count([one], bases, k=145)
    with pytest.raises(CourseError, match=r"1\.5"):
        count([one], bases, epsilons=(0.5, 1.5))
    broken = one.up.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(CourseError, match="B holds 1 NaN"):
        count([Update("x", one.base, one.down, broken)], bases)
