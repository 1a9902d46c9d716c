"""What the commands share: the console, options, lists typed with commas, and a pool of processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from lorahub_edu.errors import CourseError
from lorahub_edu.models.profiles import get_profile

console = Console(highlight=False, soft_wrap=True)
errors = Console(highlight=False, soft_wrap=True, stderr=True)


def _known_profile(name: str | None) -> str | None:
    """A mistyped profile is answered before the command loads torch."""
    if name:
        get_profile(name)
    return name


ProfileOption = Annotated[
    str | None, typer.Option("--profile", "-p", callback=_known_profile, help="tiny, cpu or gpu24; default cpu.")
]


def listed(text: str) -> tuple[str, ...]:
    """The parts of a list that was typed with commas; nothing but commas is an error, and no choice of everything."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if text and not parts:
        raise CourseError(f"{text!r} names nothing: give names with commas between them, or leave the option out.")
    return parts


@contextmanager
def pool(workers: int) -> Iterator[Executor | None]:
    """A pool of processes that each use their share of the threads; None for one worker."""
    if workers == 1:
        yield None
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))  # read when a worker imports torch
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor
