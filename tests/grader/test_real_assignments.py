"""The course's own assignments through the real grading: the reference earns every point, an empty hand-in none."""

from __future__ import annotations

import pytest
import torch
from grading_course import sandbox_or_skip

from lorahub_grader import assignments, worker
from lorahub_grader.journal import Outcome


@pytest.fixture(scope="module")
def graded():
    """Grade some answers to an assignment, in one sandbox for all of them."""
    sandbox_or_skip().close()
    kept = worker.Sandboxes()
    before, worker.SANDBOXES = worker.SANDBOXES, kept

    def grade(assignment: assignments.Assignment, answers: dict[str, str]) -> Outcome:
        return worker.work(worker.Job(assignment, "ada", "1", answers, seed="a class", preload=("torch",)))

    yield grade
    kept.close()
    worker.SANDBOXES = before


@pytest.mark.parametrize("name", assignments.names())
def test_the_reference_earns_all_points_and_an_empty_hand_in_none(name: str, graded) -> None:
    assignment = assignments.load(name)
    answers = [cell for cell in assignment.cells if cell.role == "answer"]
    full = graded(assignment, {cell.grade_id: cell.source for cell in answers})
    assert not full.reason
    assert {test.grade_id: test.earned for test in full.tests} == {
        cell.grade_id: cell.points for cell in assignment.cells if cell.role == "test"
    }, full.tests
    empty = graded(assignment, {cell.grade_id: cell.stub for cell in answers})
    assert not empty.reason and empty.earned == 0 and len(empty.tests) >= 5


def test_a_process_that_has_computed_with_threads_can_grade(graded) -> None:
    """A fork has only one thread: a team that its parent's arithmetic has started would be waited for without end."""
    torch.set_num_threads(2)
    torch.randn(1000, 1000).sort()
    assignment = assignments.load("01_lora_layer")
    outcome = graded(assignment, {cell.grade_id: cell.source for cell in assignment.cells if cell.role == "answer"})
    assert not outcome.reason and outcome.earned > 0
