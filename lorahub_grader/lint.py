"""The checks are checked: right answers must be accepted however they are written, wrong ones refused with the words.

`solutions/variants/*.py` holds, for each problem, right answers (`RIGHT[id] = {name: answer}`) and wrong ones
(`WRONG[id] = {name: (answer, words)}`, where the words are part of the message that names the mistake). The
reference and the blank stub come out of the assignment that asks for the problem.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lorahub_checks.problems import Report, check
from lorahub_edu.errors import CourseError
from lorahub_edu.show.graded import NotSatisfiedError, require
from lorahub_grader import assignments
from lorahub_grader.assignments import ROOT, SOURCE, Assignment

RIGHT_NEEDED, WRONG_NEEDED = 2, 5
SEEDS = (0, 1)
EMPTY = ("not tried yet", "is still empty")  # what a blank place is told, whole or in part
# What can be wrong with a check.
ACCEPTED, REFUSED = "accepted though wrong", "refused though right"
OTHER_WORDS, MISSING = "refused with other words", "missing"


@dataclass(frozen=True)
class Variants:
    """Answers to one problem: right ones by name, and wrong ones with the words of the intended message."""

    problem: str
    right: Mapping[str, object]
    wrong: Mapping[str, tuple[object, str]]


@dataclass(frozen=True)
class Asked:
    """A problem that an assignment asks for: the name that is tested, the reference and the blank stub."""

    problem: str
    assignment: str
    name: str
    reference: object
    stub: object


@dataclass(frozen=True)
class Judgement:
    """What a problem's check made of its variants: `faults` are what is wrong with it, and which answer shows it."""

    problem: str
    assignment: str
    right: int
    wrong: int
    faults: list[tuple[str, str]] = field(default_factory=list)


def variants(root: Path = ROOT) -> dict[str, Variants]:
    """The answers of all problems that have some, by the problem's id, in order.

    Raises CourseError: a file is not in the agreed form, or two files hold the same problem.
    """
    found: dict[str, Variants] = {}
    for path in sorted((root / SOURCE / "variants").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"lorahub_edu_variants_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses and error messages look for it
        spec.loader.exec_module(module)
        right, wrong = getattr(module, "RIGHT", None), getattr(module, "WRONG", None)
        if not isinstance(right, dict) or not isinstance(wrong, dict):
            raise CourseError(
                f"{path} needs RIGHT {{id: {{name: answer}}}} and WRONG {{id: {{name: (answer, words)}}}}."
            )
        for id in sorted({*right, *wrong}):
            if id in found:
                raise CourseError(f"{path} holds answers to {id}, but another file does so too: put them together.")
            found[id] = Variants(id, right.get(id, {}), wrong.get(id, {}))
    return {id: found[id] for id in sorted(found, key=lambda id: [int(part) for part in id.split(".")])}


def asked(assignment: Assignment) -> list[Asked]:
    """The problems of a built assignment, whose cells are run here, with their references and blank stubs.

    Raises CourseError: a cell of the instructor's ends with an error, or a test is no call of `require`.
    """
    references, stubs = run_cells(assignment, blank=False), run_cells(assignment, blank=True)
    found = []
    for cell in assignment.cells:
        if cell.role == "test":
            calls = list(_required(cell.source))
            if not calls:
                raise CourseError(
                    f"{assignment.name}: {cell.grade_id} calls no require(id, name), so nothing tests it."
                )
            found += [Asked(id, assignment.name, name, references[name], stubs.get(name)) for id, name in calls]
    return found


def _required(source: str) -> Iterator[tuple[str, str]]:
    """The problem and the name of each `require("id", name)` in a test's source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
            id, name = node.args
            yield ast.literal_eval(id), name.id


def run_cells(assignment: Assignment, blank: bool) -> dict[str, Any]:
    """What a notebook's cells define, tests left out: the instructor's, or the learner's with nothing filled in."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in assignment.cells:
        if cell.role not in ("answer", "code"):
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
                exec(compile(cell.stub if blank else cell.source, cell.grade_id, "exec"), namespace)
        except Exception as error:
            if not blank:  # a blank place may end with an error, and so may what uses it
                raise CourseError(f"{assignment.name}: a cell ends with {type(error).__name__}: {error}") from error
    return namespace


def message(report: Report) -> str:
    """What a learner is told first: the misconception of the first property that fails, or what was seen of it."""
    return next((p.misconception or f"{p.name}: {p.seen}" for p in report.properties if not p.passed), "")


def judge(id: str, answer: object, seeds: tuple[int, ...] = SEEDS) -> list[Report]:
    """What the public check and the graded test make of an answer: a report a seed of both.

    Reports of graded tests that passed are left out. The graded test draws inputs of its own for each seed.
    """
    reports = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # an answer may draw numbers of its own
            reports.append(check(id, answer, seed=seed))
            try:
                require(id, answer, seed=f"lint {seed}")
            except NotSatisfiedError as error:
                reports.append(error.report)
    return reports


def judgement(given: Variants, asked: Asked | None, seeds: tuple[int, ...] = SEEDS) -> Judgement:
    """Judge all answers to a problem; `asked` is None if only a lesson asks for it."""
    rights = dict(given.right) | ({"the reference": asked.reference} if asked else {})
    found = Judgement(given.problem, asked.assignment if asked else "", len(rights), len(given.wrong))
    for name, answer in rights.items():
        bad = [report for report in judge(given.problem, answer, seeds) if not report.passed or not report.properties]
        if bad:
            found.faults.append((REFUSED, f"{name}: {message(bad[0])}"))
    for name, (answer, words) in given.wrong.items():
        reports = judge(given.problem, answer, seeds)
        refused = [message(report) for report in reports if not report.passed]
        if len(refused) < 2 * len(seeds):
            found.faults.append((ACCEPTED, name))
        strange = [told for told in refused if words not in told]
        if strange:
            found.faults.append((OTHER_WORDS, f"{name}: told {strange[0]!r}, not {words!r}"))
    if asked:
        told = [str(report) for report in judge(given.problem, asked.stub, seeds[:1])]
        if len(told) < 2 or not all(any(empty in words for empty in EMPTY) for words in told):
            found.faults.append((ACCEPTED, "the blank stub"))
    needed = RIGHT_NEEDED + 1  # the reference, or what stands for it in a lesson, and others
    if len(rights) < needed:
        found.faults.append((MISSING, f"{needed - len(rights)} more right answers"))
    if len(given.wrong) < WRONG_NEEDED:
        found.faults.append((MISSING, f"{WRONG_NEEDED - len(given.wrong)} more wrong answers"))
    return found


def judgements(root: Path = ROOT, names: list[str] | None = None) -> Iterator[Judgement]:
    """Judge the variants of every problem of some assignments; by default also of those that only lessons ask for."""
    given, seen = variants(root), set()
    for name in names or assignments.names(root):
        for problem in asked(assignments.load(name, root)):
            seen.add(problem.problem)
            yield judgement(given.get(problem.problem, Variants(problem.problem, {}, {})), problem)
    if not names:
        for id in given:
            if id not in seen:
                yield judgement(given[id], None)


def table(found: list[Judgement]) -> list[tuple[str, ...]]:
    """A row for each problem: id, assignment, numbers of right and wrong answers, and what is wrong with its check."""
    return [
        (v.problem, v.assignment or "in a lesson", str(v.right), str(v.wrong), "see below" if v.faults else "sound")
        for v in found
    ]


def summary(found: list[Judgement]) -> str:
    """How many problems and answers there are, and how many of these were judged wrongly."""
    kinds = Counter(kind for one in found for kind, _ in one.faults)
    counts = {
        "problem": len(found),
        "right answer": sum(one.right for one in found),
        "wrong answer": sum(one.wrong for one in found),
        "false accept": kinds[ACCEPTED],
        "false reject": kinds[REFUSED],
    }
    counted = ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for word, n in counts.items())
    return f"{counted}, {kinds[OTHER_WORDS]} {OTHER_WORDS}."
