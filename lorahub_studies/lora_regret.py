"""Which layers LoRA needs, what a large batch costs it, and when a rank is used up: claim X6, beside the study `rates`.

All runs train the tail on one task, under a scaling of 1/r. What the study decides was written here before its first
run. An arm's best rate is that of its grid with the lowest mean loss over the seeds, on the settling rows; a run that
diverged counts as infinite.

- X6.attention, "attention alone is worse at equal parameters": for each pair of `PAIRS`, attention alone minus all
  layers, each at its best rate. Shown if above zero in every seed and pair, refuted here if in none.
- X6.batch, "LoRA pays for large batches": rank 8 minus full fine-tuning, each at its best rate for the batch, after the
  same rows. Shown if the difference at batch 128 is above that at batch 8 in every seed, refuted here if in none.
- X6.capacity, "a low rank equals a high one until it is used up": rank 1 falls behind at the first recorded step from
  which on its loss is more than `MARGIN` nats above rank 64's, at one rate. Shown if that step exists in every seed and
  is not the first recorded one, refuted here if there is no such step in any seed.

Source: Schulman et al. 2025, "LoRA Without Regret".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

from lorahub_edu.forgetting.lab import scaling
from lorahub_edu.show.findings import verdict
from lorahub_studies import forgetting_tables as tables
from lorahub_studies.tail_runs import TailRun

TASK, RULE, SEEDS = "capitals", "fixed alpha", 3
ATTENTION = "self_attn"
PAIRS = ((3, 8), (12, 32))  # ranks of all layers and of attention alone: parameters that differ by under 1 %
STEPS = 20
BATCHES, ROWS = (8, 32, 128), 512  # as many steps as take so many rows
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)  # the last was added because attention was best at the one before
BATCH_RATES = {8: (5e-3, 1e-2), 0: (5e-4, 1e-3)}  # by rank; 0 is full fine-tuning
CAPACITY_RANKS, CAPACITY_RATE, AT = (1, 64), 5e-3, (2, 5, 10, 20, 40, 80)
MARGIN = 0.1  # nats a token


def jobs() -> list[TailRun]:
    """The runs of all three questions."""

    def runs(rank: int, rates: Sequence[float], steps: int = STEPS, **more: object) -> list[TailRun]:
        rule, scale = (RULE, scaling(RULE, rank)) if rank else ("", 1.0)
        return [
            TailRun(TASK, rank, rule, scale, rate, steps, seed, part="settling", spectra=False, **more)
            for seed in range(SEEDS)
            for rate in rates
        ]

    return [
        *(
            run
            for pair in PAIRS
            for rank, held in zip(pair, ("", ATTENTION), strict=True)
            for run in runs(rank, RATES, matrices=held)
        ),
        *(run for rank in CAPACITY_RANKS for run in runs(rank, (CAPACITY_RATE,), AT[-1], at=AT)),
        *(
            run
            for batch in BATCHES
            for rank, rates in BATCH_RATES.items()
            for run in runs(rank, rates, ROWS // batch, batch_size=batch)
        ),
    ]


def falls_behind(gaps: Mapping[int, float]) -> int:
    """The first recorded step from which on every gap is above `MARGIN`; 0 if there is none."""
    later = list(takewhile(lambda step: gaps[step] > MARGIN, sorted(gaps, reverse=True)))
    return later[-1] if later else 0


def summary(rows: Sequence[Mapping]) -> dict[str, dict]:
    """By finding its `values` and its `verdict`, by the rules above."""
    losses = tables.at_best_rate(rows)
    steps = [falls_behind(gaps) for gaps in tables.behind(rows).values()]
    alone = [
        float(gap) for whole, part in PAIRS for gap in losses[8, STEPS, ATTENTION, part] - losses[8, STEPS, "", whole]
    ]
    gaps = {batch: losses[batch, ROWS // batch, "", 8] - losses[batch, ROWS // batch, "", 0] for batch in BATCHES}
    grown = [float(gap) for gap in gaps[BATCHES[-1]] - gaps[BATCHES[0]]]
    return {
        "X6.attention": {"values": alone, "verdict": verdict(min(alone) > 0, max(alone) <= 0)},
        "X6.batch": {"values": grown, "verdict": verdict(min(grown) > 0, max(grown) <= 0)},
        "X6.capacity": {"values": steps, "verdict": verdict(min(steps) > AT[0], max(steps) == 0)},
    }
