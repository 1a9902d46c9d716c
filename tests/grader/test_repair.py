"""Answers are found by their ids, whatever became of the notebook around them."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from grading_course import NAME, RIGHT, notebook

from lorahub_grader.assignments import Assignment, load
from lorahub_grader.repair import repair, which_assignment

ESSAY = {"essay": "In three sentences."}


@pytest.fixture(scope="module")
def small(built: Path) -> Assignment:
    return load(NAME, built)


@pytest.fixture
def handed_in(built: Path) -> nbformat.NotebookNode:
    return notebook(built, RIGHT | ESSAY)


def sources(made: object, assignment: Assignment) -> dict[str, str]:
    return repair(json.dumps(made).encode(), assignment)[0]


def notes(made: object, assignment: Assignment) -> str:
    return " ".join(repair(json.dumps(made).encode(), assignment)[1])


def find(made: nbformat.NotebookNode, grade_id: str) -> nbformat.NotebookNode:
    return next(c for c in made.cells if c.metadata.get("nbgrader", {}).get("grade_id") == grade_id)


def test_honest_work_is_taken_as_it_is(handed_in, small) -> None:
    assert sources(handed_in, small) == RIGHT | ESSAY
    assert notes(handed_in, small) == ""


def test_reordered_cells_are_put_back(handed_in, small) -> None:
    handed_in.cells.reverse()
    assert sources(handed_in, small) == RIGHT | ESSAY


def test_a_deleted_answer_is_missing_and_deleted_tests_are_not_missed(handed_in, small) -> None:
    handed_in.cells = [
        c for c in handed_in.cells if c.metadata.get("nbgrader", {}).get("grade_id") in ("root", "guess")
    ]
    assert sources(handed_in, small) == {name: RIGHT[name] for name in ("root", "guess")}
    assert "double: the cell was missing" in notes(handed_in, small)


def test_of_copies_the_last_that_was_filled_in_counts(handed_in, small, built) -> None:
    stub = next(c.stub for c in small.cells if c.grade_id == "double")
    for text in ("def double(x):\n    return 2 * x", stub, "  \n"):
        copy = nbformat.from_dict(find(handed_in, "double"))
        copy.source = text
        handed_in.cells.append(copy)
    assert sources(handed_in, small)["double"] == "def double(x):\n    return 2 * x"
    assert "double: the cell was there 4 times" in notes(handed_in, small)


def test_a_cells_type_and_everything_else_about_it_is_put_right(handed_in, small) -> None:
    find(handed_in, "double").cell_type = "markdown"
    find(handed_in, "essay").cell_type = "code"
    handed_in.metadata.kernelspec.name = "julia"
    handed_in["nbformat_minor"] = 99
    for cell in handed_in.cells:
        cell.pop("id", None)
        cell.pop("outputs", None)
    assert sources(handed_in, small) == RIGHT | ESSAY


def stripped(made: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without any metadata and ids of cells, as some editors write a notebook."""
    for cell in made.cells:
        cell.metadata = {}
        cell.pop("id", None)
    return made


def test_without_any_metadata_answers_are_found_by_content_and_place(handed_in, small) -> None:
    assert sources(stripped(handed_in), small) == RIGHT | ESSAY
    said = notes(handed_in, small)
    assert "double: the cell had lost its id and was found by what it defines" in said
    assert "essay: the cell had lost its id and was found by its place" in said
    assert "own cells" not in said


def test_without_metadata_own_cells_are_told_from_answers(handed_in, small) -> None:
    handed_in.cells.insert(2, nbformat.v4.new_code_cell("double_twice = 4\nprint(double_twice)"))
    assert sources(stripped(handed_in), small) == RIGHT | ESSAY
    assert "1 of your own cells are not graded" in notes(handed_in, small)


def test_without_metadata_what_can_not_be_told_apart_is_said(handed_in, small) -> None:
    handed_in.cells.append(nbformat.v4.new_markdown_cell("Another text."))
    assert sources(stripped(handed_in), small) == RIGHT
    assert "essay: the cell had lost its id; 2 cells stand in its place" in notes(handed_in, small)


def test_own_cells_are_left_out_and_said_so(handed_in, small) -> None:
    handed_in.cells.insert(2, nbformat.v4.new_code_cell("import antigravity"))
    handed_in.cells.insert(2, nbformat.v4.new_markdown_cell("a note"))
    assert sources(handed_in, small) == RIGHT | ESSAY
    assert "1 of your own cells are not graded" in notes(handed_in, small)


def test_old_notebooks_and_sources_in_lines_are_read(handed_in, small) -> None:
    cells = [{**c, "input": c["source"].splitlines(keepends=True)} for c in json.loads(json.dumps(handed_in))["cells"]]
    for cell in cells:
        del cell["source"]
    assert sources({"nbformat": 3, "worksheets": [{"cells": cells}]}, small) == RIGHT | ESSAY


def test_nonsense_in_cells_is_passed_over(handed_in, small) -> None:
    nonsense = [
        3,
        None,
        {},
        {"source": 5},
        {"source": "x", "metadata": 7},
        {"source": "x", "metadata": {"nbgrader": []}},
        {"source": ["a", 1], "metadata": {"nbgrader": {"grade_id": ["double"]}}},
        {"source": "a\x00b\ud800", "metadata": {"nbgrader": {"grade_id": {}}}},
    ]
    made = json.loads(json.dumps(handed_in))
    made["cells"] = [*nonsense, *made["cells"]]
    assert sources(made, small) == RIGHT | ESSAY
    find(handed_in, "double").source = "x = 'a\x00b\ud800'"
    assert sources(handed_in, small)["double"] == "x = 'ab?'"


def test_an_answer_without_end_is_left_out(handed_in, small) -> None:
    find(handed_in, "double").source = "#" * 300_000
    assert "double" not in sources(handed_in, small) and "more than 200,000 characters" in notes(handed_in, small)


def test_a_notebook_tells_which_assignment_it_is(handed_in) -> None:
    content = json.dumps(handed_in).encode()
    known = {NAME: frozenset(RIGHT), "02_other": frozenset({"double"}), "03_none": frozenset({"other"})}
    assert which_assignment(content, known) == NAME
    assert which_assignment(content, {"02_other": frozenset({"root"}), "04_same": frozenset({"guess"})}) is None
    assert which_assignment(content, {"03_none": frozenset({"other"})}) is None
    assert which_assignment(b"{", known) is None
