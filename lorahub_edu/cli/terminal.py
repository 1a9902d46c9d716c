"""What the commands share: the console, options, and a line for quiet work."""

from __future__ import annotations

from collections.abc import Iterator
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
