"""The studies on the command line: comparisons of methods, BIG-Bench Hard, forgetting, the zoo's training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from lorahub_edu.cli.hub import BaseOption, ZooOption, adapt_app, zoo_app
from lorahub_edu.cli.spectra import intruders_app
from lorahub_edu.cli.terminal import (
    COUNT,
    ProfileOption,
    console,
    each,
    errors,
    known_base,
    known_bbh_tasks,
    known_tasks,
    listed,
    quiet_work,
    writable_file,
    writable_folder,
)
from lorahub_edu.cli.training import methods_app
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.files.save import one_writer
from lorahub_edu.hub import zoo
from lorahub_studies.approaches import get_approach
from lorahub_studies.cluster import ClusterOption, DryRunOption, workers
from lorahub_studies.variants import get_variant

# Rooms that load torch are imported inside the commands, once what was typed is checked.

STUDIES = (  # a test compares `forgetting_sweep`
    "settling", "ranks", "predict", "intervene", "rates", "regret", "full_rank_rates", "full_rank",
    "sequence_rates", "sequences",
)  # fmt: skip
OUT_HELP = "Its file has a row for each run. You can stop at any time; the same command continues."
OutOption = Annotated[Path, typer.Option("--out", callback=writable_folder, help=OUT_HELP)]
TasksOption = Annotated[
    str, typer.Option("--tasks", callback=known_tasks, help="Names, separated by commas; default all of its own.")
]
ApproachesOption = Annotated[
    str, typer.Option("--methods", callback=each(get_approach), help="Names, separated by commas; default all.")
]
ModulesOption = Annotated[str, typer.Option("--modules", help="As for adapt.")]
PlanOption = Annotated[bool, typer.Option("--plan", help="Only say how many runs there are and how many are missing.")]
SaveOption = Annotated[bool, typer.Option("--save", help="For maintainers: write the summary to results/.")]


def _target(save: bool) -> Path:
    """The folder of a summary: the committed results for maintainers, else the caller's own. It can be written."""
    from lorahub_edu import results

    return writable_folder(results.committed_folder() if save else results.folder())


@contextmanager
def _running(
    out: Path, shown: str, cluster: str, dry_run: bool, bases: Sequence[str], folders: Sequence[Path] = ()
) -> Iterator[dict]:
    """Hold the folder, and give the options of `engine.run`; at the end, jobs that failed are an error."""
    from lorahub_studies import engine

    failed: list[str] = []
    with (
        one_writer(out),
        quiet_work(shown),
        workers(cluster, bases=bases, folders=folders, dry_run=dry_run) as executor,
    ):
        yield {
            "executor": executor,
            "progress": errors.is_terminal,
            "failed": lambda job, reason: failed.append(f"{job}: {reason}"),
        }
    if failed:
        raise CourseError(
            f"{len(failed)} jobs failed and are left out, such as {failed[0]}. All reasons are in {out / engine.STORE}."
            f" The same command tries them again."
        )


def intruders_sweep(
    study: Annotated[str, typer.Option(help=", ".join(STUDIES))] = "",
    out: OutOption = Path("runs/intruders"),
    cluster: ClusterOption = "",
    dry_run: DryRunOption = False,
    plan: PlanOption = False,
    save: SaveOption = False,
) -> None:
    """Train many tails and measure what they forget. You can stop at any time; the same command continues."""
    if not study:
        raise CourseError(f"Which study? Give --study with one of {', '.join(STUDIES)}.")
    if study not in STUDIES:
        raise CourseError(f"There is no study {study!r}. {near_matches(study, STUDIES)}")
    target = _target(save)
    from lorahub_edu.models.profiles import get_profile
    from lorahub_studies import engine, forgetting_sweep

    if plan:
        jobs = forgetting_sweep.plan(study, out)
        missing = len(engine.missing(jobs, out))
        console.print(f"{study}: {forgetting_sweep.STUDIES[study].title}; {len(jobs)} runs, {missing} still to be done")
        return
    bases = [get_profile(forgetting_sweep.profile(study)).base_model]
    with _running(out, "a line for each run", cluster, dry_run, bases) as options:
        rows = forgetting_sweep.run(
            study, out, report=lambda job, row: console.print(forgetting_sweep.line(row), markup=False), **options
        )
        console.print(f"written to {forgetting_sweep.write(study, rows, target)}")


