"""What the commands share: the console, and checks of what was typed, by callbacks before a command loads torch."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from threading import Timer
from typing import Annotated

import typer
from rich.console import Console

from lorahub_edu.data import alpaca, bbh, tasks
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.models.profiles import get_base, get_profile

console = Console(highlight=False, markup=False, soft_wrap=True)
errors = Console(highlight=False, markup=False, soft_wrap=True, stderr=True)
PATIENCE = 2.0  # seconds without a sign of life
LARGEST = 2**31 - 1
COUNT, NATURAL = {"min": 1, "max": LARGEST}, {"min": 0, "max": LARGEST}  # of an option
ENOUGH = 1 << 20  # bytes: less than this is a full disk, for whatever is to be written


@contextmanager
def quiet_work(what: str) -> Iterator[None]:
    """Work that shows nothing of its own: after two seconds, a line on standard error says what it does."""
    timer = Timer(PATIENCE, lambda: errors.print(f"{what} …"))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def check_text(words: Iterable[str]) -> None:
    """Refuse bytes that are no text: they could not be written into a log or a page."""
    for word in words:
        if not word.isascii() and word.encode(errors="replace").decode() != word:
            raise CourseError(f"{word!r} is no text in UTF-8. Rename the file, or type it again.")


def listed(text: str) -> tuple[str, ...]:
    """The parts of a list that was typed with commas; nothing but commas is an error, and no choice of everything."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if text and not parts:
        raise CourseError(f"{text!r} names nothing: give names with commas between them, or leave the option out.")
    return parts


def checking(check: Callable) -> Callable:
    """A callback that checks what was typed, if anything was."""

    def checked(value):  # without annotations, which typer would read
        if value not in (None, ""):
            check(value)
        return value

    return checked


def each(check: Callable[[str], object]) -> Callable:
    """A callback that checks every part of a list."""
    return checking(lambda text: [check(part) for part in listed(text)])


def _bbh_task(name: str) -> None:
    bbh.check_name(name.removeprefix("bbh/"))


def _recipe(name: str) -> None:
    from lorahub_edu.runs import recipes

    recipes.read(name)


def _device(name: str) -> None:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise CourseError(f"There is no device {name!r}. {near_matches(name, ('cpu', 'cuda'))}")


def _prefilter(how: str) -> None:
    if not re.fullmatch(r"(draw|instruction|loss):[1-9]\d*", how):
        raise CourseError(f"There is no pre-filter {how!r}: give draw:20, instruction:20 or loss:20.")


def _finite(number: float) -> None:
    if not isfinite(number):
        raise CourseError(f"{number} is no number to compute with. Give a finite one.")


known_profile, known_base, known_task = checking(get_profile), checking(get_base), checking(tasks.get)
known_rows, known_device, finite = checking(alpaca.check_rows), checking(_device), checking(_finite)
known_prefilter, known_recipe = checking(_prefilter), checking(_recipe)
known_tasks, known_bbh_tasks = each(tasks.get), each(_bbh_task)
ProfileOption = Annotated[
    str | None, typer.Option("--profile", "-p", callback=known_profile, help="tiny, cpu or gpu24; default cpu.")
]


def check_task(name: str) -> None:
    """A word task, one of BIG-Bench Hard, or a file of one's own examples, which is read."""
    if tasks.is_file(name):
        tasks.read(name)
    elif name.startswith("bbh/"):
        _bbh_task(name)
    else:
        tasks.get(name)


def writable_folder(path: Path | None) -> Path | None:
    """A folder that is there and can be written, or can be made."""
    if path is not None and path.exists() and not path.is_dir():
        raise CourseError(f"{path} is a file, but a folder is needed. Choose another.")
    return path and _writable(path)


def writable_file(path: Path | None) -> Path | None:
    """A file that can be written, or made together with its folder."""
    if path is not None and path.is_dir():
        raise CourseError(f"{path} is a folder, but the name of a file is needed. Choose another.")
    return path and _writable(path)


def nearest(path: Path) -> Path:
    """The path itself where it exists, else the nearest folder above that does."""
    return next((place for place in (path, *path.parents) if place.exists()), path)


def _writable(path: Path) -> Path:
    there = nearest(path.absolute())
    if there != path.absolute() and not there.is_dir():
        raise CourseError(f"{path} can't be made: {there} is a file. Choose another place.")
    if not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
        raise CourseError(f"{path} can't be written: {there} is read-only for you. Choose another place.")
    if shutil.disk_usage(there).free < ENOUGH:
        raise CourseError(f"{path} can't be written: the disk is full. Free some space, or choose another place.")
    return path


OutOption = Annotated[Path, typer.Option(callback=writable_folder, help="The folder to write to.")]
FileOption = Annotated[Path | None, typer.Option(callback=writable_file, help="A file to write to.")]
