"""The studies of lessons 08 to 10: which runs each consists of, how its rows are summed up, and where they are written.

What `predict` is to decide stands in `HYPOTHESES`; it was committed before its runs and is kept with their results.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorahub_edu.errors import CourseError
from lorahub_edu.forgetting.lab import RULES, scaling
from lorahub_studies import correlation, engine, full_rank, lora_regret
from lorahub_studies import forgetting_tables as tables
from lorahub_studies import task_sequences as sequences
from lorahub_studies.tail_runs import Intervention, TailRun, run_intervention, run_tail

TASK = "reverse"
RANKS = (1, 4, 16, 64, 192)  # 192 is the most that the key and value matrices admit
STEPS = 60
SEEDS = 3
AT = (15, 30, 45)
# One grid for all ranks and rules, and one for full fine-tuning, whose weights are changed directly.
LORA_RATES = (1.5e-3, 5e-3, 1.5e-2)
FULL_RATES = (3e-4, 1e-3, 3e-3)

PREDICT_TASK = "pig_latin"
PREDICT_RUNS = 42
# Drawn evenly between the logarithms. The strength of a step is learning rate x scaling x √rank: above 0.1, settling
# runs no longer learned. Draws whose scaling falls out of its range are made again.
PREDICT_RANGES = {
    "seed": 2410,
    "full_share": 1 / 7,
    "ranks": (1, 2, 4, 8, 16, 32, 64, 128, 192),
    "steps": (30, 45, 60, 80),
    "strengths": (0.004, 0.1),
    "learning_rates": (1.5e-3, 1e-2),
    "scalings": (0.1, 16.0),
    "full_learning_rates": (2e-4, 2e-3),
}

HYPOTHESES = {
    "forgetting": "pretraining loss after a run minus before it, on the 64 held sequences of text",
    "measures": "count (ε = 0.5, all matrices), mean spike ratio, mean ‖ΔW‖/‖W₀‖, sum of the nuclear norms of ΔW",
    "H1": "each of the four rises with forgetting over the runs: Spearman's rho above 0 with its 95 % interval",
    "H2": "the nuclear norm has the largest rho of the four",
    "H3": "given ‖ΔW‖/‖W₀‖, the count adds nothing: the interval of its partial rho holds 0",
    "H4": "given the task's validation loss, the count's partial rho is below that of the nuclear norm",
    "H5": "a run without any intruder can forget as much as the median run",
    "tested by": "Spearman's rho, partial on ranks; 95 % bootstrap intervals over runs; runs that diverged or ended "
    "above the base's loss are left out and counted; a hypothesis is held only if it holds as it is written",
}

# "Fixed alpha" divides by the rank. The grids are factors of 2 and the same in relation to ten times full's rate.
RATE_TASK, RATE_STEPS, RATE_RANKS = "capitals", 20, (1, 8, 64)
RATE_GRID = {"LoRA": (2.5e-3, 5e-3, 1e-2, 2e-2), "full": (2.5e-4, 5e-4, 1e-3, 2e-3)}

# Rank, rule, learning rate: ways that learn the task and bring intruders, going by the first runs of `ranks`.
INTERVENED = ((1, "rank-stabilised", 1.5e-2), (16, "alpha = 2r", 8e-3), (64, "alpha = 2r", 5e-3))


def arms() -> list[tuple[int, str, float]]:
    """The ways to train that `ranks` compares: (rank, rule, scaling); rank 0 is full, and at 16 the rules are one."""
    distinct: dict[tuple[int, float], str] = {}
    for rule in RULES:
        for rank in RANKS:
            distinct.setdefault((rank, scaling(rule, rank)), rule)
    return [*((rank, rule, factor) for (rank, factor), rule in distinct.items()), (0, "", 1.0)]


def settling_jobs() -> list[TailRun]:
    """Every arm with every learning rate of its grid, seed 0, judged on the settling rows."""
    return [
        TailRun(TASK, rank, rule, scale, rate, STEPS, 0, part="settling", spectra=False)
        for rank, rule, scale in arms()
        for rate in (LORA_RATES if rank else FULL_RATES)
    ]


def chosen(rows: Sequence[Mapping]) -> dict[tuple[int, str], float]:
    """The learning rate with the lowest settling loss for each arm, by (rank, rule).

    Raises CourseError: every rate of an arm diverged.
    """
    runs, arm = tables.ended(rows), ["rank", "rule"]
    lost = [key for key, loss in runs.groupby(arm, sort=False)["loss"].min().items() if loss == math.inf]
    if lost:
        raise CourseError(f"Every learning rate of {lost} diverged: extend the grid downwards.")
    return engine.best_rates(runs, arm)


def rank_jobs(settled: Sequence[Mapping]) -> list[TailRun]:
    """Every arm at the learning rate that settling chose, with several seeds, judged on the validation rows."""
    rates = chosen(settled)
    return [
        TailRun(TASK, rank, rule, scale, rates[rank, rule], STEPS, seed, AT)
        for seed in range(SEEDS)
        for rank, rule, scale in arms()
    ]


def predict_jobs(count: int = PREDICT_RUNS) -> list[TailRun]:
    """Fresh runs on another task, drawn from the stated ranges by a fixed seed."""
    rng = random.Random(PREDICT_RANGES["seed"])
    jobs = []
    for number in range(count):
        method = _method(rng)
        steps = rng.choice(PREDICT_RANGES["steps"])
        jobs.append(TailRun(PREDICT_TASK, *method, steps, seed=1000 + number, at=(steps // 2,)))
    return jobs


def _method(rng: random.Random) -> tuple[int, str, float, float]:
    """Rank, rule, scaling and learning rate of one drawn run."""

    def between(low: float, high: float) -> float:
        return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.3g}")

    if rng.random() < PREDICT_RANGES["full_share"]:
        return 0, "", 1.0, between(*PREDICT_RANGES["full_learning_rates"])
    lowest, highest = PREDICT_RANGES["scalings"]
    while True:
        rank, rate = rng.choice(PREDICT_RANGES["ranks"]), between(*PREDICT_RANGES["learning_rates"])
        factor = float(f"{between(*PREDICT_RANGES['strengths']) / (rate * math.sqrt(rank)):.3g}")
        if lowest <= factor <= highest:
            return rank, "drawn", factor, rate


def intervene_jobs() -> list[Intervention]:
    """Trained runs that have intruders, each with what scaling its parts does."""
    return [
        Intervention(TailRun(TASK, rank, rule, scaling(rule, rank), rate, STEPS, seed))
        for seed in range(SEEDS)
        for rank, rule, rate in INTERVENED
    ]


def rate_jobs() -> list[TailRun]:
    """Every learning rate of the grids, for ranks under a scaling of 1/r and for full fine-tuning; claim X6."""
    return [
        TailRun(RATE_TASK, rank, rule, scale, rate, RATE_STEPS, seed, part="settling", spectra=False)
        for seed in range(SEEDS)
        for rank in (*RATE_RANKS, 0)
        for rule, scale in [("fixed alpha", scaling("fixed alpha", rank)) if rank else ("", 1.0)]
        for rate in RATE_GRID["LoRA" if rank else "full"]
    ]


def _settled(rows: Sequence[Mapping]) -> dict:
    rates = chosen(rows)
    return {"chosen": [{"rank": rank, "rule": rule, "learning_rate": rate} for (rank, rule), rate in rates.items()]}


def _over_ranks(rows: Sequence[Mapping]) -> dict:
    loss = tables.matched_loss(tables.learned(rows))
    entries = []
    for at in (loss, None):
        values = {name: tables.by_arm(rows, name, at) for name in tables.QUANTITIES}
        for rank, rule in values["loss"]:
            of_arm = {name: by_arm[rank, rule] for name, by_arm in values.items()}
            entries.append({"rank": rank, "rule": rule, "task_loss": at} | of_arm)
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
    "settling": Study("learning rates for every rank and rule of scaling", settling_jobs, run_tail, _settled),
    "ranks": Study(
        "forgetting and intruders over ranks, at chosen rates", rank_jobs, run_tail, _over_ranks, "settling"
    ),
    "predict": Study(
        "what foretells forgetting, on fresh runs",
        predict_jobs,
        run_tail,
        _predicted,
        settings={"hypotheses": HYPOTHESES, "drawn": PREDICT_RANGES},
    ),
    "intervene": Study(
        "scaling intruders, other directions, the whole update",
        intervene_jobs,
        run_intervention,
        tables.intervention_effects,
    ),
    "rates": Study("loss over the rate", rate_jobs, run_tail, tables.best_rates),
    "regret": Study("layers, batches, and a rank's capacity", lora_regret.jobs, run_tail, lora_regret.summary),
    "full_rank_rates": Study("rates up to full rank", full_rank.settling_jobs, run_tail, tables.best_rates),
    "full_rank": Study(
        "forgetting and intruders up to full rank", full_rank.jobs, run_tail, full_rank.summary, "full_rank_rates"
    ),
    "sequence_rates": Study("rates for tasks in a row", sequences.settling_jobs, sequences.run, sequences.chosen),
    "sequences": Study("tasks in a row", sequences.jobs, sequences.run, sequences.summary, "sequence_rates"),
}


def profile(name: str) -> str:
    """The profile of a study's runs."""
    study = STUDIES[name]
    first = study.jobs()[0] if not study.after else None
    return profile(study.after) if first is None else getattr(first, "run", first).profile


