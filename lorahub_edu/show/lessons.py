"""Lessons as files: find them, build their notebooks, run them headless; and what a learner has done of them."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from lorahub_edu import results
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.files import course
from lorahub_edu.models import profiles
from lorahub_edu.results import Finding, Table
from lorahub_edu.show import progress
from lorahub_edu.show.check import ASSIGNMENT

if TYPE_CHECKING:
    from nbformat import NotebookNode

# Jupyter's libraries are imported where they are used, so that a mistyped lesson is answered at once.

LESSONS = course.SHIPPED / "lessons"
SOURCES = LESSONS / "src"
CELL_SECONDS = 600
CHECK = re.compile(r'\bcheck\(\s*"(\d\d\.\d+)"')
NONE = "–"
# Where a notebook was opened without the course (Colab, Kaggle), its first code cell fetches the course.
DOOR = """\
from importlib.util import find_spec

if not find_spec("lorahub_edu"):
    %pip install -q lorahub-edu"""
HIDDEN = {"tags": ["hide-input"], "jupyter": {"source_hidden": True}}


def names() -> list[str]:
    """The stems of all lessons, in order. CourseError where the package was installed without them."""
    found = sorted(path.stem for path in SOURCES.glob("[0-9][0-9]_*.py"))
    if not found:
        raise CourseError(f"There are no lessons at {SOURCES}: install the course again.")
    return found


def resolve(name: str) -> str:
    """A lesson's stem from "01", "1" or "01_lora_from_scratch". Raises CourseError: there is no such lesson."""
    stem = Path(name).stem
    for known in names():
        if stem == known or (stem and stem.zfill(2) == known[:2]):
            return known
    raise CourseError(f"There is no lesson {name!r}. {near_matches(name, names())}")


def build(name: str) -> NotebookNode:
    """The notebook of a lesson's source, without outputs; the same source gives the same notebook and cell ids."""
    import jupytext
    import nbformat

    notebook = jupytext.read(SOURCES / f"{name}.py")
    door = nbformat.v4.new_code_cell(DOOR, id=f"{name[:2]}-door", metadata=HIDDEN)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
        }
    )
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"{name[:2]}-{index:03d}"
        kept = {key: cell.metadata[key] for key in ("tags", "jupyter") if key in cell.metadata}  # collapsed cells
        cell["metadata"] = nbformat.from_dict(kept)
    notebook.cells.insert(1, door)  # below the title
    nbformat.validate(notebook)
    return notebook


@dataclass(frozen=True)
class Run:
    """A lesson's headless run: seconds, peak memory of its kernel in bytes, and the executed notebook."""

    lesson: str
    profile: str
    seconds: float
    peak_bytes: int
    notebook: NotebookNode


def peak_memory(pid: int) -> int:
    """The most memory that a running process has held, in bytes; what it holds now where the system keeps no record."""
    with suppress(OSError, TypeError):  # no such file, or no such line in it
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    memory = psutil.Process(pid).memory_info()
    return getattr(memory, "peak_wset", memory.rss)


