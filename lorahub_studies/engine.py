"""Many jobs, each to one row: resumable, in one store, over an executor; the rows are written with their provenance.

A study is a module with a function that plans its jobs, one that runs a job to a row, and one that sums rows up.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from lorahub_edu import results
from lorahub_edu.errors import CourseError
from lorahub_studies.jobs import finished

# The command that makes a study, by the first word of its name.
COMMANDS = {"methods": "methods sweep", "intruders": "intruders sweep", "bbh": "bbh"}
STORE = "rows.jsonl"


def run(
    jobs: Sequence[Any],
    work: Callable[[Any], dict],
    folder: str | Path,
    *,
    executor: Executor | None = None,
    report: Callable[[Any, dict], None] = lambda job, row: None,
    failed: Callable[[Any, str], None] = lambda job, reason: None,
    progress: bool = False,
) -> list[dict]:
    """Do every job that the folder's store does not hold yet.

    Args:
        jobs: frozen dataclasses of plain values, which say all that a row depends on.
        work: makes a row of a job; an importable function, so that it can be sent to a worker.
        folder: holds the store, a line a finished job. You can stop a sweep at any time; the same call continues.
        executor: does jobs in other processes or on other machines.
        report: called with each finished job and its row, as `failed` is with each failed one and its reason.
    Returns: The rows of all jobs, old and new, in the order of the jobs. A job that failed three times has its reason
        in the store and no row here; the same call tries it again.
    Raises CourseError: the folder can't be made, the store is damaged, the workers were lost, or what `work` raises
        before any job was done.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(f"Can't make the folder {folder}: {error.strerror}. Choose another with --out.") from error
    todo = missing(jobs, folder)
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="job", disable=not progress, dynamic_ncols=True)
    lost = 0
    with _opened(folder / STORE) as store, bar:
        for job, row, reason in finished(todo, work, executor):
            result = {"failed": reason} if row is None else {"row": row}
            line = {"key": _key(job), "job": asdict(job)} | result
            store.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            store.flush()
            lost += row is None
            bar.set_postfix(failed=lost, refresh=False)
            bar.update()
            with tqdm.external_write_mode():
                report(job, row) if row is not None else failed(job, reason)
    return [row for row in stored(jobs, folder) if row is not None]


def stored(jobs: Sequence[Any], folder: str | Path) -> list[dict | None]:
    """The row of each job that was done before, None if it was not. Raises CourseError: the store can't be read."""
    lines = _lines(folder)
    return [lines.get(_key(job), {}).get("row") for job in jobs]


def missing(jobs: Sequence[Any], folder: str | Path) -> list[Any]:
    """The jobs, each once, that the folder does not hold yet."""
    rows = stored(jobs, folder)
    return list(dict.fromkeys(job for job, row in zip(jobs, rows, strict=True) if row is None))


def count(folder: str | Path) -> int:
    """How many jobs the folder holds rows of."""
    return sum("row" in line for line in _lines(folder).values())


def _lines(folder: str | Path) -> dict[str, dict]:
    """The last line of each job by its key; a line that a killed run did not finish does not count."""
    path = Path(folder) / STORE
    found: dict[str, dict] = {}
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1] if path.is_file() else (), start=1):
        try:
            line = json.loads(text)
            dict(line["job"]), dict(line.get("row", {}))
            found[line["key"]] = line
        except (ValueError, KeyError, TypeError) as error:
            raise CourseError(
                f"Line {number} of {path} is not a finished job ({error!r}): delete the line and run the sweep again."
            ) from error
    return found


def _opened(path: Path) -> Any:
    """The store, to append to, without what a killed run did not finish."""
    if not path.is_file():
        return path.open("ab")
    whole = path.read_bytes().rfind(b"\n") + 1
    if whole < path.stat().st_size:
        os.truncate(path, whole)
    return path.open("ab")


def _key(job: Any) -> str:
    """The name of a job's row: its class, and a hash of all that it says."""
    described = json.dumps(asdict(job), sort_keys=True)
    return f"{type(job).__name__}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"


def best_rates(runs: pd.DataFrame, arm: str | list[str], loss: str = "loss") -> dict[Any, float]:
    """By arm (the columns whose values name one) the `learning_rate` with the lowest mean loss of its runs."""
    means = runs.groupby([*([arm] if isinstance(arm, str) else arm), "learning_rate"], sort=False)[loss].mean()
    return {key: place[-1] for key, place in means.groupby(arm, sort=False).idxmin().items()}


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
