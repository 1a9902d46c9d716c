"""Which runs the studies of lessons 08 to 10 consist of, and what is expected of them, stated before they were made.

What `predict` is to decide stands in `HYPOTHESES`; it was committed before its runs and is kept with their results.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from lorahub_edu.errors import CourseError
from lorahub_edu.forgetting.lab import RULES, scaling
from lorahub_studies import forgetting_tables
from lorahub_studies.continual import ContinualRun
from lorahub_studies.tail_runs import Intervention, TailRun

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
PREDICT_SEED = 2410
PREDICT_FULL_SHARE = 1 / 7
PREDICT_RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 192)
PREDICT_STEPS = (30, 45, 60, 80)
# Drawn evenly between the logarithms. The strength of a step is learning rate x scaling x √rank: above 0.1, settling
# runs no longer learned. Draws whose scaling falls out of its range are made again.
PREDICT_STRENGTHS = (0.004, 0.1)
PREDICT_LORA_RATES = (1.5e-3, 1e-2)
PREDICT_SCALINGS = (0.1, 16.0)
PREDICT_FULL_RATES = (2e-4, 2e-3)

PREDICT_RANGES = {
    "seed": PREDICT_SEED,
    "full_share": PREDICT_FULL_SHARE,
    "ranks": PREDICT_RANKS,
    "steps": PREDICT_STEPS,
    "strengths": PREDICT_STRENGTHS,
    "learning_rates": PREDICT_LORA_RATES,
    "scalings": PREDICT_SCALINGS,
    "full_learning_rates": PREDICT_FULL_RATES,
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

# Rank, rule, learning rate: ways that learn the task and bring intruders, going by the first runs of `ranks`.
INTERVENED = ((1, "rank-stabilised", 1.5e-2), (16, "alpha = 2r", 8e-3), (64, "alpha = 2r", 5e-3))
CONTINUAL_TASKS = ("reverse", "capitals", "lengths", "sort")
CONTINUAL_STEPS = 40
CONTINUAL_RANKS = (1, 16, 64, 0)


def arms() -> list[tuple[int, str, float]]:
    """The ways to train that `ranks` compares: (rank, rule, scaling); rank 0 is full fine-tuning.

    At rank 16 the three rules are one, which stands under the first.
    """
    distinct: dict[tuple[int, float], tuple[int, str, float]] = {}
    for rule in RULES:
        for rank in RANKS:
            distinct.setdefault((rank, scaling(rule, rank)), (rank, rule, scaling(rule, rank)))
    return [*distinct.values(), (0, "", 1.0)]


def settling_jobs() -> list[TailRun]:
    """Every arm with every learning rate of its grid, seed 0, judged on the settling rows."""
    return [
        TailRun(TASK, rank, rule, scale, rate, STEPS, 0, part="settling", spectra=False)
        for rank, rule, scale in arms()
        for rate in (LORA_RATES if rank else FULL_RATES)
    ]


def chosen(rows: Sequence[Mapping]) -> dict[tuple[int, str], float]:
    """The learning rate with the lowest settling loss for each arm, by (rank, rule).

    Raises:
        CourseError: every rate of an arm diverged.
    """
    best: dict[tuple[int, str], tuple[float, float]] = {}
    for row in rows:
        run = row["run"]
        loss = row["points"][-1]["loss"] if row["points"] else math.inf
        arm = (run["rank"], run["rule"])
        best[arm] = min(best.get(arm, (math.inf, 0.0)), (loss, run["learning_rate"]))
    lost = [arm for arm, (loss, _) in best.items() if loss == math.inf]
    if lost:
        raise CourseError(f"Every learning rate of {lost} diverged: extend the grid downwards.")
    return {arm: rate for arm, (_, rate) in best.items()}


def rank_jobs(settled: Sequence[Mapping], seeds: int = SEEDS) -> list[TailRun]:
    """Every arm at the learning rate that settling chose, with several seeds, judged on the validation rows."""
    rates = chosen(settled)
    return [
        TailRun(TASK, rank, rule, scale, rates[rank, rule], STEPS, seed, AT)
        for seed in range(seeds)
        for rank, rule, scale in arms()
    ]


def matched_jobs(ranks: Sequence[Mapping]) -> list[TailRun]:
    """Every run of `ranks` that learned again, with as many steps as bring it to one task loss at its schedule's end.

    In the middle of a schedule the rate is high, and a run has forgotten more than at its end. So a run that passes the
    common loss early and a run that just reaches it are no fair pair. Here all of them end near it.
    """
    rows = forgetting_tables.learned(ranks)
    loss = forgetting_tables.matched_loss(rows)
    passed = forgetting_tables.by_arm(rows, "step", loss)
    jobs = []
    for row in rows:
        run = row["run"]
        crossings = passed[forgetting_tables.arm(run)]
        steps = math.ceil(sum(crossings) / len(crossings))
        at = (round(0.7 * steps), round(0.85 * steps))
        jobs.append(TailRun(**run | {"steps": steps, "at": at}))
    return jobs


def predict_jobs(count: int = PREDICT_RUNS) -> list[TailRun]:
    """Fresh runs on another task, drawn from the stated ranges by a fixed seed."""
    rng = random.Random(PREDICT_SEED)
    return [
        TailRun(
            PREDICT_TASK,
            *_method(rng),
            steps=(steps := rng.choice(PREDICT_STEPS)),
            seed=1000 + number,
            at=(steps // 2,),
        )
        for number in range(count)
    ]


def _method(rng: random.Random) -> tuple[int, str, float, float]:
    """Rank, rule, scaling and learning rate of one drawn run."""

    def between(low: float, high: float) -> float:
        return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.3g}")

    if rng.random() < PREDICT_FULL_SHARE:
        return 0, "", 1.0, between(*PREDICT_FULL_RATES)
    while True:
        rank, rate = rng.choice(PREDICT_RANKS), between(*PREDICT_LORA_RATES)
        factor = float(f"{between(*PREDICT_STRENGTHS) / (rate * math.sqrt(rank)):.3g}")
        if PREDICT_SCALINGS[0] <= factor <= PREDICT_SCALINGS[1]:
            return rank, "drawn", factor, rate


def intervene_jobs(seeds: int = SEEDS) -> list[Intervention]:
    """Trained runs that have intruders, each with what scaling its parts does."""
    return [
        Intervention(TailRun(TASK, rank, rule, scaling(rule, rank), rate, STEPS, seed))
        for seed in range(seeds)
        for rank, rule, rate in INTERVENED
    ]


def continual_jobs(settled: Sequence[Mapping], seeds: int = SEEDS) -> list[ContinualRun]:
    """Sequences of tasks at the learning rates that settling chose on the first one."""
    rates = chosen(settled)
    rule = {rank: "alpha = 2r" if rank else "" for rank in CONTINUAL_RANKS}
    return [
        ContinualRun(
            CONTINUAL_TASKS, rank, rule[rank], 2.0 if rank else 1.0, rates[rank, rule[rank]], CONTINUAL_STEPS, seed
        )
        for seed in range(seeds)
        for rank in CONTINUAL_RANKS
    ]
