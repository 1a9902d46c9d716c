"""What the commands share: the console, options, a line for quiet work, and a pool of processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from threading import Timer
from typing import Annotated

import typer
from rich.console import Console

from lorahub_edu.cli.typed import known_profile

console = Console(highlight=False, soft_wrap=True)
errors = Console(highlight=False, soft_wrap=True, stderr=True)
PATIENCE = 2.0  # seconds without a sign of life


ProfileOption = Annotated[
    str | None, typer.Option("--profile", "-p", callback=known_profile, help="tiny, cpu or gpu24; default cpu.")
]


@contextmanager
def quiet_work(what: str) -> Iterator[None]:
    """Work that shows nothing of its own: after two seconds, a line on standard error says what it does."""
    timer = Timer(PATIENCE, lambda: errors.print(f"{what} …", markup=False))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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
