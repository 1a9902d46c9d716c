"""Taking a tuned matrix apart: against numpy's SVD, and the losses that follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorahub_edu.forgetting.interventions import WHAT, Intervention, losses, parts, run_intervention, strongest
from lorahub_edu.forgetting.study import Lab, TailRun
from lorahub_edu.spectra import measures
from lorahub_edu.spectra.updates import Update

RUN = TailRun("reverse", 2, "alpha = 2r", 2.0, 0.2, 4, 0, profile="tiny", layers=2)


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
    report = lab.count(spiked)
    found = parts(spiked, report, epsilon=0.6)
    for update in spiked:
        part, weight = found[update.name], update.weight().double().numpy()
        left, values, right = np.linalg.svd(weight, full_matrices=False)
        cosines = measures.largest_cosines(update.base, update.weight(), 10).numpy()
        intruders = np.flatnonzero(cosines < 0.6)
        others = np.flatnonzero(cosines >= 0.6)[: len(intruders)]
        assert part.count == len(intruders) > 0
        for what, chosen in (("intruders", intruders), ("others", others)):
            kept = np.ones_like(values)
            kept[chosen] = 0.7
            expected = left @ np.diag(kept * values) @ right
            np.testing.assert_allclose(part.scaled(what, 0.7).numpy(), expected, atol=1e-3)
        torch.testing.assert_close(part.scaled("update", 0.7), update.base + 0.7 * update.delta)
        for what in WHAT:
            torch.testing.assert_close(part.scaled(what, 1.0), update.weight())


def test_a_matrix_without_intruders_is_left_as_it_is(lab: Lab, spiked: list[Update]) -> None:
    still = Update("still", spiked[0].base, delta=1e-3 * spiked[0].delta)
    part = parts([still], lab.count([still]))["still"]
    assert part.count == 0
    assert torch.equal(part.scaled("intruders", 0.0), still.weight())
    assert torch.equal(part.scaled("others", 0.0), still.weight())


def test_the_strongest_vectors_are_torchs(spiked: list[Update]) -> None:
    for update in spiked:
        left = torch.linalg.svd(update.weight(), full_matrices=False).U[:, :10]
        overlap = (strongest(update.weight(), 10).T @ left).diagonal().abs()
        torch.testing.assert_close(overlap, torch.ones(10), atol=1e-4, rtol=0)


def test_every_intervention_is_measured_and_none_leaves_a_trace(lab: Lab) -> None:
    row = run_intervention(Intervention(RUN, scales=(0.5, 0.0), epsilon=0.8))
    assert [(entry["what"], entry["scale"]) for entry in row["scaled"]] == [(w, s) for w in WHAT for s in (0.5, 0.0)]
    assert row["intruders"] == row["spectrum"]["intruders"]["0.8"] > 0
    gone = next(entry for entry in row["scaled"] if entry["what"] == "update" and entry["scale"] == 0.0)
    for loss in ("loss", "pretraining_loss"):  # without its change a tuned model is the base
        assert gone[loss] == pytest.approx(row["base"][loss], rel=1e-5)
    assert row["tuned"]["loss"] < row["base"]["loss"]
    assert len({entry["loss"] for entry in row["scaled"]}) == len(row["scaled"])
    assert losses(lab, RUN, {}) == row["base"]


def test_a_run_that_diverges_is_a_row_too(lab: Lab) -> None:
    row = run_intervention(Intervention(TailRun("reverse", 0, "", 1.0, 1e30, 4, 0, profile="tiny", layers=2)))
    assert "diverged" in row["diverged"] and "scaled" not in row
