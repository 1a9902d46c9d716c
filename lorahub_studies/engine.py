"""Many jobs, each to one row: resumable, one file a job, over an executor; the rows are written with their provenance.

A study is a module with a function that plans its jobs, one that runs a job to a row, and one that sums rows up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from lorahub_edu import results
from lorahub_edu.errors import CourseError

# The command that makes a study, by the first word of its name.
COMMANDS = {"methods": "methods sweep", "intruders": "intruders sweep", "bbh": "bbh"}


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
        jobs: frozen dataclasses of plain values, which say all that a row depends on. A job with a `name` has its file
            under that name, and a file of other settings there is refused; other jobs' files are named by a hash.
        work: makes a row of a job; an importable function, so that it can be sent to a worker.
        folder: one JSON file a job. You can stop a sweep at any time; the same call continues.
        executor: does jobs in other processes or on other machines; None in this one.

    Returns:
        The rows of all jobs, old and new, in the order of the jobs.

    Raises:
        CourseError: the folder can't be made, or a file in it is not a finished job; or what `work` raises.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(f"Can't make the folder {folder}: {error.strerror}. Choose another with --out.") from error
    for job, row in _finished(missing(jobs, folder), work, executor):
        results.write_json(_file(job, folder), {"job": _settings(job), "row": row})
        report(job, row)
    return [stored(job, folder) for job in jobs]


def _finished(
    jobs: Sequence[Any], work: Callable[[Any], dict], executor: Executor | None
) -> Iterator[tuple[Any, dict]]:
    if executor is None:
        yield from ((job, work(job)) for job in jobs)
        return
    running = {executor.submit(work, job): job for job in jobs}
    yield from ((running[future], future.result()) for future in as_completed(running))


def stored(job: Any, folder: str | Path) -> dict | None:
    """The row of a job that was done before, None if it was not.

    Raises:
        CourseError: the file is there and can't be read, or holds a job of other settings.
    """
    path = _file(job, Path(folder))
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings, row = dict(content["job"]), content["row"]
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f"{path} is not a finished job ({error!r}): delete it and run the sweep again.") from error
    different = [key for key, value in _settings(job).items() if key not in settings or settings[key] != value]
    if different:
        raise CourseError(
            f"{path} was measured with other settings ({', '.join(different)}): use another folder for this sweep."
        )
    return row


def missing(jobs: Sequence[Any], folder: str | Path) -> list[Any]:
    """The jobs that the folder does not hold yet."""
    return [job for job in jobs if stored(job, folder) is None]


def _settings(job: Any) -> dict:
    return json.loads(json.dumps(asdict(job)))


def _file(job: Any, folder: Path) -> Path:
    described = json.dumps(_settings(job), sort_keys=True)
    hashed = f"{type(job).__name__}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"
    return folder / f"{getattr(job, 'name', hashed)}.json"


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
    """A study that `write` wrote (settings, device, versions, date, summary, rows); by default the committed one."""
    command = COMMANDS.get(name.partition("_")[0], "adapt sweep")
    return results.read_study(name, f"lorahub-edu {command}", source)
