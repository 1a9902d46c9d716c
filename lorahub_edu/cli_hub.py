"""The hub on the command line: the zoo, adapting, the comparison of methods, BIG-Bench Hard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorahub_edu.errors import CourseError
from lorahub_edu.terminal import ProfileOption, console, listed, pool

zoo_app = typer.Typer(no_args_is_help=True, help="LoRA modules: list, show, verify, train.")

ZooOption = Annotated[Path | None, typer.Option("--folder", help="Another folder of modules than the shipped zoo.")]
BaseOption = Annotated[str, typer.Option("--base", help="Another base model than the profile's.")]


@zoo_app.command("list")
def zoo_list(folder: ZooOption = None) -> None:
    """Every module with its task and what it scores, before and after."""
    from lorahub_edu.hub import zoo

    console.print(str(zoo.overview(folder or zoo.SHIPPED)))


@zoo_app.command("show")
def zoo_show(name: str, folder: ZooOption = None) -> None:
    """One module's card."""
    from lorahub_edu.hub import zoo

    console.print(str(zoo.card_table(name, folder or zoo.SHIPPED)))


@zoo_app.command("verify")
def zoo_verify(folder: ZooOption = None) -> None:
    """Check every module's weights, shapes and base; exit code 1 if one is not sound."""
    from lorahub_edu.hub import zoo

    verdicts = zoo.verify(folder or zoo.SHIPPED)
    for verdict in verdicts:
        console.print(f"{verdict.name:14s} {'; '.join(verdict.problems) or 'sound'}")
    if not verdicts:
        console.print(f"There is no module in {folder or zoo.SHIPPED}.")
    raise typer.Exit(0 if verdicts and not any(verdict.problems for verdict in verdicts) else 1)


@zoo_app.command("train")
def zoo_train(
    tasks: Annotated[str, typer.Option(help="Names, separated by commas; default every module task.")] = "",
    folder: ZooOption = None,
    own_init: Annotated[bool, typer.Option(help="Draw each module's A from a seed of its own.")] = False,
    profile: ProfileOption = None,
    workers: Annotated[int, typer.Option(help="Processes; 1 trains in this one.")] = 1,
) -> None:
    """Train one module a task; modules that are there already are kept, so a killed run goes on."""
    from lorahub_edu.hub import zoo, zoo_training
    from lorahub_edu.profiles import get_profile

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


adapt_app = typer.Typer(invoke_without_command=True, help="Compose modules for a new task from a few examples.")


@adapt_app.callback()
def adapt(
    context: typer.Context,
    task: Annotated[str, typer.Option(help="A task's name, bbh/<name>, or a JSONL file of your own examples.")] = "",
    modules: Annotated[str, typer.Option(help="Names, folders or hub names, by commas; default the zoo.")] = "",
    folder: ZooOption = None,
    optimizer: Annotated[str, typer.Option(help="auto, cma, ngopt, shiwa, random, greedy, gradient, …")] = "auto",
    composition: Annotated[str | None, typer.Option(help="paper or exact.")] = None,
    budget: Annotated[int | None, typer.Option(help="Candidates to score; default 40, or 120 for auto.")] = None,
    draw: Annotated[int, typer.Option(help="Which five of a named task's examples.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    rank: Annotated[int | None, typer.Option(help="Bring the adapter to this rank; default exact.")] = None,
    original_scale: Annotated[bool, typer.Option(help="Weigh L1 as the released LoRAHub does.")] = False,
    test_items: Annotated[int, typer.Option(help="Test items to score before and after.")] = 100,
    profile: ProfileOption = None,
    base: BaseOption = "",
    out: Annotated[Path, typer.Option(help="Log, summary and the finished adapter.")] = Path("runs/adapt"),
) -> None:
    """Find the weights of a composition on a few examples and save it; started again it goes on where it stopped."""
    if context.invoked_subcommand is not None:
        return
    from lorahub_edu.data import tasks as room
    from lorahub_edu.hub import recipe, zoo

    if not task:
        known = ", ".join(room.names("settling") + room.names("target"))
        raise CourseError(f"Adapt to what? Give --task with one of {known}, or a JSONL file of your own examples.")
    done = recipe.adapt_to(
        task,
        modules=listed(modules),
        folder=folder or zoo.SHIPPED,
        optimizer=optimizer,
        composition=composition,
        budget=budget,
        draw=draw,
        seed=seed,
        rank=rank,
        original_scale=original_scale,
        test_items=test_items,
        profile=profile,
        base_model=base,
        out=out,
    )
    console.print(str(done))


@adapt_app.command("sweep")
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
    from lorahub_edu.hub import cells, sweep, zoo
    from lorahub_edu.profiles import get_profile

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
    from lorahub_edu.hub import bbh_study, sweep, zoo

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
