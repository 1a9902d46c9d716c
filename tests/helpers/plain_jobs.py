"""Jobs that cost nothing, for engines and clusters: a worker that does them imports no torch."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    number: int
    folder: str = ""
    seconds: float = 0.0


def fails_often(job: Job) -> dict:
    """Job 1 always fails, job 2 twice; job 3 ends its process each time. Their tries are files in the folder."""
    tried = len(list(Path(job.folder).glob(f"{job.number}.*")))
    (Path(job.folder) / f"{job.number}.{tried}").touch()
    if job.number == 1 or (job.number == 2 and tried < 2):
        raise RuntimeError(f"try {tried} of job {job.number}")
    if job.number == 3:
        time.sleep(job.seconds)
        os._exit(1)
    return {"square": job.number**2}


def times_ten(job: Job) -> dict:
    time.sleep(job.seconds)
    return {"square": 10 * job.number}


def drive(address: str, folder: str, count: int, seconds: float) -> None:
    """A study of so many jobs on a scheduler's workers; it ends with exit code 1 where the workers were lost."""
    from lorahub_edu.errors import CourseError
    from lorahub_studies import cluster, engine

    try:
        with cluster.workers(address, folders=[Path(folder)]) as executor:
            engine.run([Job(number, seconds=seconds) for number in range(count)], times_ten, folder, executor=executor)
    except CourseError as error:
        raise SystemExit(f"driver: {error}") from None


def has_no_sandbox() -> str:
    """What a worker answers that can't do the jobs."""
    return "bubblewrap: it is not installed"
