"""The comparison's grid: the rate of each method chosen by one search for all, then the other seeds, then the costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from lorahub_edu.errors import CourseError
from lorahub_edu.models.profiles import get_profile
from lorahub_studies import comparison, engine
from lorahub_studies.comparison import Cost, MethodRun
from lorahub_studies.comparison_tables import chosen_rates, summarise
from lorahub_studies.variants import VARIANTS, get_variant

# Steps of 8 rows a task. Chosen before any rival was looked at, with a seed that no run here has: the base answers
# none of their items, and after so many steps LoRA at its middle rate between a tenth and nine tenths of them.
TASKS = {"num2words": 8, "upper": 10}


@dataclass(frozen=True)
class Grid:
    """What a sweep measures: lines of the comparison, tasks with their steps, seeds; rates are chosen at the first."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    tasks: tuple[tuple[str, int], ...] = tuple(TASKS.items())
    seeds: tuple[int, ...] = (0, 1, 2)
    profile: str = "cpu"
    batch_size: int = 8
    test_items: int = 60
    costs: bool = True

    def job(self, variant: str, task: str, rate: float, seed: int) -> MethodRun:
        """One run of the grid."""
        steps = dict(self.tasks)[task]
        return MethodRun(variant, task, rate, seed, steps, self.profile, self.batch_size, self.test_items)

    def searches(self) -> list[MethodRun]:
        """The runs that rates are chosen by: every rate of every line, at the first seed."""
        return [
            self.job(variant, task, rate, self.seeds[0])
            for task, _ in self.tasks
            for variant in self.variants
            for rate in get_variant(variant).rates
        ]

    def repeats(self, rows: Sequence[Mapping]) -> list[MethodRun]:
        """The runs at the chosen rates with the other seeds, given the rows of the searches."""
        return [
            self.job(variant, task, rate, seed)
            for (task, variant), rate in chosen_rates(rows).items()
            for seed in self.seeds[1:]
        ]

    def measurements(self) -> list[Cost]:
        """The measurements of cost."""
        return [Cost(name, self.profile, self.batch_size) for name in self.variants if self.costs]


def plan(
    variants: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: int = 3,
    steps: int | None = None,
    test_items: int = 60,
    profile: str | None = None,
    costs: bool = True,
) -> Grid:
    """A grid as the command line names it; what is empty or None is the comparison's own.

    Raises CourseError: a task whose steps are not known.
    """
    unknown = [task for task in tasks if steps is None and task not in TASKS]
    if unknown:
        raise CourseError(f"How many steps on {', '.join(unknown)}? Give --steps; known are {', '.join(TASKS)}.")
    chosen = tuple((task, steps or TASKS[task]) for task in tasks or TASKS)
    lines = tuple(variants) or tuple(VARIANTS)
    return Grid(lines, chosen, tuple(range(seeds)), get_profile(profile).name, test_items=test_items, costs=costs)


def progress(grid: Grid, folder: str | Path) -> str:
    """How many runs a grid has, and how many of their rows are missing in a folder, in words."""
    repeats = len(grid.tasks) * len(grid.variants) * (len(grid.seeds) - 1)
    total = len(grid.searches()) + repeats + len(grid.measurements())
    return f"{total} runs and measurements of cost, {max(0, total - engine.count(folder))} still to be done."


def run(
    grid: Grid, folder: str | Path, *, report: Callable[[dict], None] = lambda row: None, **options: Any
) -> list[dict]:
    """Measure whatever of a grid a folder does not hold yet; the arguments are those of `engine.run`.

    Costs are always measured one after the other, each in a fresh process. Returned are the rows of all runs (of each
    line and task the searches, and the chosen rate at every seed), then the costs.
    """

    def measured(jobs: Sequence[object], work: Callable, **more: Any) -> list[dict]:
        return engine.run(jobs, work, folder, report=lambda job, row: report(row), **options | more)

    searched = measured(grid.searches(), comparison.run)
    repeated = measured(grid.repeats(searched), comparison.run)
    return searched + repeated + measured(grid.measurements(), _cost_alone, executor=None)


def _cost_alone(job: Cost) -> dict:
    """What a line costs, in a process of its own that nothing else has used memory in."""
    threads = torch.get_num_threads()  # a cluster's options for its workers are in this process's environment too
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (threads,)) as fresh:
        return fresh.submit(comparison.cost, job).result()


def write(rows: Sequence[Mapping], grid: Grid, into: Path | None = None) -> Path:
    """Write a sweep's rows and summary with their provenance to <results>/methods.json."""
    settings = asdict(grid) | {"tasks": dict(grid.tasks), "base_model": get_profile(grid.profile).base_model}
    kept = [{key: value for key, value in row.items() if key != "training_losses"} for row in rows]
    return engine.write(kept, "methods", settings, summarise(rows), into)
