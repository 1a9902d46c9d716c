"""Does the rank at which modules were trained matter to LoRAHub? One zoo for each rank and learning rate. Claim H15.

What this study decides was written here before its first run. The claim's half on an instruction-tuned model, "the rank
matters little", is judged by strict exact match of "cma_40", the paper's search. Each rank has two arms: its zoo at the
rate that all ranks share, and its zoo at its own rate, at which its modules have the lowest mean held-out loss. The
other ranks are compared with rank 8 in the same arm, on tasks that no zoo has a module of:

- shown if the 95 % intervals over targets (draws within them) of all comparisons lie within `MARGIN` points of zero,
  and rank 8 reaches `LEAST` points in both arms, so that there is something to lose;
- refuted here if one of them lies wholly outside that margin; not shown here otherwise.

The claim's other half, "more for T5", is not run. Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lorahub_edu import results
from lorahub_edu.show import findings
from lorahub_studies import adapting, engine, zoo_training
from lorahub_studies import adapting_tables as tables
from lorahub_studies.zoo_training import ModuleJob

RANKS, USUAL = (1, 4, 8, 16), 8
RATES, COMMON = (5e-3, 1.5e-2), 5e-3  # the common one is the shipped zoo's
ARMS = ("common", "own")
MARGIN, LEAST = 5.0, 10.0  # points of strict exact match
MODULES = ("gerund", "subtract", "category", "words2num")
TARGETS = ("past", "plural", "antonym", "add", "successor", "sentiment")
STEPS = 15


def modules(zoos: Path, **settings: Any) -> list[ModuleJob]:
    """The modules of all zoos, each zoo in a folder of its own; `settings` are further fields of `ModuleJob`."""
    return [
        ModuleJob(task, str(zoos / f"rank{rank}_rate{rate:g}"), rank=rank, learning_rate=rate, **settings)
        for rank in RANKS
        for rate in RATES
        for task in MODULES
    ]


def own_rates(cards: Sequence[Mapping]) -> dict[int, float]:
    """By rank the learning rate at which the modules have the lowest mean held-out loss."""
    return engine.best_rates(pd.DataFrame(cards), "rank", "loss_after")


def arm(rank: int, name: str) -> str:
    """What stands as the method in a row of a rank's zoo at the "common" rate or at its "own"."""
    return f"rank {rank}, {name} rate"


def run(
    out: Path, draws: int = 3, test_items: int = 60, profile: str = "cpu", steps: int = STEPS
) -> tuple[list[dict], list[dict]]:
    """Train the zoos and adapt with each: the rows, one a target, draw and arm, and the modules' cards."""
    jobs = modules(out.resolve() / "zoos", steps=steps, profile=profile)
    cards = engine.run(jobs, zoo_training.run, out / "modules", progress=True)
    own, rows = own_rates(cards), []
    for zoo in {job.folder: job for job in jobs}.values():
        names = [name for name, rate in zip(ARMS, (COMMON, own[zoo.rank]), strict=True) if rate == zoo.learning_rate]
        if names:
            settings = {"folder": zoo.folder, "test_items": test_items, "profile": profile}
            trials = adapting.plan(TARGETS, ("cma_40",), draws, **settings)
            adapted = engine.run(trials, adapting.run, out / Path(zoo.folder).name, progress=True)
            rows += [
                row | {"method": arm(zoo.rank, name), "rate": zoo.learning_rate} for name in names for row in adapted
            ]
    return rows, cards


def write(rows: Sequence[Mapping], cards: Sequence[Mapping], into: Path | None = None, profile: str = "cpu") -> Path:
    """Write the rows, the modules' scores and the verdict with their provenance to <results>/adapt_trained_ranks.json.

    The summary has `arms`: by rank and arm the `rate`, `strict` (a spread over draws, in points), and the difference
    from rank 8 `against`, as `adapting_tables.over_targets` gives it.
    """
    of_cards = ("task", "rank", "learning_rate", "steps", "loss_after", "strict_after")
    settings = {"profile": profile, "ranks": RANKS, "rates": RATES, "modules": MODULES, "margin": MARGIN}
    rates = {row["method"]: row["rate"] for row in rows}
    arms = [
        {
            "rank": rank,
            "arm": name,
            "rate": rates[arm(rank, name)],
            "strict": results.spread(list(tables.per_draw(rows, arm(rank, name)).values())),
            "against": tables.over_targets(rows, arm(rank, name), arm(USUAL, name)),
        }
        for name in ARMS
        for rank in RANKS
    ]
    summary = {
        "cards": [{key: card[key] for key in of_cards} for card in cards],
        "arms": arms,
        "verdict": verdict(arms),
    }
    return engine.write(rows, "adapt_trained_ranks", settings, summary, into)


def verdict(arms: Sequence[Mapping]) -> str:
    """The verdict on "the rank matters little", by the rule at the top of this file."""
    others = [entry["against"] for entry in arms if entry["rank"] != USUAL]
    outside = any(each["low"] > MARGIN or each["high"] < -MARGIN for each in others)
    within = all(each["low"] >= -MARGIN and each["high"] <= MARGIN for each in others)
    enough = all(entry["strict"]["mean"] >= LEAST for entry in arms if entry["rank"] == USUAL)
    return findings.verdict(within and enough, outside)
