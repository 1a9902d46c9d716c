"""Ranks up to full: the study's jobs, its verdicts on rows whose values a test chooses, and a run at full rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import torch

from lorahub_edu.forgetting.lab import Lab
from lorahub_edu.forgetting.tails import training
from lorahub_edu.lora.layer import LoRALinear
from lorahub_studies import forgetting_tables as tables
from lorahub_studies import full_rank as study
from lorahub_studies.tail_runs import TailRun

BEST = {1: 1.5e-2, 8: 5e-3, 64: 5e-3, 576: 1.5e-3, 0: 1e-3}
MEASURED = dict.fromkeys(tables.QUANTITIES, 0.0)


def row(job: TailRun, loss: float, forgetting: float = 0.0, intruders: int = 0) -> dict:
    points = [
        MEASURED | {"step": step, "loss": loss, "pretraining_loss": 3.0 + forgetting, "intruders": {"0.5": intruders}}
        for step in (*job.at, job.steps)
    ]
    base = {"loss": 4.0, "pretraining_loss": 3.0}
    return {"run": json.loads(json.dumps(asdict(job))), "base": base, "points": points}


def rows(forgetting: Callable[[int], float], intruders: Callable[[int], int]) -> list[dict]:
    settled = [row(job, abs(job.learning_rate - BEST[job.rank])) for job in study.settling_jobs()]
    return [row(job, 2.0, forgetting(job.rank), intruders(job.rank)) for job in study.jobs(settled)]


def test_every_rank_runs_at_its_own_rate_and_at_one() -> None:
    made = rows(lambda rank: 0.0, lambda rank: 0)
    rates = {
        arm: {run["run"]["rank"]: run["run"]["learning_rate"] for run in of} for arm, of in study.arms(made).items()
    }
    assert rates == {"own rates": BEST, "one rate": BEST | {1: 1.5e-3, 8: 1.5e-3, 64: 1.5e-3}}
    assert all(len(of) == len(BEST) * study.SEEDS for of in study.arms(made).values())


@pytest.mark.parametrize(
    ("forgetting", "intruders", "expected"),
    [
        ({1: 0.4, 8: 0.2, 64: 0.1, 576: 0.3, 0: 0.3}, 0, "shown"),
        ({1: 0.1, 8: 0.2, 64: 0.3, 576: 0.4, 0: 0.05}, 7, "refuted here"),
    ],
)
def test_the_verdicts_follow_the_rules(forgetting: dict, intruders: int, expected: str) -> None:
    summary = study.summary(rows(forgetting.__getitem__, lambda rank: intruders if rank == 576 else 0))
    assert [entry["verdict"] for entry in summary.values()] == [expected] * 3
    seeds = study.SEEDS
    # At 2 of 4 nats the straight line from the base is at its end, so forgetting is that of the first point.
    assert summary["I9.below_full"]["values"] == pytest.approx(
        [forgetting[0] - forgetting[8]] * seeds + [forgetting[0] - forgetting[64]] * seeds
    )


def test_a_run_that_diverged_decides_nothing() -> None:
    made = rows({1: 0.4, 8: 0.2, 64: 0.1, 576: 0.3, 0: 0.3}.__getitem__, lambda rank: 0)
    next(of for of in made if of["run"]["rank"] == 576)["points"] = []
    verdicts = {name: entry["verdict"] for name, entry in study.summary(made).items()}
    assert verdicts == {
        "I6.full_rank": "not shown here",
        "I9.u_shape": "not shown here",
        "I9.below_full": "shown",
    }
    assert study.table(made).rows[3][:3] == ("r = 576", "0.0015 (own rates)", "2.00")


def test_a_matrix_that_does_not_admit_the_rank_has_its_full_rank(lab: Lab) -> None:
    run = replace(study.settling_jobs()[0], rank=128, steps=2, profile="tiny", layers=2)
    state = next(training(lab.tail, lab.train(run.task), run.tuning, (2,)))
    ranks = {update.name.rpartition(".")[2]: update.down.shape[0] for update in state.updates}
    shapes = {update.name.rpartition(".")[2]: tuple(update.base.shape) for update in state.updates}
    assert ranks == {name: min(128, *shape) for name, shape in shapes.items()} and len(set(ranks.values())) > 1
    assert {update.scaling for update in state.updates} == {run.scaling}
    update = state.updates[0]
    changed = update.base + update.scaling * (update.up @ update.down)
    bases, tuned = (torch.linalg.svd(weight.double())[0] for weight in (update.base, changed))
    largest = (bases.T @ tuned[:, :10]).abs().max(0).values  # of a left singular vector with any of the base
    report = lab.count(state.updates)
    assert report.rows[0].cosines == pytest.approx(largest.tolist(), abs=1e-5)
    assert not any(isinstance(layer, LoRALinear) for layer in lab.tail.model.modules())
