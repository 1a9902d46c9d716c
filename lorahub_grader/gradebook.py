"""nbgrader's gradebook: its own preprocessors read outcomes and write grades; only the execution is not its own."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import nbformat
from filelock import FileLock, Timeout
from nbconvert.preprocessors import ClearMetadataPreprocessor
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.apps import NbGraderAPI
from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    IgnorePattern,
    LimitOutput,
    NbGraderPreprocessor,
    SaveAutoGrades,
)
from traitlets import Unicode
from traitlets.config import Config, PyFileConfigLoader

from lorahub_edu.errors import CourseError
from lorahub_grader.assignments import RELEASE, SOURCE, Assignment, LockedError, nbgrader_api, succeed
from lorahub_grader.journal import Journal, Outcome

BUSY_SECONDS = 20.0  # for another program to let go of the gradebook
IN_KERNEL = "in-kernel, not tamper-proof"


class Recorded(NbGraderPreprocessor):
    """Stands where nbgrader executes a notebook: gives each cell the outputs that the grading kept for it."""

    journal = Unicode(help="the folder of outcomes").tag(config=True)

    def preprocess(self, nb: Any, resources: Any) -> tuple[Any, Any]:
        said = resources["nbgrader"]
        outcome = Journal(Path(self.journal)).find(said["assignment"], said["student"])
        if outcome is None:
            raise RuntimeError("this submission has not been graded")
        tests = {test.grade_id: test for test in outcome.tests}
        for index, cell in enumerate(nb.cells):
            if cell.cell_type != "code":
                continue
            test = tests.get(cell.metadata.get("nbgrader", {}).get("grade_id"))
            if test is None:
                cell.outputs = [nbformat.from_dict(output) for output in outcome.outputs.get(index, ())]
            elif not test.passed:
                words = test.message or outcome.reason or "not right"
                error = {"output_type": "error", "ename": "NotPassed", "evalue": words, "traceback": [words]}
                cell.outputs = [nbformat.from_dict(error)]
            else:
                note = {"output_type": "stream", "name": "stdout", "text": IN_KERNEL}
                cell.outputs = [nbformat.from_dict(note)] if test.in_kernel else []
        return nb, resources


@dataclass(frozen=True)
class Course:
    """A teacher's folder: assignments, gradebook, what grading keeps in `.grading`."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / ".grading"

    @property
    def journal(self) -> Journal:
        return Journal(self.work / "outcomes")

    @cached_property
    def config(self) -> Config:
        """nbgrader's settings: the course's own nbgrader_config.py, and over it what this grading needs."""
        config = Config()
        if (self.root / "nbgrader_config.py").is_file():
            config = PyFileConfigLoader("nbgrader_config.py", path=str(self.root)).load_config()
        folders = config.CourseDirectory
        folders.root = str(self.root.resolve())
        folders.source_directory, folders.release_directory = SOURCE, RELEASE
        folders.submitted_directory = str(Path(".grading") / "repaired")
        config.Autograde.autograde_preprocessors = [
            Recorded,
            IgnorePattern,
            ClearMetadataPreprocessor,
            LimitOutput,
            SaveAutoGrades,
            AssignLatePenalties,
            CheckCellMetadata,
        ]
        config.Recorded.journal = str(self.journal.folder.resolve())
        return config

    @cached_property
    def api(self) -> NbGraderAPI:
        """nbgrader's own interface, with its log kept quiet: what matters comes back as an error."""
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", "")])  # for alembic
        return nbgrader_api(self.config)

    @property
    def database(self) -> Path | None:
        """The gradebook's file; None where it is on a server."""
        kind, _, path = self.api.coursedir.db_url.partition(":///")
        return Path(path) if kind == "sqlite" else None

    def open(self) -> Gradebook:
        """The gradebook, to be used in a with statement."""
        return Gradebook(self.api.coursedir.db_url, self.api.coursedir.course_id)


@contextmanager
def writing(course: Course) -> Iterator[None]:
    """Be the only run that writes this course's gradebook.

    Raises CourseError: another run is at it, or the gradebook is locked, older than nbgrader, or no gradebook.
    """
    course.work.mkdir(parents=True, exist_ok=True)
    note = course.work / "running.txt"
    try:
        with FileLock(course.work / "lock", timeout=0):
            note.write_text(f"process {os.getpid()}\n", encoding="utf-8")
            check(course)
            yield
    except Timeout:
        who = note.read_text(encoding="utf-8").strip() if note.is_file() else "unknown"
        raise CourseError(
            f"Another grading run ({who}) is writing the gradebook of {course.root}: wait for it, or end it."
        ) from None


