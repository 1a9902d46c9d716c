"""The comparison of methods: the rate chosen by one search for all, then seeds; resumable, spread over an executor."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path

from lorahub_edu import results
from lorahub_edu.data.tasks import get as get_task
from lorahub_edu.errors import CourseError
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.results import Table
from lorahub_studies.methods.runs import VARIANTS, Run, cost, get_variant, run_one

MEASURES = ("strict", "answer_only", "loss", "answer_loss", "cpu_seconds")
# Steps of 8 rows a task. Chosen before any rival was looked at, with a seed that no run here has: the base answers
# none of their items, and after so many steps LoRA at its middle rate between a tenth and nine tenths of them.
TASKS = {"num2words": 8, "upper": 10}
SEEDS = (0, 1, 2)  # the rate is chosen at the first
RESULT = "methods"


@dataclass(frozen=True)
class Grid:
    """What a sweep measures: lines of the comparison, tasks with their steps, seeds."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    tasks: tuple[tuple[str, int], ...] = tuple(TASKS.items())
    seeds: tuple[int, ...] = SEEDS
    profile: str = "cpu"
    batch_size: int = 8
    test_items: int = 60
    costs: bool = True

    def __post_init__(self) -> None:
        for name in self.variants:
            get_variant(name)
        if not self.seeds or not self.tasks or min(self.batch_size, self.test_items, *dict(self.tasks).values()) < 1:
            raise CourseError("A sweep needs a seed, a task, and at least 1 step, row a batch and test item.")

    def run(self, variant: str, task: str, rate: float, seed: int) -> Run:
        """One run of the grid."""
        steps = dict(self.tasks)[task]
        return Run(variant, task, rate, seed, steps, self.profile, self.batch_size, self.test_items)

    def searches(self) -> list[Run]:
        """The runs that rates are chosen by: every rate of every line, at the first seed."""
        return [
            self.run(variant, task, rate, self.seeds[0])
            for task, _ in self.tasks
            for variant in self.variants
            for rate in get_variant(variant).rates
        ]


def make_grid(
    variants: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: int = len(SEEDS),
    steps: int | None = None,
    test_items: int = 60,
    profile: str | None = None,
    costs: bool = True,
) -> Grid:
    """A grid as the command line names it; what is empty or None is the comparison's own.

    Raises:
        CourseError: an unknown line or task, a task whose steps are not known, or a size below 1.
    """
    for task in tasks:
        get_task(task)
        if steps is None and task not in TASKS:
            raise CourseError(f"How many steps on {task!r}? Give --steps; known are {', '.join(TASKS)}.")
    chosen = tuple((task, TASKS[task] if steps is None else steps) for task in tasks or TASKS)
    lines = tuple(variants) or tuple(VARIANTS)
    return Grid(lines, chosen, tuple(range(seeds)), get_profile(profile).name, test_items=test_items, costs=costs)


def plan(grid: Grid, folder: str | Path) -> str:
    """How many runs a grid has, and how many of their files are missing in a folder, in words."""
    repeats = len(grid.tasks) * len(grid.variants) * (len(grid.seeds) - 1)
    total = len(grid.searches()) + repeats + (len(grid.variants) if grid.costs else 0)
    there = len(list(Path(folder).glob("*.json")))
    return f"{total} runs and measurements of cost, {max(0, total - there)} still to be done."


def line(row: dict) -> str:
    """A row for a terminal."""
    where = f"{row['task']}, rate {row['rate']:g}, seed {row['seed']}" if "task" in row else "cost"
    name = f"{get_variant(row['variant']).label}, {where}: "
    if "error" in row:
        return name + row["error"]
    if "task" not in row:
        return name + f"{row['step_cpu_seconds']:.2f} s/step, {row['peak_bytes'] / 1e9:.2f} GB"
    return name + (
        f"strict {row['strict']:.0%}, answer only {row['answer_only']:.0%}, loss {row['loss']:.2f}, "
        f"{row['cpu_seconds']:.0f} s of the processor"
    )


