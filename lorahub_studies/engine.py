"""Many runs: resumable, one file each, over an executor; summed up with their spread and written with provenance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from lorahub_edu import results
from lorahub_edu.errors import CourseError


def run(
    jobs: Sequence[Any],
    work: Callable[[Any], dict],
    folder: str | Path,
    *,
    executor: Executor | None = None,
    report: Callable[[Any, dict], None] = lambda job, row: None,
) -> list[dict]:
    """Do every job that the folder does not hold yet.

    Args:
        jobs: frozen dataclasses of plain values, which say all that a row depends on.
        work: makes a row of a job; an importable function, so that it can be sent to a worker.
        folder: one JSON file a job; a sweep that was killed goes on with what is missing.
        executor: does jobs in other processes or on other machines; None in this one.
        report: called with each new row.

    Returns:
        The rows of all jobs, old and new, in the order of the jobs.

    Raises:
        CourseError: a file in the folder is not a finished job; or what `work` raises.
    """
    folder = Path(folder)
    for job, row in _finished([job for job in jobs if stored(job, folder) is None], work, executor):
        results.write_json(_file(job, folder), {"job": _settings(job), "row": row})
        report(job, row)
    return [stored(job, folder) for job in jobs]


def _finished(jobs: Sequence[Any], work: Callable[[Any], dict], executor: Executor | None):  # noqa: ANN202
    if executor is None:
        for job in jobs:
            yield job, work(job)
        return
    running = {executor.submit(work, job): job for job in jobs}
    for future in as_completed(running):
        yield running[future], future.result()


def stored(job: Any, folder: str | Path) -> dict | None:
    """The row of a job that was done before, None if it was not.

    Raises:
        CourseError: the file is there and can't be read.
    """
    path = _file(job, Path(folder))
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["job"] != _settings(job):
            raise ValueError("it is of another job")
        return content["row"]
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f"{path} is not a finished run ({error!r}): delete it and run the sweep again.") from error


def _settings(job: Any) -> dict:
    return json.loads(json.dumps(asdict(job)))


def _file(job: Any, folder: Path) -> Path:
    """A name that holds a hash of every setting, so that no two jobs ever share a file."""
    described = json.dumps(_settings(job), sort_keys=True)
    return folder / f"{type(job).__name__}-{hashlib.sha256(described.encode()).hexdigest()[:16]}.json"


def write(rows: Sequence[dict], name: str, settings: dict, summary: Any, into: Path | None = None) -> Path:
    """Write a study's rows and summary with their provenance to <results>/<name>.json."""
    content = {
        "settings": settings,
        "device": results.describe_device(),
        "versions": results.library_versions(),
        "date": date.today().isoformat(),
        "summary": summary,
        "rows": list(rows),
    }
    return results.write_json((into or results.folder()) / f"{name}.json", content)


def read(name: str, source: Path | None = None) -> dict:
    """A study that `write` wrote: settings, device, versions, date, summary, rows.

    Raises:
        CourseError: there is none.
    """
    return results.read_study(name, "lorahub-edu intruders sweep", source)
