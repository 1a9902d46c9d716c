"""The comparison of all methods over targets and draws: resumable, spread over an executor, summed up by code."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import asdict, fields, replace
from datetime import date
from pathlib import Path

from lorahub_edu import results
from lorahub_edu.errors import CourseError
from lorahub_edu.results import Table
from lorahub_studies.hub.cells import METHODS, Cell, run_cell

MEASURES = ("strict", "answer_only", "loss", "answer_loss", "seconds", "cpu_seconds", "prompt_tokens")


def run(
    cells: Sequence[Cell],
    folder: str | Path,
    *,
    executor: Executor | None = None,
    report: Callable[[list[dict]], None] = lambda rows: None,
) -> list[dict]:
    """Measure every cell that the folder does not hold yet, method by method.

    Args:
        cells: what to measure.
        folder: one JSON file a target and draw; a run that was killed goes on, and methods can be added later.
        executor: runs cells in other processes or on other machines; None in this one.
        report: called with the new rows of each finished cell.

    Returns:
        All rows of the cells, old and new.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for cell, rows in _finished(missing(cells, folder), executor):
        _store(cell, rows, folder)
        report(rows)
    return [row for cell in cells for row in _stored(cell, folder) if row["method"] in cell.methods]


def missing(cells: Sequence[Cell], folder: str | Path) -> list[Cell]:
    """What a folder does not hold of these cells: cells with the methods that are still to be measured.

    Raises:
        CourseError: a file in the folder is not a measured cell, or was measured with other settings.
    """
    return [replace(cell, methods=wanted) for cell in cells if (wanted := _missing(cell, Path(folder)))]


def _finished(cells: Sequence[Cell], executor: Executor | None) -> Iterable[tuple[Cell, list[dict]]]:
    if executor is None:
        for cell in cells:
            yield cell, run_cell(cell)
        return
    running = {executor.submit(run_cell, cell): cell for cell in cells}
    for future in as_completed(running):
        yield running[future], future.result()


def _file(cell: Cell, folder: Path) -> Path:
    return folder / f"{cell.target.replace('/', '-')}.{cell.draw}.json"


def _settings(cell: Cell) -> dict:
    """What must agree between the runs of one cell: everything but the methods."""
    described = asdict(cell)
    del described["methods"]
    return json.loads(json.dumps(described))


def _stored(cell: Cell, folder: Path) -> list[dict]:
    path = _file(cell, folder)
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings, rows = content["settings"], content["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f"{path} is not a measured cell ({error!r}): delete it and run the sweep again.") from error
    usual = {field.name: field.default for field in fields(Cell)}  # what a file does not name
    different = [key for key, value in _settings(cell).items() if settings.get(key, usual[key]) != value]
    if different:
        raise CourseError(
            f"{path} was measured with other settings ({', '.join(different)}): use another folder for this sweep."
        )
    return rows


def _missing(cell: Cell, folder: Path) -> tuple[str, ...]:
    done = {row["method"] for row in _stored(cell, folder)}
    return tuple(method for method in cell.methods if method not in done)


def _store(cell: Cell, rows: list[dict], folder: Path) -> None:
    kept = {row["method"]: row for row in _stored(cell, folder)} | {row["method"]: row for row in rows}
    results.write_json(_file(cell, folder), {"settings": _settings(cell), "rows": list(kept.values())})


def summarise(rows: Sequence[dict]) -> list[dict]:
    """Per target and method the mean, lowest and highest of each measure over the draws.

    Returns:
        One entry a target and method, with `draws` and, for each measure, `mean`, `low` and `high`; plus one entry a
        method with the target "mean", the mean over targets, whose `low` and `high` are those of the draws' means.
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["target"], row["method"]), []).append(row)
    entries = [
        {"target": target, "method": method, "draws": len(group), "test_items": group[0]["test_items"]}
        | {measure: _spread([row[measure] for row in group]) for measure in MEASURES}
        for (target, method), group in groups.items()
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        targets = {row["target"] for row in of_method}
        draws = [
            draw
            for draw in sorted({row["draw"] for row in of_method})
            if {row["target"] for row in of_method if row["draw"] == draw} == targets
        ]
        means = {
            measure: [statistics.fmean(r[measure] for r in of_method if r["draw"] == draw) for draw in draws]
            for measure in MEASURES
        }
        if draws:
            entries.append(
                {"target": "mean", "method": method, "draws": len(draws), "targets": len(targets)}
                | {measure: _spread(values) for measure, values in means.items()}
            )
    return entries


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "low": min(values), "high": max(values)}


def write(rows: Sequence[dict], name: str, settings: dict, into: Path | None = None) -> Path:
    """Write a sweep's rows and summary with their provenance to <results>/<name>.json."""
    content = {
        "settings": settings,
        "device": results.describe_device(),
        "versions": results.library_versions(),
        "date": date.today().isoformat(),
        "summary": summarise(rows),
        "rows": [{key: value for key, value in row.items() if key != "top"} | _top(row) for row in rows],
    }
    return results.write_json((into or results.folder()) / f"{name}.json", content)


def _top(row: dict) -> dict:
    return {"top": [[name, round(weight, 3)] for name, weight in row["top"]]} if row.get("top") else {}


def read(name: str, source: Path | None = None) -> dict:
    """A sweep that `write` wrote: settings, device, versions, date, summary, rows.

    Raises:
        CourseError: there is none.
    """
    return results.read_study(name, "lorahub-edu adapt sweep", source)


def table(
    summary: Sequence[dict], measure: str = "strict", targets: Sequence[str] | None = None, caption: str = ""
) -> Table:
    """Methods down, targets across: mean and range over the draws, exact match in percent.

    Args:
        summary: of `summarise`.
        measure: one of `MEASURES`.
        targets: which columns; None takes all, the mean last.
        caption: of the table.

    Returns:
        A table for a page.
    """
    columns = list(targets or dict.fromkeys(e["target"] for e in summary if e["target"] != "mean"))
    if targets is None:
        columns.append("mean")
    cells = {(entry["target"], entry["method"]): entry for entry in summary}
    methods = [method for method in METHODS if any((target, method) in cells for target in columns)]
    lines = [
        (METHODS[method].label, *(_cell(cells.get((target, method)), measure) for target in columns))
        for method in methods
    ]
    return Table(("method", *columns), tuple(lines), caption)


def _cell(entry: dict | None, measure: str) -> str:
    if entry is None:
        return "–"
    factor, digits = (100, 0) if measure in ("strict", "answer_only") else (1, 2)
    value = entry[measure]
    mean, low, high = (f"{value[key] * factor:.{digits}f}" for key in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low}–{high})"


def lines(rows: Sequence[dict]) -> list[str]:
    """A line a row, for a terminal."""
    return [
        f"{row['target']} draw {row['draw']}  {METHODS[row['method']].label}: strict {row['strict']:.0%}, answer only "
        f"{row['answer_only']:.0%}, loss {row['loss']:.2f}, {row['seconds']:.0f} s"
        for row in rows
    ]
