"""BIG-Bench Hard by the paper's design: 27 tasks, 5 draws, 20 random published modules a draw, every method.

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 4; claims H3, H6, H7, H8, H10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path

from lorahub_edu.data import bbh
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.files.sources import hub_address, why_unreachable
from lorahub_edu.hub import zoo
from lorahub_edu.hub.candidates import random_candidates
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import get_profile
from lorahub_studies.hub import sweep
from lorahub_studies.hub.cells import METHODS, Cell

BASE = "flan-t5-large"
DRAWS = 5
CANDIDATES = 20
TEST_ITEMS = 250  # the largest of the 27 tasks has no more rows
# What trains at the rate of this course's own zoo says nothing about the published modules.
STUDIED = tuple(name for name in METHODS if name != "lora_fast")


def plan(
    tasks: Sequence[str] = (),
    draws: int = DRAWS,
    *,
    modules: Sequence[str] = (),
    folder: str | Path = zoo.SHIPPED,
    base_model: str = BASE,
    methods: Sequence[str] = (),
    test_items: int = TEST_ITEMS,
    profile: str | None = None,
) -> list[Cell]:
    """The cells of a study, draw after draw, so that the modules of a draw are loaded once for all its tasks.

    Args:
        tasks: names of BIG-Bench Hard's tasks, with or without "bbh/"; none is all 27.
        draws: how many; a draw's number is the seed of its five examples, of its modules and of its searches.
        modules: what `zoo.load` takes, the same for every draw; none draws 20 of the published ones for each.
        folder: the zoo that module names are looked up in.
        base_model: a key of `models.BASE_MODELS`.
        methods: keys of `cells.METHODS`; none is `STUDIED`.
        test_items: at most so many of each task's rows that are no example.
        profile: where and in which dtype the base runs.

    Returns:
        One cell a draw and task.

    Raises:
        CourseError: unknown task, method, base or profile, fewer than one draw or test item, or no modules given for
            another base than that of the published ones.

    Source: Huang et al. 2023, section 4.1.
    """
    named = [name.removeprefix("bbh/") for name in tasks] or bbh.names()
    for what, name, known in (
        *(("task of BIG-Bench Hard", name, bbh.names()) for name in named),
        *(("method", name, METHODS) for name in methods),
    ):
        if name not in known:
            raise CourseError(f"There is no {what} {name!r}. {near_matches(name, known)}")
    if draws < 1 or test_items < 1:
        raise CourseError(f"{draws} draws and {test_items} test items: both must be at least 1.")
    base = pretrained.get_base(base_model).name
    if not modules and base != BASE:
        raise CourseError(
            f"The published modules are for {BASE}, not for {base}: give --modules that were made for it."
        )
    shared = {"folder": str(folder), "profile": get_profile(profile).name, "test_items": test_items}
    return [
        Cell(f"bbh/{task}", draw, tuple(methods) or STUDIED, chosen, base_model=base, **shared)
        for draw in range(draws)
        for chosen in [tuple(modules) or drawn_modules(draw)]
        for task in named
    ]


def drawn_modules(draw: int, count: int = CANDIDATES) -> tuple[str, ...]:
    """The published modules of a draw: `count` of about 200, by the draw's number. Source: section 4.1; claim H3."""
    return tuple(random_candidates(zoo.published_modules(), count, seed=draw))


def settings(cells: Sequence[Cell]) -> dict:
    """What a plan says, for the record beside its results."""
    first = cells[0]
    return {
        "base_model": first.base_model,
        "profile": first.profile,
        "test_items": first.test_items,
        "tasks": list(dict.fromkeys(cell.target for cell in cells)),
        "methods": list(first.methods),
        "modules": {str(cell.draw): list(cell.modules) for cell in cells},
    }


def gather(cells: Sequence[Cell], report: Callable[[str], None] = lambda line: None) -> None:
    """Bring every task and module that the cells need onto this machine, before hours are spent on measuring.

    Args:
        cells: what is still to be measured.
        report: called with a line about each module that was fetched.

    Raises:
        CourseError: a task or a module can't be had; says from where and what to do.
    """
    for target in dict.fromkeys(cell.target for cell in cells):
        bbh.load(target.removeprefix("bbh/"))
    wanted = dict.fromkeys((name, cell.folder) for cell in cells for name in cell.modules)
    absent = {name for name, folder in wanted if zoo.is_on_hub(name, folder) and not zoo.is_fetched(name)}
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


def study(
    cells: Sequence[Cell],
    out: str | Path,
    *,
    executor: Executor | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[dict]:
    """Measure what of a plan is not measured yet; a run that was killed goes on.

    Args:
        cells: from `plan`.
        out: one file a task and draw.
        executor: measures cells in other processes; one GPU has room for one.
        report: called with each line for the terminal.

    Returns:
        All rows of the cells, old and new, as `cells.run_cell` gives them.

    Raises:
        CourseError: something can't be had, or modules don't fit the base.
    """
    missing = sweep.missing(cells, out)
    if len(missing) < len(cells):
        report(f"{len(cells) - len(missing)} of {len(cells)} cells are measured already in {out}")
    for name in dict.fromkeys(cell.profile for cell in missing):
        pretrained.check_device(get_profile(name))  # before gigabytes are fetched
    gather(missing, report)
    done = 0

    def measured(rows: list[dict]) -> None:
        nonlocal done
        done += 1
        report(f"cell {done} of {len(missing)}")
        for line in sweep.lines(rows):
            report(line)

    return sweep.run(cells, out, executor=executor, report=measured)
