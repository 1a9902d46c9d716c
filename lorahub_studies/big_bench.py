"""BIG-Bench Hard by the paper's design: 27 tasks, 5 draws, 20 random published modules a draw, every method.

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 4; claims H3, H6, H7, H8, H10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorahub_edu.data import bbh
from lorahub_edu.errors import CourseError
from lorahub_edu.files.sources import hub_address, why_unreachable
from lorahub_edu.hub import zoo
from lorahub_edu.hub.candidates import random_candidates
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import get_profile
from lorahub_studies import adapting, adapting_tables, engine
from lorahub_studies.adapting import METHODS, Trial

BASE = "flan-t5-large"
CANDIDATES = 20
TEST_ITEMS = 250  # the largest of the 27 tasks has no more rows
# What trains at the rate of this course's own zoo says nothing about the published modules.
STUDIED = tuple(name for name in METHODS if name != "lora_fast")


def plan(
    tasks: Sequence[str] = (),
    draws: int = 5,
    *,
    modules: Sequence[str] = (),
    folder: str | Path = zoo.SHIPPED,
    base_model: str = BASE,
    methods: Sequence[str] = (),
    test_items: int = TEST_ITEMS,
    profile: str | None = None,
) -> list[Trial]:
    """The trials of a study, draw after draw, so that the modules of a draw are loaded once for all its tasks.

    By default these are all 27 tasks, 20 of the published modules drawn for each draw, and the methods `STUDIED`. A
    draw's number is the seed of its five examples, of its modules and of its searches. `modules` are what `zoo.load`
    takes, the same for every draw.
    Raises CourseError: unknown base or profile, or no modules given for another base than that of the published ones.
    Source: Huang et al. 2023, section 4.1.
    """
    named = [name.removeprefix("bbh/") for name in tasks] or bbh.names()
    base = pretrained.get_base(base_model).name
    if not modules and base != BASE:
        raise CourseError(
            f"The published modules are for {BASE}, not for {base}: give --modules that were made for it."
        )
    trials = adapting.plan(
        [f"bbh/{task}" for task in named],
        methods or STUDIED,
        draws,
        folder=str(folder),
        profile=get_profile(profile).name,
        test_items=test_items,
        base_model=base,
    )
    chosen = {draw: tuple(modules) or drawn_modules(draw) for draw in range(draws)}
    return [replace(trial, modules=chosen[trial.draw]) for trial in trials]


def drawn_modules(draw: int) -> tuple[str, ...]:
    """The published modules of a draw: 20 of about 200, by the draw's number. Source: section 4.1; claim H3."""
    return tuple(random_candidates(zoo.published_modules(), CANDIDATES, seed=draw))


def settings(trials: Sequence[Trial]) -> dict:
    """What a plan says, for the record beside its results."""
    first = trials[0]
    return {
        "base_model": first.base_model,
        "profile": first.profile,
        "test_items": first.test_items,
        "tasks": list(dict.fromkeys(trial.target for trial in trials)),
        "methods": list(dict.fromkeys(trial.method for trial in trials)),
        "modules": {str(trial.draw): list(trial.modules) for trial in trials},
    }


def gather(trials: Sequence[Trial], report: Callable[[str], None] = lambda line: None) -> None:
    """Bring every task and module that the trials need onto this machine, before hours are spent on measuring.

    Raises CourseError: a task or a module can't be had; says from where and what to do.
    """
    for target in dict.fromkeys(trial.target for trial in trials):
        bbh.load(target.removeprefix("bbh/"))
    wanted = dict.fromkeys((name, trial.folder) for trial in trials for name in trial.modules)
    on_hub = [name for name, folder in wanted if zoo.is_on_hub(name, folder)]
    absent = {name for name in on_hub if not (zoo.hub_folder(name) / zoo.WEIGHTS_FILE).is_file()}
    if absent and (reason := why_unreachable(hub_address())):
        cached = zoo.own_zoo() / "hub"
        raise CourseError(
            f"{len(absent)} modules are on the hub only, such as {min(absent)}, and the hub can't be reached "
            f"({reason}). What to do, one of:\n"
            f"  - check the network and run the same command again\n"
            f"  - where the network allows, run it once and copy {cached} from there to here\n"
            f"  - give modules that are here with --modules, as folders in PEFT's layout"
        )
    for number, name in enumerate(sorted(absent), start=1):
        zoo.from_hub(name)
        report(f"fetched module {number} of {len(absent)}: {name}")
    for name, folder in wanted:
        zoo.load([name], folder)  # a module that is cut short is named now


def run(
    trials: Sequence[Trial], folder: str | Path, report: Callable[[str], None] = lambda line: None, **options: Any
) -> list[dict]:
    """The rows of all trials of a plan. A stopped run continues with the same call. Options: see `engine.run`."""
    missing = engine.missing(trials, folder)
    if len(missing) < len(trials):
        report(f"{len(trials) - len(missing)} of {len(trials)} trials are measured already in {folder}")
    for name in dict.fromkeys(trial.profile for trial in missing):
        pretrained.check_device(get_profile(name))  # before gigabytes are fetched
    gather(missing, report)
    numbers = {trial: number for number, trial in enumerate(missing, start=1)}

    def measured(trial: Trial, row: dict) -> None:
        report(f"trial {numbers[trial]} of {len(missing)}: {adapting_tables.line(row)}")

    return engine.run(trials, adapting.run, folder, report=measured, **options)