def plan(name: str, folder: str | Path) -> list:
    """A study's jobs. If it builds on another study, that one must be finished in the folder."""
    study = STUDIES[name]
    if not study.after:
        return study.jobs()
    before = engine.stored(plan(study.after, folder), folder)
    if None in before:
        raise CourseError(
            f"{before.count(None)} of {len(before)} runs of {study.after!r} are missing in {folder}: run that study "
            f"first."
        )
    return study.jobs(before)


def run(name: str, folder: str | Path, **options: Any) -> list[dict]:
    """The rows of a study, which is run after the study that it builds on. The options are those of `engine.run`."""
    study = STUDIES[name]
    if study.after:
        run(study.after, folder, **options)
    return engine.run(plan(name, folder), study.work, folder, **options)


def write(name: str, rows: Sequence[Mapping], into: Path | None = None) -> Path:
    """Write a study's rows, settings and summary with their provenance to <results>/intruders_<name>.json."""
    study = STUDIES[name]
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
        return head + f"accuracies {', '.join(f'{share:.0%}' for share in row['stages'][-1]['accuracies'].values())}"
    if "scaled" in row:
        return head + f"loss {row['tuned']['loss']:.3f}, {row['intruders']} intruders taken apart"
    last = row["points"][-1]
    parts = [f"loss {row['base']['loss']:.3f} -> {last['loss']:.3f}"]
    if "pretraining_loss" in last:
        parts.append(f"pretraining loss {row['base']['pretraining_loss']:.3f} -> {last['pretraining_loss']:.3f}")
        parts.append(f"{last['intruders']['0.5']} intruders")
    return head + ", ".join(parts)
