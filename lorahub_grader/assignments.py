"""Assignments as files: one source each, from which nbgrader's source and release notebooks are generated.

`solutions/src/NAME.py` (jupytext's percent format) is written by hand. A cell's first line says what it is:
`answer="id"` a cell that the learner fills in, `test="id" points=2` a graded test, `manual="id" points=2` an answer
that a person grades, nothing a cell that is the same for all.
"""

from __future__ import annotations

import ast
import html
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub_edu.errors import CourseError, near_matches

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config

# Jupyter's libraries and torch are imported where they are used, so that a mistyped assignment is answered at once.

ROOT = Path(__file__).resolve().parents[1]
SOURCE, RELEASE = "solutions", "exercises"
ROLES = ("answer", "test", "manual")
OPTIONS = {"points", "infinite", "in_kernel", "changes_inputs"}  # of a test, beside what says what it is
OWN = "lorahub_edu"  # of a notebook's or cell's metadata, what is ours
HINTS = re.compile(r"\{\{hints (\S+)\}\}")


class LockedError(CourseError):
    """Another program holds the gradebook."""


@dataclass(frozen=True)
class Cell:
    """One cell of an assignment.

    `role` is "answer", "test", "manual", "code" (run as it is) or "text"; `source` is the instructor's, `stub` what the
    learner was given; `options` are a test's. An answer that is not `is_code` is in words.
    """

    index: int
    role: str
    source: str
    stub: str
    grade_id: str = ""
    points: float = 0.0
    options: frozenset[str] = frozenset()
    is_code: bool = True

    @property
    def names(self) -> dict[str, str]:
        """What the instructor's version defines at its top level: "function", "class" or "value", by name."""
        found: dict[str, str] = {}
        for node in ast.parse(self.source).body if self.is_code else ():
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[node.name] = "function" if isinstance(node, ast.FunctionDef) else "class"
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                stored = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
                found |= dict.fromkeys((name for name in stored if name not in found), "value")
        return found


@dataclass(frozen=True)
class Assignment:
    """An assignment: its name, its cells in order, and the instructor's notebook."""

    name: str
    cells: tuple[Cell, ...]
    notebook: NotebookNode

    @property
    def points(self) -> float:
        return sum(cell.points for cell in self.cells)

    @property
    def may_import(self) -> tuple[str, ...] | None:
        """The rooms of the package that answers may import while they are graded; None is all."""
        own = self.notebook.metadata.get(OWN)
        return None if own is None else tuple(own["may_import"])

    @property
    def answer_ids(self) -> frozenset[str]:
        return frozenset(cell.grade_id for cell in self.cells if cell.role in ("answer", "manual"))


def sources(root: Path = ROOT) -> list[str]:
    """The names of all assignments that have a source, in order."""
    return sorted(path.stem for path in (root / SOURCE / "src").glob("*.py"))


def names(root: Path = ROOT) -> list[str]:
    """The names of all assignments that can be graded (their instructor's notebook is there), in order."""
    return sorted(path.parent.name for path in (root / SOURCE).glob("*/*.ipynb") if path.stem == path.parent.name)


def check_name(name: str, known: Sequence[str]) -> str:
    """The name of an assignment, if it is a known one; else a CourseError that names near matches."""
    if name not in known:
        raise CourseError(f"There is no assignment {name!r}. {near_matches(name, known)}")
    return name


def build_source(name: str, root: Path = ROOT) -> NotebookNode:
    """The instructor's notebook of a source, with nbgrader's metadata; the same source gives the same notebook.

    Raises CourseError: there is no such source, or a cell's first line says what makes no sense.
    """
    import jupytext
    import nbformat

    path = root / SOURCE / "src" / f"{check_name(name, sources(root))}.py"
    notebook = jupytext.read(path, fmt="py:percent")
    metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
    }
    if OWN in notebook.metadata:
        metadata[OWN] = {"may_import": list(notebook.metadata[OWN]["may_import"])}
    notebook.metadata = nbformat.from_dict(metadata)
    seen: set[str] = set()
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"{name[:2]}-{index:03d}"
        cell["metadata"] = _metadata(cell, f"{path.name}, cell {index + 1}", seen)
        if cell.cell_type == "markdown":
            cell.source = HINTS.sub(lambda match: _hints(match.group(1)), cell.source)
    nbformat.validate(notebook)
    return notebook


def _metadata(cell: NotebookNode, where: str, seen: set[str]) -> dict:
    """nbgrader's metadata for what a cell's first line says."""
    said = {key: value for key, value in cell.metadata.items() if key != "lines_to_next_cell"}  # jupytext's own
    roles = [role for role in ROLES if role in said]
    if not roles:
        locked = {"grade": False, "solution": False, "locked": True, "task": False, "schema_version": 3}
        return {"nbgrader": locked | {"grade_id": cell["id"]}} if cell.cell_type == "code" else {}
    role, grade_id = roles[0], str(said[roles[0]])
    unknown = set(said) - {role} - OPTIONS
    if len(roles) > 1 or unknown:
        raise CourseError(f"{where}: {sorted(said)} don't go together; known are {[*ROLES, *sorted(OPTIONS)]}.")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", grade_id) or grade_id in seen:
        raise CourseError(f"{where}: the id {grade_id!r} is used twice, or has more than letters, digits, - and _.")
    if (role == "answer") == ("points" in said):
        raise CourseError(f"{where}: {grade_id!r} needs points if it is a test or manual, and has none if an answer.")
    seen.add(grade_id)
    nbgrader = {
        "grade": role != "answer",
        "grade_id": grade_id,
        "locked": role == "test",
        "schema_version": 3,
        "solution": role != "test",
        "task": False,
    }
    if role != "answer":
        nbgrader["points"] = said["points"]
    options = sorted(OPTIONS & {key for key, value in said.items() if value is True})
    return {"nbgrader": nbgrader} | ({OWN: {"options": options}} if options else {})


