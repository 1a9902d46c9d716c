"""One run of a study: what its row holds, and that each number is what it says."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from lorahub_edu.errors import CourseError
from lorahub_edu.forgetting import lab as study
from lorahub_edu.forgetting.lab import Lab, losses
from lorahub_edu.forgetting.tails import training
from lorahub_edu.spectra import measures
from lorahub_edu.spectra.interventions import KINDS
from lorahub_studies import forgetting_sweep
from lorahub_studies.tail_runs import Intervention, TailRun, run_intervention, run_tail

RUN = TailRun("reverse", 2, "alpha = 2r", 2.0, 0.2, 4, 0, at=(2,), profile="tiny", layers=2)


def final_updates(lab: Lab, run: TailRun) -> tuple:
    steps = training(lab.tail, lab.train(run.task), run.tuning, (run.steps,))
    updates = next(steps).updates
    steps.close()
    return updates


def test_a_row_holds_what_was_measured(lab: Lab) -> None:
    row = json.loads(json.dumps(run_tail(RUN)))
    assert [point["step"] for point in row["points"]] == [2, 4]
    assert row["texts"] == study.texts.SHIPPED
    last = row["points"][-1]
    updates = final_updates(lab, RUN)
    lab.tail.put({update.name: update.weight() for update in updates})
    assert last["loss"] == pytest.approx(lab.tail.loss(lab.held("reverse")), rel=1e-5)
    assert last["pretraining_loss"] == pytest.approx(lab.tail.loss(lab.texts), rel=1e-5)
    lab.tail.put()
    assert row["base"] == {
        "loss": lab.tail.loss(lab.held("reverse")),
        "pretraining_loss": lab.tail.loss(lab.texts),
    }
    assert last["loss"] < row["base"]["loss"]


def test_the_spectra_of_a_row_are_those_of_numpys_svd(lab: Lab) -> None:
    row = run_tail(RUN)
    found, matrices, updates = row["points"][-1], row["matrices"], final_updates(lab, RUN)
    assert matrices["names"] == [update.name for update in updates]
    assert found["intruders"]["0.7"] > 0  # a large learning rate: there is something to count
    for epsilon in study.EPSILONS:
        counts = [measures.intruder_count(u.base, u.weight(), study.K, epsilon) for u in updates]
        assert matrices["intruders"][str(epsilon)] == counts
        assert found["intruders"][str(epsilon)] == sum(counts)
    values = [torch.linalg.svdvals(update.dense().double()) for update in updates]
    base = [torch.linalg.svdvals(update.base.double()) for update in updates]
    spikes = [float(v[0] / b[9]) for v, b in zip(values, base, strict=True)]
    assert matrices["spike_ratio"] == pytest.approx(spikes, rel=1e-3)
    assert found["spike_ratio"] == pytest.approx(sum(spikes) / len(spikes), rel=1e-4)
    assert found["largest_spike_ratio"] == pytest.approx(max(spikes), rel=1e-4)
    assert found["nuclear_norm"] == pytest.approx(sum(float(v.sum()) for v in values), rel=1e-4)
    sizes = [float(u.dense().norm() / u.base.norm()) for u in updates]
    assert found["relative_size"] == pytest.approx(sum(sizes) / len(sizes), rel=1e-4)


def test_a_settling_run_takes_the_settling_rows_and_nothing_else(lab: Lab) -> None:
    row = run_tail(replace(RUN, part="settling", spectra=False))
    assert row["base"]["loss"] == lab.tail.loss(lab.held("reverse", "settling"))
    assert set(row["points"][-1]) == {"step", "loss"} and row["matrices"] == {}


def test_a_run_that_diverges_is_a_row_too(lab: Lab) -> None:
    row = run_tail(replace(RUN, rank=0, learning_rate=1e30))
    assert "diverged" in row["diverged"] and row["points"] == []
    assert forgetting_sweep.line(row).endswith("diverged")


def test_unknown_names_are_refused(lab: Lab) -> None:
    with pytest.raises(CourseError, match="Did you mean 'reverse'"):
        run_tail(replace(RUN, task="revers"))
    with pytest.raises(CourseError, match="Did you mean 'settling'"):
        run_tail(replace(RUN, part="setling"))


def test_every_intervention_is_measured_and_none_leaves_a_trace(lab: Lab) -> None:
    row = run_intervention(Intervention(replace(RUN, at=()), scales=(0.5, 0.0), epsilon=0.8))
    assert [(entry["kind"], entry["scale"]) for entry in row["scaled"]] == [(k, s) for k in KINDS for s in (0.5, 0.0)]
    assert row["intruders"] == row["spectrum"]["intruders"]["0.8"] > 0
    gone = next(entry for entry in row["scaled"] if entry["kind"] == "update" and entry["scale"] == 0.0)
    for loss in ("loss", "pretraining_loss"):  # without its change a tuned model is the base
        assert gone[loss] == pytest.approx(row["base"][loss], rel=1e-5)
    assert row["tuned"]["loss"] < row["base"]["loss"]
    assert len({entry["loss"] for entry in row["scaled"]}) == len(row["scaled"])
    assert losses(lab, RUN.task, {}) == row["base"]


def test_an_intervention_on_a_run_that_diverges_is_a_row_too(lab: Lab) -> None:
    row = run_intervention(Intervention(TailRun("reverse", 0, "", 1.0, 1e30, 4, 0, profile="tiny", layers=2)))
    assert "diverged" in row["diverged"] and "scaled" not in row
