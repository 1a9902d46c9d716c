"""The methods of fine-tuning on the command line: which there are, and the comparison of all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorahub_edu.terminal import ProfileOption, console, listed, pool

methods_app = typer.Typer(no_args_is_help=True, help="Methods of fine-tuning: list them, compare them.")


@methods_app.command("list")
def methods_list(profile: ProfileOption = None) -> None:
    """Every method: what it trains, how many parameters of the profile's model, whose code it is."""
    from lorahub_edu.methods import overview

    console.print(str(overview.overview(profile)))


@methods_app.command("sweep")
def methods_sweep(
    methods: Annotated[str, typer.Option(help="Lines of the comparison by commas; default all.")] = "",
    tasks: Annotated[str, typer.Option(help="Names by commas; default the comparison's two.")] = "",
    seeds: Annotated[int, typer.Option(help="Runs at the chosen rate.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Of every run; default the task's.")] = None,
    test_items: Annotated[int, typer.Option(help="Held-out items of each task.")] = 60,
    profile: ProfileOption = None,
    out: Annotated[Path, typer.Option(help="One file a run; a killed sweep goes on.")] = Path("runs/methods"),
    workers: Annotated[int, typer.Option(help="Processes; 1 works in this one.")] = 1,
    costs: Annotated[bool, typer.Option(help="Measure memory, time and disk too.")] = True,
    plan: Annotated[bool, typer.Option("--plan", help="Only say how many runs there are and what is missing.")] = False,
    save: Annotated[bool, typer.Option("--save", help="For maintainers: write the summary to results/.")] = False,
) -> None:
    """Compare methods on two tasks: the rate by one search for all, then seeds; a killed sweep goes on."""
    from lorahub_edu import results
    from lorahub_edu.methods import sweep as room

    grid = room.make_grid(listed(methods), listed(tasks), seeds, steps, test_items, profile, costs)
    if plan:
        console.print(room.plan(grid, out))
        return
    with pool(workers) as executor:
        rows = room.sweep(grid, out, executor=executor, report=lambda row: console.print(room.line(row), markup=False))
    path = room.write(rows, grid, results.committed_folder() if save else None)
    console.print(str(room.table(room.summarise(rows))))
    console.print(f"written to {path}")