def run(name: str, profile: str | None = None, results_folder: Path | None = None) -> Run:
    """Execute a lesson in a kernel of its own, with a profile or the environment's.

    Findings go to `results_folder`, in place of an earlier edition's; without one they stay out of the checkout's
    `results/`.
    Raises CourseError: a cell failed or took more than ten minutes, or the kernel died; the message has the cell.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    chosen = profiles.get_profile(profile).name
    notebook = build(name)
    place = course.folder()
    private = tempfile.TemporaryDirectory(prefix="lorahub-edu-")
    # Sockets in a private folder where the system has them, instead of open ports on this machine.
    sockets = {"transport": "ipc", "ip": str(Path(private.name) / "socket")} if os.name == "posix" else {}
    connection = {"connection_file": str(Path(private.name) / "kernel.json")} | sockets
    client = NotebookClient(
        notebook,
        config=Config({"KernelManager": connection}),
        kernel_name="python3",
        timeout=CELL_SECONDS,
        record_timing=False,  # a published notebook changes with its content only
        resources={"metadata": {"path": str(place / "lessons" if place else Path.cwd())}},
    )
    client.create_kernel_manager()
    environment = os.environ | {
        profiles.ENVIRONMENT_VARIABLE: chosen,
        results.FOLDER_VARIABLE: str(results_folder or results.folder()),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "TQDM_MININTERVAL": "5",
        # Threads that wait sleep instead of spinning: a lesson beside other programs was several times faster so.
        "OMP_WAIT_POLICY": "passive",
    }
    if results_folder is not None:
        (results_folder / f"lesson_{name[:2]}.json").unlink(missing_ok=True)
        environment[progress.VARIABLE] = progress.OFF  # what is published shows nobody's progress
    started = time.perf_counter()
    try:
        with private, client.setup_kernel(env=environment):
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
            peak = peak_memory(client.km.provisioner.pid)
            client.set_widgets_metadata()
    except CellExecutionError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without a terminal's colours
        raise CourseError(f"Lesson {name} failed with profile {chosen}:\n{plain}") from error
    except (CellTimeoutError, DeadKernelError) as error:
        raise CourseError(
            f"Lesson {name} stopped with profile {chosen}: {type(error).__name__}. A cell may take {CELL_SECONDS} s; a "
            f"kernel that dies is mostly out of memory (close other programs, or run with --profile tiny)."
        ) from error
    seconds = time.perf_counter() - started
    widgets = notebook.metadata.get("widgets", {})
    if not any("state" in view for view in widgets.values()):  # the lesson has no panel
        notebook.metadata.pop("widgets", None)
    if results_folder is None:
        progress.lesson_run(name[:2])
    return Run(name, chosen, seconds, peak, notebook)


def save(run: Run, folder: Path) -> Path:
    """Write an executed lesson as a notebook, and return its path."""
    import nbformat

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.lesson}.ipynb"
    nbformat.write(run.notebook, path)
    return path


def record_costs(run: Run, model: str, folder: Path) -> None:
    """Write what a run took to `lessons.json`, and how fast its machine is; `findings.costs_table` reads both."""
    from lorahub_edu.show import findings  # with torch, which a mistyped name does not wait for

    common = {"model": model, "profile": run.profile}
    measured = [
        Finding(f"{run.lesson}.{run.profile}.minutes", (run.seconds / 60,), "min", **common),
        Finding(f"{run.lesson}.{run.profile}.memory", (run.peak_bytes / 1e9,), "GB", **common),
    ]
    if run.profile == profiles.DEFAULT:
        measured.append(Finding(findings.YARDSTICK, (findings.yardstick_seconds(),), "s"))
    results.record(measured, "lessons", folder)


def progress_tables() -> tuple[Table, Table]:
    """Tables of what the learner did, of all there is to do: lessons run and checks passed; assignments and points."""
    done = progress.read()

    def passed(source: str, where: str = "") -> str:
        ids = {where + id for id in CHECK.findall(source)}
        return f"{len(ids & set(done.checks))} of {len(ids)}" if ids else NONE

    of_lessons = []
    for name in names():
        source = (SOURCES / f"{name}.py").read_text(encoding="utf-8")
        of_lessons.append((name, done.lessons.get(name[:2], NONE), passed(source)))
    of_assignments = []
    for path in sorted((course.SHIPPED / "exercises").glob("*/*.ipynb")):
        if path.stem == path.parent.name:  # the learner's notebook
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
            points = "{:g} of {:g}".format(*done.points[path.stem]) if path.stem in done.points else NONE
            of_assignments.append((path.stem, passed(code, ASSIGNMENT), points))
    where = f"Kept in {progress.path()} on this machine only." if progress.kept() else "Nothing is kept here."
    return (
        Table(("lesson", "last run to its end", "checks passed"), tuple(of_lessons)),
        Table(("assignment", "checks passed", "points when last graded here"), tuple(of_assignments), where),
    )
