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
        os._exit(1)
    return {"square": job.number**2}


def times_ten(job: Job) -> dict:
    time.sleep(job.seconds)
    return {"square": 10 * job.number}
