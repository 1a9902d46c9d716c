"""The rules of scaling agree where they should; taking a tuned matrix apart, against numpy's SVD."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lorahub_edu.errors import CourseError
from lorahub_edu.forgetting import lab as study
from lorahub_edu.forgetting.lab import Lab, parts, scaling
from lorahub_edu.spectra import measures
from lorahub_edu.spectra.interventions import KINDS
from lorahub_edu.spectra.updates import Update


def test_all_rules_of_scaling_agree_at_rank_16() -> None:
    assert {scaling(rule, 16) for rule in study.RULES} == {2.0}
    assert scaling("alpha = 2r", 64) * 64 == 2 * 64
    assert scaling("rank-stabilised", 64) == pytest.approx(8 / math.sqrt(64))
    assert scaling("fixed alpha", 64) == pytest.approx(32 / 64)
    with pytest.raises(CourseError, match="Did you mean 'fixed alpha'"):
        scaling("fixed alfa", 1)


@pytest.fixture
def spiked() -> list[Update]:
    """A wide and a tall matrix, each with three strong new directions."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in ((24, 60), (60, 24)):
        base = torch.randn(*shape, generator=generator)
        up, down = (torch.randn(*size, generator=generator) for size in ((shape[0], 3), (3, shape[1])))
        made.append(Update(f"m{shape[0]}", base, delta=up @ down))
    return made


def test_parts_are_the_singular_triplets_of_numpy(lab: Lab, spiked: list[Update]) -> None:
    found = parts(spiked, lab, epsilon=0.6)
    for update in spiked:
        left, values, right = np.linalg.svd(update.weight().double().numpy(), full_matrices=False)
        cosines = measures.largest_cosines(update.base, update.weight(), 10).numpy()
        intruders = np.flatnonzero(cosines < 0.6)
        others = np.flatnonzero(cosines >= 0.6)[: len(intruders)]
        assert len(intruders) > 0
        for kind, chosen in (("intruders", intruders), ("others", others)):
            kept = np.ones_like(values)
            kept[chosen] = 0.7
            expected = left @ np.diag(kept * values) @ right
            np.testing.assert_allclose(found.scaled(kind, 0.7)[update.name].numpy(), expected, atol=1e-3)
        torch.testing.assert_close(found.scaled("update", 0.7)[update.name], update.base + 0.7 * update.delta)
        for kind in KINDS:
            torch.testing.assert_close(found.scaled(kind, 1.0)[update.name], update.weight())


def test_a_matrix_without_intruders_is_left_as_it_is(lab: Lab, spiked: list[Update]) -> None:
    still = Update("still", spiked[0].base, delta=1e-3 * spiked[0].delta)
    found = parts([still], lab)
    assert torch.equal(found.scaled("intruders", 0.0)["still"], still.weight())
    assert torch.equal(found.scaled("others", 0.0)["still"], still.weight())
    torch.testing.assert_close(found.scaled("update", 0.0)["still"], still.base)
