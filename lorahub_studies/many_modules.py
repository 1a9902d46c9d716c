"""Do too many modules at once make LoRAHub's search unstable? One search with 5, 10, 20 and 40 modules. Claim H19.

The forty are the shipped twenty and as many that this study trains: the module tasks that the shipped zoo leaves out,
and again its first tasks, on rows in another order. Each target has an order of the forty, drawn by its name, and takes
the first ones of it. So draws of a target differ in the five examples and the search, not in the modules.

What this study decides was written here before its first run. A target's instability is the standard deviation over
the draws of the test items' loss after "cma_40", the paper's search. H19 is shown if the 95 % interval over targets of
the instability with `MANY` modules minus that with `FEW` lies above zero, refuted here if below.

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 6.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorahub_edu.data import tasks
from lorahub_edu.hub import zoo
from lorahub_studies import adapting, engine, zoo_training
from lorahub_studies import adapting_tables as tables
from lorahub_studies.zoo_training import ModuleJob

COUNTS, FEW, MANY = (5, 10, 20, 40), 5, 40
SHIPPED = zoo.SHIPPED
TARGETS = (
    "bool_not", "count_words", "film_sentiment", "gerund_upper", "last_word_upper", "less", "reverse_upper",
    "second_word", "words_add",
)  # fmt: skip
STEPS = 15  # of a module that is trained here: half of those of the shipped ones
METHOD = "cma_40"


def modules(folder: Path, **settings: Any) -> list[ModuleJob]:
    """The modules to train, as many as the shipped zoo has; `settings` are further fields of `ModuleJob`."""
    shipped = zoo.names(SHIPPED)
    new = [name for name in tasks.names("module") if name not in shipped]
    return [ModuleJob(name, str(folder), data_seed=1, **settings) for name in [*new, *shipped][: len(shipped)]]


def run(out: Path, draws: int = 4, test_items: int = 40, profile: str = "cpu", steps: int = STEPS) -> list[dict]:
    """Train the modules and adapt with each number of them: the rows, one a target, draw and number."""
    jobs = modules(out.resolve() / "zoo", steps=steps, profile=profile)
    engine.run(jobs, zoo_training.run, out / "modules", progress=True)
    forty = [str(folder) for folder in zoo.find(None, SHIPPED) + zoo.find(None, jobs[0].folder)]
    rows = []
    for target in TARGETS:
        ordered = random.Random(f"many modules/{target}").sample(forty, len(forty))
        for count in COUNTS:
            more = {"modules": tuple(ordered[:count]), "test_items": test_items, "profile": profile}
            trials = adapting.plan([target], [METHOD], draws, **more)
            rows += engine.run(trials, adapting.run, out / str(count))
    return rows


def summary(rows: Sequence[Mapping]) -> dict:
    """`instability` by number of modules and target, in nats a token, and the `interval` that the rule asks for."""
    losses = tables.spread_by_modules(rows, METHOD, "loss")
    instability = {n: {target: statistics.stdev(each) for target, each in of.items()} for n, of in losses.items()}
    entries = [
        {"target": target, "draw": 0, "method": str(count), "loss": value}
        for count, of_targets in instability.items()
        for target, value in of_targets.items()
    ]
    return {"instability": instability, "interval": tables.over_targets(entries, str(MANY), str(FEW), "loss")}