def _hints(problem: str) -> str:
    """The three hints of a check, each folded away."""
    words = ("Hint 1, a nudge", "Hint 2, the concept", "Hint 3, a worked step")
    from lorahub_checks.problems import get_problem

    pairs = zip(words, map(_as_markdown, get_problem(problem).hints), strict=True)
    return "\n".join(f"<details><summary>{title}</summary>\n\n{hint}\n\n</details>" for title, hint in pairs)


def _as_markdown(hint: str) -> str:
    """A hint as it reads: stars are products and powers, not emphasis; what stands in backticks stays code."""
    parts = hint.split("`")
    parts[::2] = [html.escape(part, quote=False).replace("*", "&#42;") for part in parts[::2]]
    return "`".join(parts)


def build(name: str, root: Path = ROOT, into: Path | None = None) -> tuple[Path, Path]:
    """Write an assignment's two notebooks: the instructor's, and the learner's as nbgrader makes it of that."""
    into = into or root
    ours = into / SOURCE / name / f"{name}.ipynb"
    ours.parent.mkdir(parents=True, exist_ok=True)
    import nbformat

    nbformat.write(build_source(name, root), ours)
    theirs = into / RELEASE / name / f"{name}.ipynb"
    with tempfile.TemporaryDirectory(prefix="lorahub-edu-") as folder:
        course = Path(folder)
        shutil.copytree(ours.parent, course / SOURCE / name)
        _generate(course, name)
        theirs.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(course / RELEASE / name / theirs.name, theirs)
    return ours, theirs


def _generate(course: Path, name: str) -> None:
    """Have nbgrader make the learner's notebook, without a gradebook."""
    from traitlets.config import Config

    config = Config()
    config.CourseDirectory.root = str(course.resolve())
    config.CourseDirectory.source_directory, config.CourseDirectory.release_directory = SOURCE, RELEASE
    config.GenerateAssignment.no_database = True
    config.SaveCells.enabled = False
    with warnings.catch_warnings(action="ignore"):  # of nbgrader's own use of its libraries
        done = nbgrader_api(config).generate_assignment(name)
    succeed(done, f"make the learner's notebook of {name!r}")


def nbgrader_api(config: Config) -> NbGraderAPI:
    """nbgrader's own interface, saying nothing by itself: what matters comes back from its calls."""
    from nbgrader.apps import NbGraderAPI

    logging.getLogger("traitlets").addHandler(logging.NullHandler())
    api = NbGraderAPI(config=config)
    api.log.setLevel(logging.ERROR)
    return api


def succeed(done: dict, what: str) -> None:
    """Turn what one of nbgrader's calls returned into an error if it failed.

    `what`: should have been done, after "nbgrader can't".
    Raises LockedError: another program holds the gradebook.
    Raises CourseError: it failed otherwise; with the first error that nbgrader logged.
    """
    if done["success"]:
        return
    said = (done.get("log") or done.get("error") or "").strip()
    if "locked" in said:
        raise LockedError(
            f"nbgrader can't {what}: the gradebook is locked. Close what writes it; then the same command goes on."
        )
    errors = re.findall(r"^\s*(?:\w+\.)*\w*(?:Error|Exception|Entry): (.+)$", said, flags=re.MULTILINE)
    raise CourseError(f"nbgrader can't {what}: {errors[0] if errors else said[-300:] or 'no reason given'}")


def differences(root: Path = ROOT) -> list[str]:
    """What is committed and isn't what the sources give: one line each, none when all is well."""
    found = []
    with tempfile.TemporaryDirectory(prefix="lorahub-edu-") as folder:
        for name in sources(root):
            for fresh in build(name, root, Path(folder)):
                relative = fresh.relative_to(folder)
                committed = root / relative
                if not committed.is_file() or committed.read_bytes() != fresh.read_bytes():
                    found.append(f"{relative} is not what its source gives: lorahub-edu build {name}")
    for name in names(root):
        if name not in sources(root):
            found.append(f"{SOURCE}/{name} has no source in {SOURCE}/src")
    return found


def load(name: str, root: Path = ROOT) -> Assignment:
    """An assignment as the grading needs it: from the instructor's notebook and the learner's.

    Raises CourseError: there is no such assignment, or it was not built.
    """
    import nbformat

    ours, theirs = (root / part / name / f"{name}.ipynb" for part in (SOURCE, RELEASE))
    if not ours.is_file() or not theirs.is_file():
        known = names(root)
        raise CourseError(f"There is no built assignment {name!r} in {root}. {near_matches(name, known)}")
    notebook, release = (nbformat.read(path, as_version=4) for path in (ours, theirs))
    cells = []
    for index, (cell, given) in enumerate(zip(notebook.cells, release.cells, strict=True)):
        said = cell.metadata.get("nbgrader", {})
        grade, solution = said.get("grade", False), said.get("solution", False)
        role = "manual" if grade and solution else "test" if grade else "answer" if solution else cell.cell_type
        options = frozenset(cell.metadata.get(OWN, {}).get("options", ()))
        cells.append(
            Cell(
                index,
                "text" if role == "markdown" else role,
                cell.source,
                given.source,
                said.get("grade_id", ""),
                float(said.get("points", 0)),
                options,
                cell.cell_type == "code",
            )
        )
    return Assignment(name, tuple(cells), notebook)
