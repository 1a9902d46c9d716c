"""The studies of lessons 08 to 10: each one's jobs, how its rows are summed up, and where they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorahub_edu.errors import CourseError, near_matches
from lorahub_studies import correlation, engine, intervention_tables
from lorahub_studies import forgetting_plans as plans
from lorahub_studies import forgetting_tables as tables
from lorahub_studies.continual import run_continual
from lorahub_studies.tail_runs import run_intervention, run_tail


def _settled(rows: Sequence[Mapping]) -> dict:
    rates = plans.chosen(rows)
    return {"chosen": [{"rank": rank, "rule": rule, "learning_rate": rate} for (rank, rule), rate in rates.items()]}


def _over_ranks(rows: Sequence[Mapping]) -> dict:
    loss = tables.matched_loss(tables.learned(rows))
    entries = [
        {"rank": rank, "rule": rule, "task_loss": at}
        | {name: tables.by_arm(rows, name, at)[rank, rule] for name in tables.QUANTITIES}
        for at in (loss, None)
        for rank, rule in tables.by_arm(rows, "loss", at)
    ]
    return {"matched_loss": loss, "arms": entries}


def _predicted(rows: Sequence[Mapping]) -> dict:
    runs = tables.quantities(rows)
    return {"runs": len(rows), "learned": len(runs), "verdicts": correlation.judge(runs)}


@dataclass(frozen=True)
class Study:
    """A study's jobs, the function that does one, and the function that sums its rows up.

    `jobs` is given the rows of the study `after`, where there is one.
    """

    title: str
    jobs: Callable[..., list]
    work: Callable[[Any], dict]
    summary: Callable[[Sequence[Mapping]], Any]
    after: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


STUDIES = {
    "settling": Study("learning rates for every rank and rule of scaling", plans.settling_jobs, run_tail, _settled),
    "ranks": Study(
        "forgetting and intruders over ranks, at chosen rates", plans.rank_jobs, run_tail, _over_ranks, "settling"
    ),
    "matched": Study(
        "the same with as many steps as end at one task loss", plans.matched_jobs, run_tail, _over_ranks, "ranks"
    ),
    "predict": Study(
        "what foretells forgetting, on fresh runs",
        plans.predict_jobs,
        run_tail,
        _predicted,
        settings={"hypotheses": plans.HYPOTHESES, "drawn": plans.PREDICT_RANGES},
    ),
    "intervene": Study(
        "scaling intruders, other directions, the whole update",
        plans.intervene_jobs,
        run_intervention,
        intervention_tables.intervention_effects,
    ),
    "continual": Study(
        "four tasks in a row", plans.continual_jobs, run_continual, intervention_tables.continual_curves, "settling"
    ),
}


def get(name: str) -> Study:
    """The study of that name, or a CourseError that names near matches."""
    if name not in STUDIES:
        raise CourseError(f"There is no study {name!r}. {near_matches(name, STUDIES)}")
    return STUDIES[name]


def plan(name: str, folder: str | Path) -> list:
    """A study's jobs. If it builds on another study, that one must be finished in the folder."""
    study = get(name)
    if not study.after:
        return study.jobs()
    before = [engine.stored(job, folder) for job in plan(study.after, folder)]
    if None in before:
        raise CourseError(
            f"{before.count(None)} of {len(before)} runs of {study.after!r} are missing in {folder}: run that study "
            f"first."
        )
    return study.jobs(before)


def run(
    name: str,
    folder: str | Path,
    *,
    executor: Executor | None = None,
    report: Callable[[Any, dict], None] = lambda job, row: None,
) -> list[dict]:
    """The rows of a study, which is run after the study that it builds on. The arguments are those of `engine.run`."""
    study = get(name)
    if study.after:
        run(study.after, folder, executor=executor, report=report)
    return engine.run(plan(name, folder), study.work, folder, executor=executor, report=report)


def write(name: str, rows: Sequence[Mapping], into: Path | None = None) -> Path:
    """Write a study's rows, settings and summary with their provenance to <results>/intruders_<name>.json."""
    study = get(name)
    settings = {"study": name, "title": study.title, "profile": rows[0]["run"]["profile"]} | dict(study.settings)
    return engine.write(rows, f"intruders_{name}", settings, study.summary(rows), into)


def line(row: Mapping) -> str:
    """A row for a terminal."""
    run = row["run"]
    method = f"rank {run['rank']}, {run['rule']}, scaling {run['scaling']:.3g}" if run["rank"] else "full"
    head = f"{run.get('task') or ' > '.join(run['tasks'])}: {method}, lr {run['learning_rate']:g}, seed {run['seed']}: "
    if row["diverged"]:
        return head + "diverged"
    if "stages" in row:
        return head + ", ".join(f"{stage['pretraining_loss']:.3f}" for stage in row["stages"]) + " pretraining loss"
    if "scaled" in row:
        return head + f"loss {row['tuned']['loss']:.3f}, {row['intruders']} intruders taken apart"
    last = row["points"][-1]
    parts = [f"loss {row['base']['loss']:.3f} -> {last['loss']:.3f}"]
    if "pretraining_loss" in last:
        parts.append(f"pretraining loss {row['base']['pretraining_loss']:.3f} -> {last['pretraining_loss']:.3f}")
        parts.append(f"{last['intruders']['0.5']} intruders")
    return head + ", ".join(parts)