def check(course: Course) -> None:
    """See that the gradebook can be written and is of nbgrader's present form.

    Raises CourseError: it can't or isn't; nothing was changed.
    """
    path = course.database
    if path is None or not path.exists() or path.stat().st_size == 0:
        return
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as database:
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            known = "alembic_version" in tables
            versions = [row[0] for row in database.execute("SELECT * FROM alembic_version")] if known else []
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.DatabaseError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise LockedError(
                f"The gradebook {path} is locked by another program. Close formgrader or what else writes it, and "
                "run the same command again: what was graded is kept."
            ) from None
        raise CourseError(
            f"{path} can't be used as a gradebook ({error}). Move it away, or give --course another folder."
        ) from None
    if "grade" in tables and versions != [_present_form()]:
        raise CourseError(
            f"The gradebook {path} has an older form ({', '.join(versions) or 'none'}). Make a copy of it, then run: "
            f"nbgrader db upgrade --db sqlite:///{path}"
        )


def _present_form() -> str:
    from alembic.config import Config as AlembicConfig
    from alembic.script import ScriptDirectory
    from nbgrader.dbutil import ALEMBIC_DIR

    config = AlembicConfig()
    config.set_main_option("script_location", ALEMBIC_DIR)
    return ScriptDirectory.from_config(config).get_current_head()


def prepare(course: Course, assignment: Assignment) -> None:
    """See that the gradebook knows an assignment as it is now; nbgrader adds it where not.

    Raises CourseError: nbgrader refuses, for example since cells were removed for which there are grades.
    """
    wanted = {cell.grade_id: cell.points for cell in assignment.cells if cell.role in ("test", "manual")}
    sources = {cell.grade_id: cell.source for cell in assignment.cells if cell.role == "test"}
    with course.open() as gradebook:
        try:
            notebook = gradebook.find_notebook(assignment.name, assignment.name)
            known = {cell.name: cell.max_score for cell in notebook.grade_cells}
            same = {cell.name: cell.source for cell in notebook.source_cells if cell.name in sources}
        except MissingEntry:
            known, same = {}, {}
    if known == wanted and same == sources:
        return
    spare = course.work / "release"
    config = course.config.copy()
    config.CourseDirectory.release_directory = str(spare.relative_to(course.root))
    with catch_warnings(action="ignore"):
        done = nbgrader_api(config).generate_assignment(assignment.name)
    succeed(done, f"enter {assignment.name!r} into the gradebook")
    shutil.rmtree(spare, ignore_errors=True)


def has_due_date(course: Course, assignment: str) -> bool:
    """Whether the gradebook says until when an assignment is to be handed in."""
    with course.open() as gradebook:
        try:
            return gradebook.find_assignment(assignment).duedate is not None
        except MissingEntry:
            return False


def record(course: Course, assignment: Assignment, outcome: Outcome) -> None:
    """Write an outcome into the gradebook through nbgrader's own preprocessors; doing it again changes nothing.

    Raises CourseError: the gradebook can't be written.
    """
    folder = course.work / "repaired" / outcome.student / outcome.assignment
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(filled(assignment, outcome), folder / f"{assignment.name}.ipynb")
    if outcome.submitted:
        (folder / "timestamp.txt").write_text(outcome.submitted, encoding="utf-8")
    try:
        with catch_warnings(action="ignore"):
            done = course.api.autograde(outcome.assignment, outcome.student, force=True, create=True)
        succeed(done, f"record {outcome.student}'s {outcome.assignment}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def filled(assignment: Assignment, outcome: Outcome) -> nbformat.NotebookNode:
    """The instructor's notebook with a learner's answers in it; where there is none, what the learner was given.

    Formgrader shows Markdown in the teacher's browser with all the HTML that stands in it. Therefore a text goes into
    the gradebook as it was written, as one block of code.
    """
    notebook = nbformat.from_dict(assignment.notebook)
    for cell in assignment.cells:
        if cell.role in ("answer", "manual"):
            target, answer = notebook.cells[cell.index], outcome.answers.get(cell.grade_id, cell.stub)
            as_code = target.cell_type == "markdown" and answer != cell.stub
            target.source = fenced(answer) if as_code else answer
    return notebook


def fenced(text: str) -> str:
    """A text as one block of code in Markdown: its fence is longer than any that the text could close it with."""
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=2) + 1)
    lines = "\n".join(text.splitlines())  # Python knows more ends of lines than a reader of Markdown
    return f"{fence}text\n{lines}\n{fence}"
