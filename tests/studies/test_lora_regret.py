"""The study of layers, batches and capacity: its jobs, and its verdicts on rows whose losses a test chooses."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest

from lorahub_edu.forgetting.lab import Lab
from lorahub_edu.forgetting.tails import training
from lorahub_studies import forgetting_tables as tables
from lorahub_studies import lora_regret as study
from lorahub_studies.tail_runs import TailRun


def rows(loss: Callable[[TailRun, int], float]) -> list[dict]:
    made = []
    for job in study.jobs():
        points = [{"step": step, "loss": loss(job, step)} for step in job.at or (job.steps,)]
        made.append({"run": json.loads(json.dumps(asdict(job))), "points": points})
    return made


def test_the_arms_differ_in_one_thing() -> None:
    jobs = study.jobs()
    assert len(set(jobs)) == len(jobs) and {job.rank * job.scaling for job in jobs if job.rank} == {32.0}
    assert {job.batch_size * job.steps for job in jobs if job.steps not in (study.STEPS, study.AT[-1])} == {study.ROWS}
    sizes = {"self_attn": [(576, 576), (576, 192)] * 2, "": [(576, 576), (576, 192)] * 2 + [(576, 1536)] * 3}
    parameters = {held: sum(map(sum, shapes)) for held, shapes in sizes.items()}  # of SmolLM2-135M, a rank and layer
    for whole, part in study.PAIRS:
        assert part * parameters[study.ATTENTION] == pytest.approx(whole * parameters[""], rel=0.01)


def test_the_verdicts_follow_the_losses() -> None:
    def as_claimed(job: TailRun, step: int) -> float:
        worse = bool(job.matrices) + 0.01 * job.batch_size * (job.rank == 8) + (job.rank == 1 and step >= 10)
        return 1.0 + worse + job.learning_rate

    def otherwise(job: TailRun, step: int) -> float:
        return 3.0 - as_claimed(job, 0)

    summary = study.summary(rows(as_claimed))
    assert [entry["verdict"] for entry in summary.values()] == ["shown"] * 3
    assert summary["X6.attention"]["values"] == pytest.approx([1.0, 1.0, 1.0, 0.68, 0.68, 0.68], abs=0.4)
    assert summary["X6.capacity"]["values"] == [10] * 3
    assert [entry["verdict"] for entry in study.summary(rows(otherwise)).values()] == ["refuted here"] * 3
    assert study.falls_behind({2: 0.5, 5: 0.0, 10: 0.2, 20: 0.3}) == 10
    assert Counter(line[3] for line in tables.regret_table(rows(as_claimed)).rows) == {
        "0.0025": 4,
        "0.005": 3,
        "0.0005": 3,
    }


def test_a_run_that_diverged_loses() -> None:
    made = rows(lambda job, step: 1.0)
    for row in made:
        if row["run"]["learning_rate"] == 2.5e-3 and row["run"]["seed"] == 1:
            row["points"] = []
    assert {losses.name for losses in tables.at_best_rate(made).values()} == {5e-3, 5e-4}


def test_lora_adapts_the_named_matrices_in_batches_of_that_size(lab: Lab) -> None:
    run = replace(study.jobs()[0], rank=2, steps=1, matrices=study.ATTENTION, batch_size=3, profile="tiny", layers=2)
    state = next(training(lab.tail, lab.train(run.task), run.tuning, (1,)))
    assert len(state.updates) == 8 and all(study.ATTENTION in update.name for update in state.updates)
    other = next(training(lab.tail, lab.train(run.task), replace(run, batch_size=1).tuning, (1,)))
    assert state.train_losses != other.train_losses
