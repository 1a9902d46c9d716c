"""Ranks up to full, under the source's scaling, at one learning rate and at each rank's own: claims I6 and I9.

At rank 576 every matrix of SmolLM2-135M has its full rank, 192 or 576. All runs train the tail on one task, under
alpha = 2r. A rank's own rate has the lowest settling loss of its grid, and the one rate is that of rank `SHARED`: while
settling, rank 576 diverged at the other ranks' rates. What the study decides was written here before its first row. "At
both" means at own rates and at one rate.

- I6.full_rank, "they vanish above a rank": shown if at rank 576 no matrix has an intruder after the last step, in every
  seed at both. Refuted here if in every seed at both rank 576 has more than full fine-tuning.
- I9.u_shape, "forgetting over the rank is U-shaped": the lower forgetting of ranks 1 and 576 minus the lower one of
  ranks 8 and 64, at the lowest task loss that all runs reach. Shown if above zero in every seed at both, refuted here
  if in none.
- I9.below_full, "ranks 8 and 64 forget less than full fine-tuning": at that loss and at own rates, full minus each of
  the two. Shown if above zero in every seed for both ranks, refuted here if in none.

A value that is missing, because a run diverged or did not learn, is neither above nor below zero.
Source: Shuttleworth et al. 2024, arXiv 2410.21228, figures 5 and 9.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from lorahub_edu.forgetting.lab import scaling
from lorahub_edu.results import Table
from lorahub_edu.show.findings import verdict
from lorahub_studies import forgetting_tables as tables
from lorahub_studies.tail_runs import TailRun

TASK, RULE, SEEDS, STEPS, AT = "reverse", "alpha = 2r", 3, 60, (20, 40)
RANKS, SHARED, FULL = (1, 8, 64, 576, 0), 576, 0  # rank 0 is full fine-tuning
RATES = {"LoRA": (1.5e-3, 5e-3, 1.5e-2), "full": (3e-4, 1e-3, 3e-3)}


def _run(rank: int, rate: float, seed: int = 0, **more: object) -> TailRun:
    rule, scale = (RULE, scaling(RULE, rank)) if rank else ("", 1.0)
    return TailRun(TASK, rank, rule, scale, rate, STEPS, seed, **more)


def settling_jobs() -> list[TailRun]:
    """Every rank with every learning rate of its grid, seed 0, judged on the settling rows."""
    return [
        _run(rank, rate, part="settling", spectra=False) for rank in RANKS for rate in RATES["LoRA" if rank else "full"]
    ]


def jobs(settled: Sequence[Mapping]) -> list[TailRun]:
    """Every rank at its own rate and then at the one rate, with several seeds, judged on the validation rows."""
    own = {rank: rates[0] for rank, rates in tables.best_rates(settled).items()}
    pairs = dict.fromkeys((rank, rate) for rank in RANKS for rate in (own[rank], own[SHARED if rank else FULL]))
    return [_run(rank, rate, seed, at=AT) for seed in range(SEEDS) for rank, rate in pairs]


def arms(rows: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """The rows at own rates, a rank's first ones, and those at one rate; full fine-tuning is in both."""
    own: dict[int, float] = {}
    for row in rows:
        own.setdefault(row["run"]["rank"], row["run"]["learning_rate"])
    rates = {"own rates": own, "one rate": {rank: own[SHARED if rank else FULL] for rank in own}}
    return {
        arm: [row for row in rows if row["run"]["learning_rate"] == of[row["run"]["rank"]]] for arm, of in rates.items()
    }


def values(rows: Sequence[Mapping], quantity: str, loss: float | None = None) -> pd.DataFrame:
    """A quantity of an arm's runs, seeds down and ranks across, at a task loss or after the last step."""
    frame = pd.DataFrame(index=range(SEEDS), columns=list(RANKS), dtype=float)
    for row in tables.learned(rows):
        reached = tables.last(row) if loss is None else tables.at_loss(row, loss)
        frame.loc[row["run"]["seed"], row["run"]["rank"]] = reached[quantity] if reached else math.nan
    return frame


def at_one_loss(rows: Sequence[Mapping]) -> pd.DataFrame:
    """The forgetting of an arm's runs at the lowest task loss that all of them reach."""
    return values(rows, "forgetting", tables.matched_loss(tables.learned(rows)))


def summary(rows: Sequence[Mapping]) -> dict[str, dict]:
    """By finding its `values` and its `verdict`, by the rules above."""
    both = arms(rows).values()
    counts = pd.concat([values(arm, "intruders") for arm in both])
    lost = pd.concat([at_one_loss(arm) for arm in both])
    bends = lost[[1, 576]].min(axis=1, skipna=False) - lost[[8, 64]].min(axis=1, skipna=False)
    own = lost[:SEEDS]
    below = pd.concat([own[FULL] - own[rank] for rank in (8, 64)])
    most, full = counts[576], counts[FULL]
    found = {
        "I6.full_rank": (most, verdict((most == 0).all(), (most > full).all())),
        "I9.u_shape": (bends, verdict((bends > 0).all(), (bends <= 0).all())),
        "I9.below_full": (below, verdict((below > 0).all(), (below <= 0).all())),
    }
    return {name: {"values": measured.tolist(), "verdict": decided} for name, (measured, decided) in found.items()}


def table(rows: Sequence[Mapping], caption: str = "") -> Table:
    """Rates and ranks down; across the last task loss, the forgetting at one task loss, and the last intruders."""
    lines = []
    for arm, of in arms(rows).items():
        rates = {row["run"]["rank"]: row["run"]["learning_rate"] for row in of}
        quantities = ((values(of, "loss"), 2), (at_one_loss(of), 2), (values(of, "intruders"), 0))
        for rank in RANKS:
            cells = [
                tables.in_words(frame[rank].dropna().tolist() or [math.nan], digits) for frame, digits in quantities
            ]
            lines.append((f"r = {rank}" if rank else "full", f"{rates[rank]:g} ({arm})", *cells))
    return Table(("rank", "learning rate", "task loss", "forgetting", "intruders"), tuple(lines), caption)
