"""Measured numbers: written by code with their spread and circumstances, read by tables, never typed."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path

from lorahub_edu.errors import CourseError
from lorahub_edu.files import course, save

FOLDER_VARIABLE = "LORAHUB_EDU_RESULTS"
LIBRARIES = ("torch", "transformers", "peft", "nevergrad", "numpy")
VERDICTS = ("shown", "not shown here", "refuted here", "exploratory")  # the last: the rule came after the data


@dataclass(frozen=True)
class Finding:
    """One measured value with everything needed to judge and repeat it.

    `values` are the repeats, one a seed or a run, in `unit`; `value` is their median and `spread` their range. `rule`
    is the rule of the verdict with the commit that wrote it, where the values come from a committed study.
    """

    name: str
    values: tuple[float, ...]
    unit: str
    claim: str = ""
    verdict: str = ""
    note: str = ""
    rule: str = ""
    seeds: tuple[int, ...] = ()
    model: str = ""
    profile: str = ""
    device: str = field(default_factory=lambda: describe_device())
    versions: dict[str, str] = field(default_factory=lambda: library_versions())
    date: str = field(default_factory=lambda: date.today().isoformat())

    def __post_init__(self) -> None:
        if not self.values:
            raise CourseError(f"The finding {self.name!r} has no value: measure at least once.")
        if self.verdict and self.verdict not in VERDICTS:
            raise CourseError(f"{self.verdict!r} is no verdict; it is one of {', '.join(VERDICTS)}.")

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.values), max(self.values)

    def rounded(self, unit: str = "") -> str:
        """The value with its spread, with the digits that the spread allows, and a unit between them."""
        low, high = self.spread
        value, low, high = (_figure(each, high - low) for each in (self.value, low, high))
        return f"{value}{unit and ' '}{unit}" + (f" ({low} to {high})" if high != low else "")

    def __str__(self) -> str:
        return self.rounded(self.unit)


@dataclass(frozen=True)
class Table:
    """A small table that Jupyter shows as Markdown and a terminal as aligned text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def _repr_markdown_(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        lines = [line(self.header), "|" + "---|" * len(self.header), *map(line, self.rows)]
        return "\n".join(lines) + (f"\n\n{self.caption}" if self.caption else "")

    def __str__(self) -> str:
        widths = [max(len(row[i]) for row in (self.header, *self.rows)) for i in range(len(self.header))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in (self.header, *self.rows)
        ]
        return "\n".join(lines) + (f"\n{self.caption}" if self.caption else "")

    __repr__ = __str__


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, smallest and largest value over replicates, as "mean", "low" and "high"."""
    return {"mean": statistics.fmean(values), "low": min(values), "high": max(values)}


def _figure(value: float, width: float) -> str:
    """A number to the first digit of its spread's width, to the second where the first is 1 or 2; to three without."""
    if width <= 0 or width < 1e-4:  # none, or so small that only powers of ten can say it
        return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
    power = math.floor(math.log10(width))
    decimals = max(0, (1 if width < 3 * 10**power else 0) - power)
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"  # + 0.0: no minus before a zero


def describe_device() -> str:
    """The machine in a few words: accelerator if there is one, else the processor and its threads."""
    import torch  # here, so that a mistyped name on the command line is answered without it

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return f"Apple GPU ({platform.machine()})"
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}


def committed_folder() -> Path:
    """The folder of the project's own findings, `results/`, which pages and tables quote."""
    return course.SHIPPED / "results"


def folder() -> Path:
    """The folder of this run's findings: LORAHUB_EDU_RESULTS, else .course/results in the course, else in the cache."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen)
    from lorahub_edu.files import assets  # here, because it loads the network's libraries

    return (course.folder() or assets.home()) / ".course" / "results"


def write_json(path: str | Path, content: dict | list) -> Path:
    """Write JSON atomically, in a folder that is made if missing; the path. CourseError where it can't be written."""
    path = Path(path)
    try:
        with save.replacing(path) as unfinished:
            unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise CourseError(f"Can't write {path}: {error.strerror}. Free some space or choose another folder.") from error
    return path


def read_study(name: str, made_by: str, source: Path | None = None) -> dict:
    """A study's settings, device, versions, date, summary and rows, from a folder or the committed results.

    Raises CourseError: there is none; the message names the command that makes it.
    """
    path = (source or committed_folder()) / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CourseError(f"There is no study at {path} ({error}): run {made_by} first.") from error


def committed_study(name: str) -> dict | None:
    """A study of the committed results, as from `read_study`; prints a line and returns None if there is none yet."""
    try:
        return read_study(name, "its command", committed_folder())
    except CourseError:
        print(f"The study {name!r} has not been measured yet.")
        return None


def record(findings: Sequence[Finding], group: str, into: Path | None = None) -> Path:
    """Write findings to <folder>/<group>.json and return its path; other findings in the file stay."""
    path = (into or folder()) / f"{group}.json"
    kept = {finding.name: finding for finding in read(group, into)} if path.is_file() else {}
    kept |= {finding.name: finding for finding in findings}
    return write_json(path, {name: asdict(finding) for name, finding in sorted(kept.items())})


def read(group: str, source: Path | None = None) -> list[Finding]:
    """The findings of <folder>/<group>.json. CourseError where there is no such file of findings."""
    path = (source or folder()) / f"{group}.json"
    if not path.is_file():
        raise CourseError(f"No measured results at {path}. Run the lesson or benchmark that writes {group!r} first.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [
            Finding(**entry | {"values": tuple(entry["values"]), "seeds": tuple(entry["seeds"])})
            for entry in entries.values()
        ]
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise CourseError(f"{path} is not a file of findings ({error!r}). Delete it and measure again.") from error
