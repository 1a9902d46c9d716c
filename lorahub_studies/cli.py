"""The studies on the command line: comparisons of methods, BIG-Bench Hard, forgetting, the zoo's training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorahub_edu.cli.hub import BaseOption, ZooOption, adapt_app, zoo_app
from lorahub_edu.cli.methods import methods_app
from lorahub_edu.cli.spectra import intruders_app
from lorahub_edu.cli.terminal import ProfileOption, console, listed, pool
from lorahub_edu.errors import CourseError


def intruders_sweep(
    study: Annotated[str, typer.Option(help="settling, ranks, matched, predict, intervene, continual.")] = "",
    out: Annotated[Path, typer.Option(help="One file a run; a killed sweep goes on.")] = Path("runs/intruders"),
    workers: Annotated[int, typer.Option(help="Processes; 1 works in this one.")] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Only say how many runs there are and what is missing.")] = False,
    save: Annotated[bool, typer.Option("--save", help="For maintainers: write the summary to results/.")] = False,
) -> None:
    """Train many tails and measure what they forget; started again it goes on where it stopped."""
    from lorahub_edu import results
    from lorahub_studies import engine as room
    from lorahub_studies.forgetting import studies

    if not study:
        raise CourseError(f"Which study? Give --study with one of {', '.join(studies.STUDIES)}.")
    if plan:
        jobs = studies.jobs(study, out)
        missing = sum(room.stored(job, out) is None for job in jobs)
        console.print(f"{study}: {studies.get(study).title}; {len(jobs)} runs, {missing} still to be done")
        return
    with pool(workers) as executor:
        rows = studies.run(
            study, out, executor=executor, report=lambda job, row: console.print(studies.line(row), markup=False)
        )
    path = studies.write(study, rows, results.committed_folder() if save else None)
    console.print(f"written to {path}")


def zoo_train(
    tasks: Annotated[str, typer.Option(help="Names, separated by commas; default every module task.")] = "",
    folder: ZooOption = None,
    own_init: Annotated[bool, typer.Option(help="Draw each module's A from a seed of its own.")] = False,
    profile: ProfileOption = None,
    workers: Annotated[int, typer.Option(help="Processes; 1 trains in this one.")] = 1,
) -> None:
    """Train one module a task; modules that are there already are kept, so a killed run goes on."""
    from lorahub_edu.hub import zoo
    from lorahub_edu.models.profiles import get_profile
    from lorahub_studies.hub import zoo_training

    target = folder or zoo.own_zoo() / ("own-init" if own_init else "shared-init")
    with pool(workers) as executor:
        zoo_training.train_zoo(
            list(listed(tasks)) or None,
            target,
            own_init=own_init,
            profile=get_profile(profile).name,
            executor=executor,
            report=lambda card: console.print(
                f"{card.task:14s} strict exact match {card.strict_before:.0%} → {card.strict_after:.0%}, "
                f"loss {card.loss_before:.2f} → {card.loss_after:.2f}, {card.seconds:.0f} s"
            ),
        )
    console.print(f"modules in {target}")


def adapt_sweep(
    targets: Annotated[str, typer.Option(help="Names by commas; default every verdict target.")] = "",
    methods: Annotated[str, typer.Option(help="Names by commas; default all.")] = "",
    draws: Annotated[int, typer.Option(help="Draws of five examples.")] = 3,
    modules: Annotated[str, typer.Option(help="As for adapt.")] = "",
    folder: ZooOption = None,
    test_items: Annotated[int, typer.Option(help="Test items of each target.")] = 120,
    profile: ProfileOption = None,
    base: BaseOption = "",
    out: Annotated[Path, typer.Option(help="One file a target and draw; a killed sweep goes on.")] = Path("runs/sweep"),
    name: Annotated[str, typer.Option(help="Of the summary in the results folder.")] = "adapt_sweep",
    workers: Annotated[int, typer.Option(help="Processes; 1 works in this one.")] = 1,
    save: Annotated[bool, typer.Option("--save", help="For maintainers: write the summary to results/.")] = False,
) -> None:
    """Compare every method on targets and draws, and sum it up; started again it goes on where it stopped."""
    from lorahub_edu import results
    from lorahub_edu.data import tasks as room
    from lorahub_edu.hub import zoo
    from lorahub_edu.models.profiles import get_profile
    from lorahub_studies.hub import cells, sweep

    if draws < 1 or test_items < 1:
        raise CourseError(f"{draws} draws and {test_items} test items: both must be at least 1.")
    grid = [
        cells.Cell(
            target, draw, listed(methods) or tuple(cells.METHODS), listed(modules), str(folder or zoo.SHIPPED),
            get_profile(profile).name, test_items=test_items, base_model=base,
        )
        for draw in range(draws)
        for target in listed(targets) or room.names("target")
    ]  # fmt: skip
    with pool(workers) as executor:
        rows = sweep.run(
            grid, out, executor=executor, report=lambda new: [console.print(line) for line in sweep.lines(new)]
        )
    settings = {"draws": draws, "profile": get_profile(profile).name, "test_items": test_items}
    path = sweep.write(rows, name, settings, results.committed_folder() if save else None)
    console.print(str(sweep.table(sweep.summarise(rows))))
    console.print(f"written to {path}")


def bbh(
    tasks: Annotated[str, typer.Option(help="Names by commas; default all 27.")] = "",
    draws: Annotated[int, typer.Option(help="Draws of five examples and 20 modules.")] = 5,
    modules: Annotated[str, typer.Option(help="As for adapt; default 20 random published ones a draw.")] = "",
    folder: ZooOption = None,
    base: Annotated[str, typer.Option(help="The base model.")] = "flan-t5-large",
    methods: Annotated[str, typer.Option(help="Names by commas; default all.")] = "",
    test_items: Annotated[int, typer.Option(help="Test items of each task, at most.")] = 250,
    profile: ProfileOption = None,
    out: Annotated[Path, typer.Option(help="One file a task and draw; a killed run goes on.")] = Path("runs/bbh"),
    save: Annotated[bool, typer.Option("--save", help="For maintainers: write the summary to results/.")] = False,
) -> None:
    """BIG-Bench Hard with FLAN-T5 and the published modules; started again it goes on where it stopped."""
    from lorahub_edu import results
    from lorahub_edu.hub import zoo
    from lorahub_studies.hub import bbh_study, sweep

    cells = bbh_study.plan(
        listed(tasks),
        draws,
        modules=listed(modules),
        folder=folder or zoo.SHIPPED,
        base_model=base,
        methods=listed(methods),
        test_items=test_items,
        profile=profile,
    )
    rows = bbh_study.study(cells, out, report=lambda line: console.print(line, markup=False))
    path = sweep.write(rows, "bbh", bbh_study.settings(cells), results.committed_folder() if save else None)
    summary = sweep.summarise(rows)
    for measure in ("strict", "answer_only"):
        caption = f"{measure.replace('_', ' ')} exact match in %, mean of the tasks (range of the draws)"
        console.print(str(sweep.table(summary, measure, ["mean"], caption)))
    console.print(f"written to {path}")


def methods_sweep(
    methods: Annotated[str, typer.Option(help="Lines of the comparison by commas; default all.")] = "",
    tasks: Annotated[str, typer.Option(help="Names by commas; default the comparison's two.")] = "",
    seeds: Annotated[int, typer.Option(help="Runs at the chosen rate.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Of every run; default the task's.")] = None,
    test_items: Annotated[int, typer.Option(help="Held-out items of each task.")] = 60,
    profile: ProfileOption = None,
    out: Annotated[Path, typer.Option(help="One file a run; a killed sweep goes on.")] = Path("runs/methods"),
    workers: Annotated[int, typer.Option(help="Processes; 1 works in this one.")] = 1,
    costs: Annotated[bool, typer.Option(help="Measure memory, time and disk too.")] = True,
    plan: Annotated[bool, typer.Option("--plan", help="Only say how many runs there are and what is missing.")] = False,
    save: Annotated[bool, typer.Option("--save", help="For maintainers: write the summary to results/.")] = False,
) -> None:
    """Compare methods on two tasks: the rate by one search for all, then seeds; a killed sweep goes on."""
    from lorahub_edu import results
    from lorahub_studies.methods import sweep as room

    grid = room.make_grid(listed(methods), listed(tasks), seeds, steps, test_items, profile, costs)
    if plan:
        console.print(room.plan(grid, out))
        return
    with pool(workers) as executor:
        rows = room.sweep(grid, out, executor=executor, report=lambda row: console.print(room.line(row), markup=False))
    path = room.write(rows, grid, results.committed_folder() if save else None)
    console.print(str(room.table(room.summarise(rows))))
    console.print(f"written to {path}")


def register(app: typer.Typer) -> None:
    """Add the studies' commands to the course's command line."""
    zoo_app.command("train")(zoo_train)
    adapt_app.command("sweep")(adapt_sweep)
    methods_app.command("sweep")(methods_sweep)
    intruders_app.command("sweep")(intruders_sweep)
    app.command("bbh")(bbh)
