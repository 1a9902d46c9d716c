"""The studies of lessons 08 to 10: each one's runs, how they are summed up, and where they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorahub_edu import results
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.forgetting.interventions import run_intervention
from lorahub_edu.forgetting.lab import run_tail
from lorahub_studies import engine
from lorahub_studies.forgetting import correlation, effects, plans, reading
from lorahub_studies.forgetting.continual import run_continual


def _settled(rows: Sequence[Mapping]) -> dict:
    rates = plans.chosen(rows)
    return {"chosen": [{"rank": rank, "rule": rule, "learning_rate": rate} for (rank, rule), rate in rates.items()]}


def _over_ranks(rows: Sequence[Mapping]) -> dict:
    loss = reading.matched_loss(reading.learned(rows))
    entries = [
        {"rank": rank, "rule": rule, "task_loss": at}
        | {name: reading.by_arm(rows, name, at)[rank, rule] for name in reading.QUANTITIES}
        for at in (loss, None)
        for rank, rule in reading.by_arm(rows, "loss", at)
    ]
    return {"matched_loss": loss, "arms": entries}


def _predicted(rows: Sequence[Mapping]) -> dict:
    runs = reading.quantities(rows)
    return {"runs": len(rows), "learned": len(runs), "verdicts": correlation.judge(runs)}


@dataclass(frozen=True)
class Study:
    """A study's jobs, the function that does one, and what sums its rows up.

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
        effects.intervention_effects,
    ),
    "continual": Study(
        "four tasks in a row", plans.continual_jobs, run_continual, effects.continual_curves, "settling"
    ),
}


def get(name: str) -> Study:
    """The study of that name.

    Raises:
        CourseError: there is none.
    """
    if name not in STUDIES:
        raise CourseError(f"There is no study {name!r}. {near_matches(name, STUDIES)}")
    return STUDIES[name]


def jobs(name: str, folder: str | Path) -> list:
    """A study's jobs.

    Args:
        name: a key of `STUDIES`.
        folder: of the sweeps; a study that builds on another one takes that one's rows from it.

    Returns:
        The jobs.

    Raises:
        CourseError: there is no such study, or the one it builds on is not finished.
    """
    study = get(name)
    if not study.after:
        return study.jobs()
    before = [engine.stored(job, Path(folder)) for job in jobs(study.after, folder)]
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
    """Run a study, and before it the one that it builds on; started again it goes on where it stopped.

    Args:
        name: a key of `STUDIES`.
        folder: one JSON file a run.
        executor: does runs in other processes; None in this one.
        report: called with each new row.

    Returns:
        The study's rows.

    Raises:
        CourseError: as `jobs`.
    """
    study = get(name)
    if study.after:
        run(study.after, folder, executor=executor, report=report)
    return engine.run(jobs(name, folder), study.work, folder, executor=executor, report=report)


def write(name: str, rows: Sequence[Mapping], into: Path | None = None) -> Path:
    """Write a study's rows, settings and summary with their provenance to <results>/intruders_<name>.json."""
    study = get(name)
    settings = {"study": name, "title": study.title, "profile": rows[0]["run"]["profile"]} | dict(study.settings)
    return engine.write(rows, f"intruders_{name}", settings, study.summary(rows), into or results.folder())


def read(name: str, source: Path | None = None) -> dict:
    """What `write` wrote of a study: settings, device, versions, date, summary, rows.

    Args:
        name: a key of `STUDIES`.
        source: the folder; None takes the course's own results.

    Raises:
        CourseError: there is no such study, or it was not written.
    """
    get(name)
    return engine.read(f"intruders_{name}", source)


def line(row: Mapping) -> str:
    """One row for a terminal."""
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