def zoo_train(
    tasks: TasksOption = "",
    folder: Annotated[Path | None, typer.Option(help="Another folder of modules than the shipped zoo.")] = None,
    own_init: Annotated[bool, typer.Option(help="Draw each module's A from a seed of its own.")] = False,
    profile: ProfileOption = None,
    cluster: ClusterOption = "",
    dry_run: DryRunOption = False,
) -> None:
    """Train one module a task. Finished modules are kept; the same command continues."""
    from lorahub_edu.models.profiles import get_profile

    target = writable_folder(folder or zoo.own_zoo() / ("own-init" if own_init else "shared-init"))
    from lorahub_studies import zoo_training

    bases = [get_profile(profile).base_model]
    with _running(target, "a line for each module", cluster, dry_run, bases, [target]) as options:
        zoo_training.train_zoo(
            list(listed(tasks)) or None,
            target,
            own_init=own_init,
            profile=get_profile(profile).name,
            executor=options["executor"],
            report=lambda card: console.print(
                f"{card.task:14s} strict exact match {card.strict_before:.0%} → {card.strict_after:.0%}, "
                f"loss {card.loss_before:.2f} → {card.loss_after:.2f}, {card.seconds:.0f} s"
            ),
        )
    console.print(f"modules in {target}")


def adapt_sweep(
    targets: Annotated[
        str, typer.Option(callback=known_tasks, help="Names, separated by commas; default all of the verdicts.")
    ] = "",
    methods: ApproachesOption = "",
    draws: Annotated[int, typer.Option(min=1, max=1000, help="Draws of five examples.")] = 3,
    modules: ModulesOption = "",
    folder: ZooOption = zoo.SHIPPED,
    test_items: Annotated[int, typer.Option(**COUNT, help="Test items of each target.")] = 120,
    profile: ProfileOption = None,
    base: BaseOption = "",
    out: OutOption = Path("runs/sweep"),
    name: Annotated[str, typer.Option(help="Name of the summary in the results folder.")] = "adapt_sweep",
    left_out: Annotated[bool, typer.Option("--left-out", help="Modules' own tasks, each without its module.")] = False,
    cluster: ClusterOption = "",
    dry_run: DryRunOption = False,
    save: SaveOption = False,
) -> None:
    """Compare every method on targets and draws. You can stop at any time; the same command continues."""
    from lorahub_edu.models.profiles import get_profile

    if Path(name).name != name or not name:
        raise CourseError(f"{name!r} is no name of a file. Give letters, digits and underscores.")
    zoo.find(listed(modules) or None, folder)
    target = _target(save)
    writable_file(target / f"{name}.json")
    from lorahub_studies import adapting, engine
    from lorahub_studies import adapting_tables as tables

    settings = {"profile": get_profile(profile).name, "test_items": test_items}
    where = {"modules": listed(modules), "folder": str(folder.resolve()), "base_model": base}
    if left_out:
        trials = adapting.left_out(draws, test_items, settings["profile"], where["folder"])
    else:
        trials = adapting.plan(listed(targets), listed(methods), draws, **settings, **where)
    bases, told = [base or get_profile(profile).base_model], f"{len(trials)} trials, a line for each"
    with _running(out, told, cluster, dry_run, bases, [Path(where["folder"])]) as options:
        rows = engine.run(
            trials, adapting.run, out, report=lambda trial, row: console.print(tables.line(row)), **options
        )
        path = tables.write(rows, name, {"draws": draws} | settings, target)
        console.print(str(tables.table(tables.summarise(rows))))
        console.print(f"written to {path}")