def sweep(
    grid: Grid,
    folder: str | Path,
    *,
    executor: Executor | None = None,
    report: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Measure whatever of a grid a folder does not hold yet.

    Args:
        grid: what to measure.
        folder: one JSON file a run; a sweep that was killed goes on, and lines can be added later.
        executor: makes runs in other processes or on other machines; None in this one. Costs are always measured in
            a fresh process each, one after the other.
        report: called with each new row.

    Returns:
        The rows of all runs: of each line and task the searches, and the chosen rate at every seed.

    Raises:
        CourseError: the folder can't be made, or a file in it is damaged or was measured with other settings.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(
            f"Can't make the folder {folder}: {error.strerror}. Choose another one with --out."
        ) from error
    searched = _measure(grid.searches(), folder, executor, report)
    chosen = chosen_rates(searched)
    repeats = [
        grid.run(variant, task, rate, seed) for (task, variant), rate in chosen.items() for seed in grid.seeds[1:]
    ]
    rows = searched + _measure(repeats, folder, executor, report)
    return rows + ([_cost(grid, name, folder, report) for name in grid.variants] if grid.costs else [])


def chosen_rates(rows: Sequence[dict]) -> dict[tuple[str, str], float]:
    """Per (task, line) the rate with the lowest validation loss at the first seed; lines that do not run have none."""
    best: dict[tuple[str, str], dict] = {}
    first = min((row["seed"] for row in rows if "seed" in row), default=0)
    for row in rows:
        loss = row.get("validation_loss")
        if loss is None or loss != loss or row["seed"] != first:
            continue
        key = (row["task"], row["variant"])
        if key not in best or loss < best[key]["validation_loss"]:
            best[key] = row
    return {key: row["rate"] for key, row in best.items()}


def _measure(
    runs: Sequence[Run], folder: Path, executor: Executor | None, report: Callable[[dict], None]
) -> list[dict]:
    """Rows of all runs, in their order: those on disk, and the others as they get finished."""
    stored = {run: _stored(_file(run, folder), asdict(run)) for run in runs}
    missing = [run for run, row in stored.items() if row is None]

    def keep(run: Run, row: dict) -> None:
        stored[run] = row
        results.write_json(_file(run, folder), {"settings": asdict(run), "row": row})
        report(row)

    if executor is None:
        for run in missing:
            keep(run, run_one(run))
    else:
        running = {executor.submit(run_one, run): run for run in missing}
        for future in as_completed(running):
            keep(running[future], future.result())
    return [stored[run] for run in runs]


def _file(run: Run, folder: Path) -> Path:
    return folder / f"{run.task}.{run.variant}.{run.rate:g}.{run.seed}.json"


