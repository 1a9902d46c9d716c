"""Sweeps go on where they stopped, and the studies consist of what they say."""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from forgetting_rows import point, run_row

from lorahub_edu.errors import CourseError
from lorahub_edu.forgetting.lab import Lab
from lorahub_studies import engine
from lorahub_studies import forgetting_sweep as study


@dataclass(frozen=True)
class Job:
    """A job whose row is its number squared."""

    number: int
    parts: tuple[int, ...] = (1, 2)


def test_a_killed_sweep_does_only_what_is_missing(tmp_path: Path) -> None:
    done: list[int] = []

    def work(job: Job) -> dict:
        if job.number == 3 and 3 not in done:
            done.append(3)
            raise KeyboardInterrupt
        done.append(job.number)
        return {"square": job.number**2}

    jobs = [Job(number) for number in range(5)]
    with pytest.raises(KeyboardInterrupt):
        engine.run(jobs, work, tmp_path)
    seen: list[int] = []
    rows = engine.run(jobs, work, tmp_path, report=lambda job, row: seen.append(row["square"]))
    assert [row["square"] for row in rows] == [0, 1, 4, 9, 16]
    assert done == [0, 1, 2, 3, 3, 4] and seen == [9, 16]
    assert engine.stored([Job(2), Job(2, parts=(1,))], tmp_path) == [{"square": 4}, None]  # other settings, another job


def test_an_executor_does_the_jobs_too(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as executor:
        rows = engine.run([Job(4), Job(2)], lambda job: {"n": job.number}, tmp_path, executor=executor)
    assert rows == [{"n": 4}, {"n": 2}]


def settled(loss: dict[tuple[int, str, float], float]) -> list[dict]:
    return [
        run_row(rank, rule, 0, [point(60, value, 0.0)] if value < math.inf else [], rate=rate)
        for (rank, rule, rate), value in loss.items()
    ]


def test_each_arm_gets_the_rate_with_the_lowest_settling_loss() -> None:
    rows = settled({(1, "a", 1e-3): 2.0, (1, "a", 1e-2): 1.5, (1, "a", 1e-1): math.inf, (0, "", 1e-4): 3.0})
    assert study.chosen(rows) == {(1, "a"): 1e-2, (0, ""): 1e-4}
    with pytest.raises(CourseError, match="extend the grid downwards"):
        study.chosen(settled({(1, "a", 1e-3): math.inf}))


def test_the_studies_are_what_they_say() -> None:
    arms = study.arms()
    assert len(arms) == len(set(arms)) == 14
    assert Counter(rank for rank, _, _ in arms) == {1: 3, 4: 3, 16: 1, 64: 3, 192: 3, 0: 1}
    settling = study.settling_jobs()
    assert len(settling) == 42 and {job.part for job in settling} == {"settling"}
    rows = settled({(job.rank, job.rule, job.learning_rate): 1.0 + job.learning_rate for job in settling})
    ranks = study.rank_jobs(rows)
    assert len(ranks) == 42 and {job.part for job in ranks} == {"validation"}
    assert {job.seed for job in ranks} == {0, 1, 2}
    assert {job.learning_rate for job in ranks} == {min(study.LORA_RATES), min(study.FULL_RATES)}
    assert {(job.run.rank, job.run.seed) for job in study.intervene_jobs()} == {
        (rank, seed) for rank in (1, 16, 64) for seed in range(3)
    }
    rates = study.rate_jobs()
    assert len(set(rates)) == len(rates) == 48 and study.RATE_TASK != study.TASK
    assert {job.scaling * job.rank for job in rates if job.rank} == {32.0}


def test_the_drawn_runs_are_fresh_and_within_their_ranges() -> None:
    drawn = study.predict_jobs()
    assert drawn == study.predict_jobs() and len(set(drawn)) == len(drawn) >= 40
    assert {job.task for job in drawn}.isdisjoint({study.TASK, study.RATE_TASK})
    for job in drawn:
        strength = job.scaling * job.learning_rate * math.sqrt(job.rank)
        low, high = study.PREDICT_RANGES["strengths" if job.rank else "full_learning_rates"]
        assert 0.98 * low <= (strength if job.rank else job.learning_rate) <= 1.02 * high


def test_a_study_waits_for_its_learning_rates(tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="42 of 42 runs of 'settling' are missing"):
        study.plan("ranks", tmp_path)


def test_a_study_runs_and_is_written_and_read(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorahub_studies.correlation.RESAMPLES", 30)
    small = [
        replace(job, steps=2, at=(), profile="tiny", layers=2, rank=min(job.rank, 8)) for job in study.predict_jobs(6)
    ]
    monkeypatch.setitem(study.STUDIES, "predict", replace(study.STUDIES["predict"], jobs=lambda: small))
    rows = study.run("predict", tmp_path)
    assert len(rows) == 6 and all(study.line(row).startswith("pig_latin: ") for row in rows)
    assert study.write("predict", rows, tmp_path / "results").name == "intruders_predict.json"
    content = engine.read("intruders_predict", tmp_path / "results")
    assert set(content["summary"]["verdicts"]) == {"H1", "H2", "H3", "H4", "H5"}
    assert content["settings"]["hypotheses"] == study.HYPOTHESES
    assert content["rows"] == rows and content["versions"]["torch"]
    with pytest.raises(CourseError, match="intruders sweep"):
        engine.read("intruders_ranks", tmp_path)
