"""One adapter on one page, on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorahub_edu.cli.terminal import ProfileOption, console


def report(
    adapter: Annotated[str, typer.Argument(help="An adapter's folder in PEFT's layout, or a module of the zoo.")],
    task: Annotated[str, typer.Option(help="A word task to score before and after.")] = "",
    base: Annotated[str, typer.Option("--base", help="Another base model than the profile's.")] = "",
    test_items: Annotated[int, typer.Option(help="At most so many of the task's test items.")] = 60,
    sequences: Annotated[int, typer.Option(help="Sequences of plain text.")] = 64,
    out: Annotated[Path | None, typer.Option(help="Write the page there as Markdown too.")] = None,
    profile: ProfileOption = None,
) -> None:
    """Everything the course measures of one adapter: what it is, does, did to the weights, and makes forget."""
    from lorahub_edu.hub import zoo
    from lorahub_edu.show.adapter_report import examine

    where = zoo.SHIPPED / adapter if not Path(adapter).exists() and adapter in zoo.names() else adapter
    page = examine(where, task=task, test_items=test_items, sequences=sequences, profile=profile, base_model=base)
    console.print(str(page))
    if out:
        out.write_text(page._repr_markdown_() + "\n", encoding="utf-8")
        console.print(f"written to {out}")
