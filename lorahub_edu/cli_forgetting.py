"""The studies of forgetting on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorahub_edu.errors import CourseError
from lorahub_edu.terminal import console, pool


def sweep(
    study: Annotated[str, typer.Option(help="settling, ranks, matched, predict, intervene, continual.")] = "",
    out: Annotated[Path, typer.Option(help="One file a run; a killed sweep goes on.")] = Path("runs/intruders"),
    workers: Annotated[int, typer.Option(help="Processes; 1 works in this one.")] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Only say how many runs there are and what is missing.")] = False,
    save: Annotated[bool, typer.Option("--save", help="For maintainers: write the summary to results/.")] = False,
) -> None:
    """Train many tails and measure what they forget; started again it goes on where it stopped."""
    from lorahub_edu import results
    from lorahub_edu.forgetting import studies
    from lorahub_edu.forgetting import sweep as room

    if not study:
        raise CourseError(f"Which study? Give --study with one of {', '.join(studies.STUDIES)}.")
    if plan:
        jobs = studies.jobs(study, out)
        missing = sum(room.stored(job, out) is None for job in jobs)
        console.print(f"{study}: {studies.get(study).title}; {len(jobs)} runs, {missing} still to be done")
        return
    with pool(workers) as executor:
        rows = studies.run(
            study, out, executor=executor, report=lambda job, row: console.print(studies.line(row), markup=False)
        )
    path = studies.write(study, rows, results.committed_folder() if save else None)
    console.print(f"written to {path}")
