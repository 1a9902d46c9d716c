"""What the commands share: the console, options, lists typed with commas, and a pool of processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

console = Console(highlight=False, soft_wrap=True)

ProfileOption = Annotated[str | None, typer.Option("--profile", "-p", help="tiny, cpu or gpu24; default cpu.")]


def listed(text: str) -> tuple[str, ...]:
    """The parts of a list that was typed with commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


@contextmanager
def pool(workers: int) -> Iterator[Executor | None]:
    """A pool of processes that each use their share of the threads; None for one worker."""
    if workers <= 1:
        yield None
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))  # read when a worker imports torch
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor
