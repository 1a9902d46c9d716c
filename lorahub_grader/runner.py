"""Grades a class: workers find out, one parent writes the gradebook, every submission ends with a row."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from lorahub_edu.errors import CourseError
from lorahub_grader import assignments, gradebook
from lorahub_grader.assignments import RELEASE, SOURCE, Assignment, LockedError
from lorahub_grader.collect import Collected, Submission, collect
from lorahub_grader.gradebook import Course
from lorahub_grader.handed_in import shown
from lorahub_grader.journal import Outcome
from lorahub_grader.repair import read
from lorahub_grader.sandbox import choose
from lorahub_grader.sandbox.process import explain
from lorahub_grader.worker import SANDBOXES, Job, outcome_of, work, work_apart
from lorahub_studies.jobs import finished

PACKAGES = ("lorahub_checks", "lorahub_edu", "lorahub_grader")  # what a submission's points follow from


@dataclass(frozen=True)
class Graded:
    """What a run did: every outcome by assignment and student, how many of them were new, what was passed over."""

    outcomes: tuple[Outcome, ...]
    new: int
    ignored: tuple[str, ...]
    sandbox: str


def grade(
    course: Course,
    place: Path,
    *,
    assignment: str | None = None,
    sandbox: str | None = None,
    unsafe: bool = False,
    executor: Executor | None = None,
    settings: dict | None = None,
    report: Callable[[Outcome, int, int], None] = lambda outcome, done, of: None,
) -> Graded:
    """Grade every submission in a folder or archive (see `collect.collect`) into the course's gradebook.

    What was graded before and has not changed is not graded again, so a run that was killed goes on. `sandbox` is a
    kind; None takes the first that works, and `unsafe` goes on without one. An `executor` runs `worker.work_apart`.
    `settings` are fields of `worker.Job`. `report` gets each outcome when the gradebook has it, its number, and of how
    many.
    Raises CourseError: nothing to grade, no sandbox, or a gradebook that can't be written; what was found out is kept.
    """
    known = {name: assignments.load(name, course.root) for name in assignments.names(course.root)}
    found = collect(place, {name: loaded.answer_ids for name, loaded in known.items()}, assignment)
    kind = choose.choose(sandbox, unsafe, hidden(course))
    with gradebook.writing(course):
        for name in sorted({submission.assignment for submission in found.submissions}):
            gradebook.prepare(course, known[name])
        outcomes, new = [], 0
        try:
            jobs, ready = _sorted_out(course, found, known, kind, settings or {})
            for outcome in _all(course, jobs, ready, executor):
                new += not outcome.recorded
                outcomes.append(_recorded(course, known[outcome.assignment], outcome))
                report(outcomes[-1], len(outcomes), len(found.submissions))
        finally:
            SANDBOXES.close()
    ordered = sorted(outcomes, key=lambda outcome: (outcome.assignment, outcome.student))
    return Graded(tuple(ordered), new, found.ignored, kind)


def hidden(course: Course) -> tuple[str, ...]:
    """What no answer may see."""
    return tuple(str(course.root / name) for name in (SOURCE, RELEASE, ".grading", "gradebook.db"))


def _sorted_out(
    course: Course, found: Collected, known: dict[str, Assignment], kind: str, settings: dict
) -> tuple[list[Job], list[Outcome]]:
    """The jobs to be done, and the outcomes that are known already: graded before, or of what can't be read."""
    jobs, ready = [], []
    secret = _secret(course)
    due = {name for name in known if gradebook.has_due_date(course, name)}
    for submission in found.submissions:
        asked = any(note.startswith("was it late?") for note in submission.notes)
        if submission.assignment in due and not (submission.submitted or asked or submission.platform == "canvas"):
            question = "was it late? there is a due date, and nothing says when it was handed in"
            submission = replace(submission, notes=(*submission.notes, question))
        job, trouble = _job(submission, known[submission.assignment], secret, kind, settings)
        before = course.journal.find(submission.assignment, submission.student)
        if before is not None and before.key == job.key:
            ready.append(before)
        elif trouble:
            ready.append(course.journal.keep(outcome_of(job, [], f"unreadable: {trouble}")))
        else:
            jobs.append(job)
    return jobs, ready


def _job(submission: Submission, assignment: Assignment, secret: str, kind: str, settings: dict) -> tuple[Job, str]:
    answers, notes, trouble = read(*submission.read(), assignment)
    notes = (*submission.notes, *notes)
    # What one hand-in learns of its inputs, in feedback or by a friend's, is of no use to another.
    seed = f"{secret} {assignment.name} {submission.student} {json.dumps(answers, sort_keys=True)}"
    seed = hashlib.sha256(seed.encode()).hexdigest()
    cells = [(cell.grade_id, cell.role, cell.source, cell.points, sorted(cell.options)) for cell in assignment.cells]
    unsafe = kind == choose.UNSAFE
    whose = {"name": submission.name, "platform": submission.platform}
    what = json.dumps([code(), seed, answers, cells, submission.submitted, trouble, notes, whose, unsafe])
    key = hashlib.sha256(what.encode()).hexdigest()
    job = Job(
        assignment, submission.student, key, answers, notes, submission.submitted, seed, kind, **whose, **settings
    )
    return job, trouble


@cache
def code(root: Path = assignments.ROOT) -> str:
    """A digest of the course's code: after a check was corrected, everything is graded again."""
    digest = hashlib.sha256()
    for path in sorted(path for name in PACKAGES for path in (root / name).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _all(course: Course, jobs: list[Job], ready: list[Outcome], executor: Executor | None) -> Iterator[Outcome]:
    """Every outcome; a new one is on disk before it is given out.

    An error of the grading itself becomes the row of that submission alone. Without its key it is graded again.
    """
    yield from ready
    for job, outcome, reason in finished(jobs, work if executor is None else work_apart, executor):
        if outcome is None:
            words = shown(reason[:200])
            outcome = outcome_of(replace(job, key=""), [], f"died: the grading itself failed ({words})")
        yield course.journal.keep(outcome)


def _recorded(course: Course, assignment: Assignment, outcome: Outcome) -> Outcome:
    """The outcome, after the gradebook has it; one that nbgrader can't take must not stop the others."""
    if outcome.recorded:
        return outcome
    for without_answers in (False, True):
        try:
            gradebook.record(course, assignment, outcome)
            return course.journal.keep(replace(outcome, recorded=True))
        except LockedError:
            raise
        except CourseError as error:
            if without_answers:
                break
            note = f"nbgrader could not take the answers themselves: {shown(str(error))}"
            outcome = course.journal.keep(replace(outcome, answers={}, outputs={}, notes=(*outcome.notes, note)))
    return replace(outcome, notes=(*outcome.notes, "the gradebook does not have these points"))


def _secret(course: Course) -> str:
    """The course's own secret, from which the inputs of its tests follow; made once."""
    path = course.work / "secret.txt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(16), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def table(outcomes: Iterable[Outcome]) -> list[tuple[str, str, str, str]]:
    """A row for each outcome: student, assignment, points, and what happened."""
    rows = []
    for outcome in outcomes:
        slow = [f"{test.grade_id}: {test.message}" for test in outcome.tests if "no answer within" in test.message]
        words = [outcome.reason and explain(outcome.reason), *outcome.notes, *(slow if not outcome.reason else [])]
        what = shown("; ".join(word for word in words if word))
        rows.append((outcome.student, outcome.assignment, f"{outcome.earned:g} of {outcome.points:g}", what))
    return rows
