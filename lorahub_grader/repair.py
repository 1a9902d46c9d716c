"""Takes the learner's answers out of what was handed in, by their ids, whatever became of the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lorahub_edu.errors import CourseError
from lorahub_grader.assignments import Assignment, Cell

ANSWER_CHARACTERS = 200_000
CELLS = 10_000
DEFINED = re.compile(r"^(?:(?:async\s+)?def|class)\s+(\w+)|^(\w+)\s*(?::[^=\n]+)?=(?!=)", re.MULTILINE)


@dataclass(frozen=True)
class _Cell:
    """A cell as it was handed in; `grade_id` is None where its metadata names none."""

    grade_id: str | None
    source: str
    is_code: bool


def repair(content: bytes, assignment: Assignment) -> tuple[dict[str, str], tuple[str, ...]]:
    """The answers in a submission, by id and only for cells that the assignment has, and notes on what was done.

    Tests, locked cells, metadata and everything else come from the instructor's notebook, so nothing that was done to
    them counts: deleted, copied, retyped or reordered cells are put right. Where a cell is there several times, the
    last that was filled in counts, and parts of one are put together.
    Raises CourseError: it is no notebook.
    """
    cells = list(_cells(content))
    sources, notes, blank = {}, [], True
    for wanted in assignment.cells:
        if wanted.role not in ("answer", "manual"):
            continue
        found = [cell.source for cell in cells if cell.grade_id == wanted.grade_id]
        if not any(_is_filled(source, wanted) for source in found):
            others, note = _without_id(cells, wanted, assignment, bool(found))
            found = others or found
            notes += [f"{wanted.grade_id}: {note}"] if note else []
        if not found:
            continue
        sources[wanted.grade_id], which = _chosen(found, wanted)
        blank = blank and not _is_filled(sources[wanted.grade_id], wanted)
        if len(found) > 1:
            notes.append(f"{wanted.grade_id}: the cell was there {len(found)} times; {which}")
        if len(sources[wanted.grade_id]) > ANSWER_CHARACTERS:
            notes.append(f"{wanted.grade_id}: more than {ANSWER_CHARACTERS:,} characters, left out")
            del sources[wanted.grade_id]
    if sources and blank:
        notes.append("nothing was filled in")
    known = {cell.grade_id for cell in assignment.cells}
    given = {cell.stub.strip() for cell in assignment.cells} | {source.strip() for source in sources.values()} | {""}
    own = sum(cell.is_code and cell.grade_id not in known and cell.source.strip() not in given for cell in cells)
    if own:
        notes.append(f"{own} of your own cells are not graded: write all that an answer needs into its cell")
    return sources, tuple(notes)


def _without_id(cells: list[_Cell], wanted: Cell, assignment: Assignment, empty: bool) -> tuple[list[str], str]:
    """An answer that is not in its cell, and how it was found: editors such as Colab drop a cell's metadata.

    A cell that defines what the answer defines is the answer; where Jupyter merged cells, it is another answer's. An
    answer that defines nothing is the one unknown cell between the given cells around it.
    `empty`: the cell is there, and nothing was filled in.
    """
    missing, lost, it = "the cell was missing", "the cell had lost its id", " and"
    if empty:
        missing, lost, it = "", "the cell was left empty", "; another one"
    if names := set(wanted.names):
        fitting = [cell for cell in cells if cell.is_code and names <= _defined(cell.source)]
        if found := [cell.source for cell in fitting if cell.grade_id is None]:
            return found, f"{lost}{it} was found by what it defines"
        merged = [cell.source for cell in fitting if cell.grade_id in assignment.answer_ids and not empty]
        return merged, "the cell was missing; another answer's defines the same" if merged else missing
    given = {cell.stub.strip(): cell.index for cell in assignment.cells if cell.role not in ("answer", "manual")}
    given.pop("", None)  # a test whose source is hidden; learners make empty cells too
    place, between = -1, []
    for cell in cells:
        place = given.get(cell.source.strip(), place)
        unknown = cell.grade_id is None and cell.source.strip() and cell.source.strip() not in given
        if unknown and place == _given_before(wanted, given.values()) and cell.is_code == wanted.is_code:
            between.append(cell.source)
    if len(between) == 1:
        return between, f"{lost}{it} was found by its place"
    return [], f"{lost}; {len(between)} cells stand in its place" if between else missing


def _given_before(wanted: Cell, places: Iterable[int]) -> int:
    return max((place for place in places if place < wanted.index), default=-1)


def _defined(source: str) -> set[str]:
    """Names that a cell defines at its top level, be it right Python or not."""
    return {name for names in DEFINED.findall(source) for name in names if name}


def read(content: bytes, trouble: str, assignment: Assignment) -> tuple[dict[str, str], tuple[str, ...], str]:
    """The answers in what was read of a submission, notes on them, and why there are none if so."""
    if trouble:
        return {}, (), trouble
    try:
        return *repair(content, assignment), ""
    except CourseError as error:
        return {}, (), str(error)
    except Exception as error:  # whatever one notebook holds, the others are graded
        return {}, (), f"it can't be read ({type(error).__name__})"


def which_assignment(content: bytes, assignments: Mapping[str, frozenset[str]]) -> str | None:
    """The assignment, of ids of answers by name, that shares most with a notebook; None where none or several do."""
    try:
        ids = {cell.grade_id for cell in _cells(content)}
    except Exception:  # of any notebook; what is wrong with it is said when it is graded
        return None
    shared = {name: len(ids & own) for name, own in assignments.items()}
    most = max(shared.values(), default=0)
    best = [name for name, count in shared.items() if count == most]
    return best[0] if most and len(best) == 1 else None


def text_of(content: bytes) -> str:
    """A file as text: UTF-16 or UTF-8 as its first bytes say, else Windows-1252."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _cells(content: bytes) -> Iterator[_Cell]:
    """Each cell that has a source; nothing is trusted to be what it should be. Raises CourseError: no notebook."""
    try:
        notebook = json.loads(text_of(content))
    except (ValueError, RecursionError):
        raise CourseError("it is not a notebook: its JSON is broken") from None
    if type(notebook) is dict and "cells" not in notebook and type(notebook.get("worksheets")) is list:
        notebook = next(iter(notebook["worksheets"]), None)  # the form before 2015
    if type(notebook) is not dict or type(notebook.get("cells")) is not list:
        raise CourseError("it is not a notebook: it has no cells")
    if len(notebook["cells"]) > CELLS:
        raise CourseError(f"it has more than {CELLS:,} cells")
    for cell in notebook["cells"]:
        if type(cell) is not dict:
            continue
        source = cell.get("source", cell.get("input", ""))
        if type(source) is list:
            source = "".join(part for part in source if type(part) is str)
        if type(source) is not str:
            continue
        metadata = cell.get("metadata")
        said = metadata.get("nbgrader") if type(metadata) is dict else None
        grade_id = said.get("grade_id") if type(said) is dict else None
        if type(grade_id) is not str:
            grade_id = None
        clean = source.replace("\x00", "").encode("utf-8", "replace").decode()
        yield _Cell(grade_id, clean, cell.get("cell_type") == "code")


def _is_filled(source: str, wanted: Cell) -> bool:
    return source.strip() not in ("", wanted.stub.strip())


def _chosen(found: list[str], wanted: Cell) -> tuple[str, str]:
    """Of several copies of a cell the last that was filled in; Jupyter gives parts of a split cell the same id."""
    filled = [source for source in found if _is_filled(source, wanted)] or found[-1:]
    defined = [_defined(source).intersection(wanted.names) for source in filled]
    if len(filled) > 1 and sum(map(len, defined)) == len(set().union(*defined)):  # no name twice
        return "\n\n".join(filled), "its parts were put together"
    last = max(range(len(filled)), key=lambda place: (len(defined[place]), place))
    return filled[last], "the last that was filled in counts"
