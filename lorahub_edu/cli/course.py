"""The course in a folder of the learner's: init, lab."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lorahub_edu.cli.terminal import console
from lorahub_edu.errors import CourseError
from lorahub_edu.files import course


def init(folder: Annotated[Path, typer.Argument(help="A new folder, or one of an earlier init.")]) -> None:
    """Lay out lessons, exercises, recipes and results in a folder. Again: renews what you did not change."""
    done = course.lay_out(folder)
    for name in done.kept:
        console.print(f"kept as it is: {name}", markup=False)
    if done.kept:
        console.print(
            "These files differ from the course's. Rename one and repeat the command to get the course's too."
        )
    console.print(f"{len(done.new)} files new, {len(done.renewed)} renewed, {len(done.kept)} kept.")
    console.print(f'Open the course with: lorahub-edu lab "{folder}"', markup=False)


def lab(
    folder: Annotated[Path | None, typer.Argument(help="The course's folder; default the one you are in.")] = None,
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
    _trust_the_courses_own()
    as_root = ["--allow-root"] if os.name == "posix" and os.geteuid() == 0 else []
    options = [f"--port={port}", *([] if browser else ["--no-browser"]), *as_root, f"--ServerApp.root_dir={Path.cwd()}"]
    LabApp.launch_instance([*options, str(course.FIRST)])


def _trust_the_courses_own() -> None:
    """Let the panels show in lessons that are as they were published; what another hand changed is not trusted."""
    import nbformat
    from nbformat.sign import NotebookNotary

    for published in course.SHIPPED.glob(f"{course.FIRST.parent}/*.ipynb"):
        own = course.FIRST.with_name(published.name)
        if own.is_file() and own.read_bytes() == published.read_bytes():
            NotebookNotary().sign(nbformat.read(own, as_version=4))