def bbh(
    tasks: Annotated[
        str, typer.Option(callback=known_bbh_tasks, help="Names, separated by commas; default all 27.")
    ] = "",
    draws: Annotated[int, typer.Option(min=1, max=1000, help="Draws of five examples and 20 modules.")] = 5,
    modules: Annotated[str, typer.Option(help="As for adapt; default 20 random published ones a draw.")] = "",
    folder: ZooOption = zoo.SHIPPED,
    base: Annotated[str, typer.Option(callback=known_base, help="The base model.")] = "flan-t5-large",
    methods: ApproachesOption = "",
    test_items: Annotated[int, typer.Option(**COUNT, help="Test items of each task, at most.")] = 250,
    profile: ProfileOption = None,
    out: OutOption = Path("runs/bbh"),
    cluster: ClusterOption = "",
    dry_run: DryRunOption = False,
    save: SaveOption = False,
) -> None:
    """BIG-Bench Hard with FLAN-T5 and the published modules. The same command continues a stopped run."""
    if modules:
        zoo.find(listed(modules), folder)
    target = _target(save)
    from lorahub_studies import adapting_tables as tables
    from lorahub_studies import big_bench

    trials = big_bench.plan(
        listed(tasks),
        draws,
        modules=listed(modules),
        folder=folder,
        base_model=base,
        methods=listed(methods),
        test_items=test_items,
        profile=profile,
    )
    with _running(out, f"{len(trials)} trials, a line for each", cluster, dry_run, [base]) as options:
        rows = big_bench.run(trials, out, report=lambda line: console.print(line, markup=False), **options)
        path = tables.write(rows, "bbh", big_bench.settings(trials), target)
        summary = tables.summarise(rows)
        for measure in ("strict", "answer_only"):
            caption = f"{measure.replace('_', ' ')} exact match in %, mean of the tasks (range of the draws)"
            console.print(str(tables.table(summary, measure, ["mean"], caption)))
        console.print(f"written to {path}")


def methods_sweep(
    methods: Annotated[
        str, typer.Option(callback=each(get_variant), help="Names, separated by commas; default all.")
    ] = "",
    tasks: TasksOption = "",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs at the chosen rate.")] = 3,
    steps: Annotated[int | None, typer.Option(**COUNT, help="Steps of every run; default the task's.")] = None,
    test_items: Annotated[int, typer.Option(**COUNT, help="Held-out items of each task.")] = 60,
    profile: ProfileOption = None,
    out: OutOption = Path("runs/methods"),
    cluster: ClusterOption = "",
    dry_run: DryRunOption = False,
    costs: Annotated[bool, typer.Option(help="Measure memory, time and disk too.")] = True,
    plan: PlanOption = False,
    save: SaveOption = False,
) -> None:
    """Compare methods on two tasks: one search of the rate for all, then seeds. The same command continues."""
    target = _target(save)
    from lorahub_edu.models.profiles import get_profile
    from lorahub_studies import comparison
    from lorahub_studies import comparison_tables as tables

    grid = comparison.plan(listed(methods), listed(tasks), seeds, steps, test_items, profile, costs)
    if plan:
        console.print(comparison.progress(grid, out))
        return
    bases = [get_profile(grid.profile).base_model]
    with _running(out, "a line for each run", cluster, dry_run, bases) as options:
        rows = comparison.sweep(grid, out, report=lambda row: console.print(tables.line(row), markup=False), **options)
        path = comparison.write(rows, grid, target)
        console.print(str(tables.table(tables.summarise(rows))))
        console.print(f"written to {path}")


def register(app: typer.Typer) -> None:
    """Add the studies' commands to the course's command line."""
    zoo_app.command("train")(zoo_train)
    adapt_app.command("sweep")(adapt_sweep)
    methods_app.command("sweep")(methods_sweep)
    intruders_app.command("sweep")(intruders_sweep)
    app.command("bbh", rich_help_panel="Compose")(bbh)