def _stored(path: Path, settings: dict) -> dict | None:
    """The row of a file, None where there is none."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        theirs, row = content["settings"], content["row"]
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f"{path} is not a measured run ({error!r}): delete it and start the sweep again.") from error
    different = [key for key, value in settings.items() if theirs.get(key) != value]
    if different:
        raise CourseError(f"{path} was measured with another {' and '.join(different)}: choose another folder.")
    return row


def _cost(grid: Grid, name: str, folder: Path, report: Callable[[dict], None]) -> dict:
    """What a line costs, in a process of its own that nothing else has used memory in."""
    path = folder / f"cost.{name}.json"
    settings = {"variant": name, "profile": grid.profile, "batch_size": grid.batch_size}
    row = _stored(path, settings)
    if row is None:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            row = fresh.submit(cost, name, grid.profile, batch_size=grid.batch_size).result()
        results.write_json(path, {"settings": settings, "row": row})
        report(row)
    return row


def summarise(rows: Sequence[dict]) -> list[dict]:
    """One entry a line of the comparison: what it trains and costs, and per task its rate and scores.

    Args:
        rows: of `sweep`.

    Returns:
        Entries with `variant`, `label`, the fields of `runs.cost`, `error` where it does not run, and `tasks`: per
        task `rate`, `seeds`, `edge` (whether the rate is the lowest or highest that was tried), and for each measure
        `mean`, `low` and `high` over the seeds.
    """
    rates = chosen_rates(rows)
    running = {name for _, name in rates}
    entries: dict[str, dict] = {}
    for row in rows:
        name = row["variant"]
        entry = entries.setdefault(name, {"variant": name, "label": get_variant(name).label, "tasks": {}})
        entry |= {"trainable": row["trainable"]} if "trainable" in row else {}
        if "task" not in row:
            entry |= row
        elif "error" in row and (name not in running or rates.get((row["task"], name)) == row["rate"]):
            entry["error"] = row["error"]  # not where another rate runs: then this one was too high
    for (task, name), rate in rates.items():
        mine = [row for row in rows if row.get("task") == task and row["variant"] == name and row["rate"] == rate]
        done = [row for row in mine if "error" not in row]
        tried = get_variant(name).rates
        entries[name]["tasks"][task] = {"rate": rate, "seeds": len(done), "edge": rate in (min(tried), max(tried))} | {
            measure: _spread([row[measure] for row in done]) for measure in MEASURES
        }
    return list(entries.values())


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "low": min(values), "high": max(values)}


def write(rows: Sequence[dict], grid: Grid, into: Path | None = None, name: str = RESULT) -> Path:
    """Write a sweep's rows and summary with their provenance to <results>/<name>.json."""
    content = {
        "settings": asdict(grid) | {"tasks": dict(grid.tasks), "base_model": get_profile(grid.profile).base_model},
        "device": results.describe_device(),
        "versions": results.library_versions(),
        "date": date.today().isoformat(),
        "summary": summarise(rows),
        "rows": [{key: value for key, value in row.items() if key != "training_losses"} for row in rows],
    }
    return results.write_json((into or results.folder()) / f"{name}.json", content)


def read(source: Path | None = None, name: str = RESULT) -> dict:
    """A sweep that `write` wrote: settings, device, versions, date, summary, rows.

    Raises:
        CourseError: there is none.
    """
    return results.read_study(name, "lorahub-edu methods sweep", source)


def table(summary: Sequence[dict], measure: str = "strict", caption: str = "") -> Table:
    """Lines down; what each trains, costs and scores across.

    Args:
        summary: of `summarise`.
        measure: "strict", "answer_only" (both in percent) or a loss, for the tasks' columns.
        caption: of the table.

    Returns:
        A table for a page; a method that does not run keeps its line, and its error stands in the last column.
    """
    tasks = list(dict.fromkeys(task for entry in summary for task in entry["tasks"]))
    header = ["method", "trains", "MB on disk", "GB at the peak", "s/step", "tokens/s", *tasks]
    lines = [_line(entry, tasks, measure) for entry in summary]
    if any("error" in entry for entry in summary):
        header.append("does not run")
        lines = [(*line, entry.get("error", "")) for line, entry in zip(lines, summary, strict=True)]
    return Table(tuple(header), tuple(lines), caption)


def _line(entry: dict, tasks: Sequence[str], measure: str) -> tuple[str, ...]:
    def shown(key: str, form: str, factor: float = 1.0) -> str:
        return format(entry[key] * factor, form) if key in entry else "–"

    costs = (
        shown("trainable", ",.0f"),
        shown("disk_bytes", ",.2f", 1e-6),
        shown("peak_bytes", ".2f", 1e-9),
        shown("step_cpu_seconds", ".2f"),
        shown("tokens_per_cpu_second", ".1f"),
    )
    return (entry["label"], *costs, *(_score(entry["tasks"].get(task), measure) for task in tasks))


def _score(found: dict | None, measure: str) -> str:
    if found is None:
        return "–"
    factor, digits = (100, 0) if measure in ("strict", "answer_only") else (1, 2)
    mean, low, high = (f"{found[measure][key] * factor:.{digits}f}" for key in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low}–{high})"
