"""The hub on the command line: zoo and adapt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lorahub_edu.cli.terminal import ProfileOption, console, quiet_work
from lorahub_edu.cli.typed import COUNT, NATURAL, check_task, known_base, known_prefilter, listed, writable_folder
from lorahub_edu.errors import CourseError

zoo_app = typer.Typer(no_args_is_help=True, help="LoRA modules: list, show, verify.")

ZooOption = Annotated[Path | None, typer.Option("--folder", help="Another folder of modules than the shipped zoo.")]
BaseOption = Annotated[
    str, typer.Option("--base", callback=known_base, help="A base model's name, here or on the hub, or its folder.")
]


@zoo_app.command("list")
def zoo_list(folder: ZooOption = None) -> None:
    """Every module with its task and its scores before and after training."""
    from lorahub_edu.hub import zoo

    console.print(str(zoo.overview(folder or zoo.SHIPPED)))


@zoo_app.command("show")
def zoo_show(name: str, folder: ZooOption = None) -> None:
    """One module's card."""
    from lorahub_edu.hub import zoo

    console.print(str(zoo.card_table(name, folder or zoo.SHIPPED)))


@zoo_app.command("verify")
def zoo_verify(folder: ZooOption = None) -> None:
    """Check every module's weights, shapes and base. Exit code 1 if a module is not sound."""
    from lorahub_edu.hub import zoo

    with quiet_work("reading every module"):
        modules = zoo.verify(folder or zoo.SHIPPED)
    for name, problems in modules.items():
        console.print(f"{name:14s} {'; '.join(problems) or 'sound'}")
    if not modules:
        raise CourseError(f"There is no module in {folder or zoo.SHIPPED}.")
    raise typer.Exit(0 if modules and not any(modules.values()) else 1)


adapt_app = typer.Typer(invoke_without_command=True, help="Compose modules for a new task from a few examples.")


@adapt_app.callback()
def adapt(
    context: typer.Context,
    task: Annotated[str, typer.Option(help="A task's name, bbh/<name>, or a JSONL file of your own examples.")] = "",
    modules: Annotated[str, typer.Option(help="Names, folders or hub names, by commas; default the zoo.")] = "",
    folder: ZooOption = None,
    prefilter: Annotated[
        str, typer.Option(callback=known_prefilter, help="draw:20, instruction:20 or loss:20 of the folder's modules.")
    ] = "",
    optimizer: Annotated[str, typer.Option(help="auto, cma, ngopt, shiwa, random, greedy, gradient, …")] = "auto",
    composition: Annotated[Literal["paper", "exact"] | None, typer.Option(help="How modules are added.")] = None,
    budget: Annotated[
        int | None, typer.Option(**COUNT, help="Candidates to score; default 40, or 120 for auto.")
    ] = None,
    draw: Annotated[int, typer.Option(**NATURAL, help="Which five of a named task's examples, from 0.")] = 0,
    seed: Annotated[int, typer.Option(**NATURAL, help="Seed of the search.")] = 0,
    rank: Annotated[int | None, typer.Option(**COUNT, help="Reduce the adapter to this rank; default exact.")] = None,
    original_scale: Annotated[bool, typer.Option(help="Weight the L1 term as the released LoRAHub does.")] = False,
    test_items: Annotated[int, typer.Option(**NATURAL, help="Test items to score.")] = 100,
    profile: ProfileOption = None,
    base: BaseOption = "",
    out: Annotated[Path, typer.Option(callback=writable_folder, help="Folder for log, summary and adapter.")] = Path(
        "runs/adapt"
    ),
) -> None:
    """Find the weights of a composition on a few examples and save it; the same command continues a stopped search."""
    if context.invoked_subcommand is not None:
        return
    from lorahub_edu.data import tasks
    from lorahub_edu.files.save import one_writer
    from lorahub_edu.hub import zoo

    if not task:
        known = ", ".join(tasks.names("settling") + tasks.names("target"))
        raise CourseError(f"Adapt to what? Give --task with one of {known}, or a JSONL file of your own examples.")
    if prefilter and modules:
        raise CourseError("--prefilter chooses from a folder: leave out --modules.")
    check_task(task)
    zoo.find(listed(modules) or None, folder or zoo.SHIPPED)
    from lorahub_edu.hub import task_adapter
    from lorahub_edu.hub.adapt import SearchConfig

    with one_writer(out), quiet_work("loading the modules and the model"):
        done = task_adapter.adapt_to(
            task,
            SearchConfig(optimizer, budget, seed, composition, original_scale=original_scale),
            modules=listed(modules),
            folder=folder or zoo.SHIPPED,
            prefilter=prefilter,
            draw=draw,
            rank=rank,
            test_items=test_items,
            profile=profile,
            base=base,
            out=out,
        )
    console.print(str(done))
