"""Instant feedback: `check("01.3", my_function)` says what holds, what doesn't, and what was probably meant.

A specification draws fresh inputs, compares with an independent reference under a stated tolerance, and names the
misconception whose result the answer equals. A lesson's problems are registered by
lessonNN.py and, where there are many, lessonNN_*.py, in the package `lorahub_checks`, which is found by name.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import pkgutil
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.show import progress


@dataclass(frozen=True)
class Property:
    """One thing a right answer must satisfy: whether it does, the value seen, and the probable misconception."""

    name: str
    passed: bool
    seen: str = ""
    misconception: str = ""


PROBLEMS = "lorahub_checks"

Specification = Callable[[object, torch.Generator], Iterator[Property]]


@dataclass(frozen=True)
class Problem:
    """A problem of a lesson: its id, title, three hints from a nudge to a worked step, and its specification."""

    id: str
    title: str
    hints: tuple[str, str, str]
    specification: Specification


@dataclass(frozen=True)
class Report:
    """The outcome of a check."""

    problem: str
    title: str
    properties: tuple[Property, ...]
    hint: str = ""

    @property
    def passed(self) -> bool:
        """Whether every property holds, and there is one."""
        return bool(self.properties) and all(p.passed for p in self.properties)

    def _lines(self) -> list[str]:
        lines = []
        for p in self.properties:
            lines.append(f"{'passed' if p.passed else 'FAILED'}  {p.name}")
            if not p.passed:
                lines += [f"        seen: {p.seen}"] if p.seen else []
                lines += [f"        probably: {p.misconception}"] if p.misconception else []
        return lines

    def __str__(self) -> str:
        count = sum(p.passed for p in self.properties)
        if not self.properties:
            return f"{self.problem}: {self.title}"
        verdict = "public checks passed" if self.passed else f"{count} of {len(self.properties)} public checks passed"
        hint = [f"hint: {self.hint}"] if self.hint and not self.passed else []
        return "\n".join([f"{self.problem} {self.title}: {verdict}", *self._lines(), *hint])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        # A border and words carry the verdict, colour only repeats it.
        colour, style = ("#0072B2", "solid") if self.passed else ("#D55E00", "dashed")
        return f'<pre style="border-left: 4px {style} {colour}; padding-left: 0.8em">{html.escape(str(self))}</pre>'


_PROBLEMS: dict[str, Problem] = {}
_ATTEMPTS: Counter[str] = Counter()


def problem(id: str, title: str, hints: tuple[str, str, str]) -> Callable[[Specification], Specification]:
    """Register a specification: a generator function of the answer and a torch.Generator that yields properties.

    The id is "LL.N". The hints are a nudge, the concept and a worked step; each failed attempt shows one more.
    """

    def register(specification: Specification) -> Specification:
        _PROBLEMS[id] = Problem(id, title, hints, specification)
        return specification

    return register


def get_problem(id: str) -> Problem:
    """The problem of that id.

    Raises:
        CourseError: there is none (near matches are listed).
    """
    lesson = id.partition(".")[0]
    if id not in _PROBLEMS and lesson.isdigit():
        for room in pkgutil.iter_modules(importlib.import_module(PROBLEMS).__path__):
            if re.fullmatch(rf"lesson{lesson}(_.+)?", room.name):
                importlib.import_module(f"{PROBLEMS}.{room.name}")
        if not any(known.startswith(lesson + ".") for known in _PROBLEMS):
            raise CourseError(f"There are no checks for a lesson {lesson!r} (asked for {id!r}).")
    if id not in _PROBLEMS:
        raise CourseError(f"There is no problem {id!r}. {near_matches(id, _PROBLEMS)}")
    return _PROBLEMS[id]


def check(id: str, answer: object, seed: int | None = None) -> Report:
    """Check an answer against everything that a right one must satisfy, on freshly drawn inputs.

    A seed fixes the inputs; without one every call draws new ones. Jupyter renders the report.

    Raises:
        CourseError: there is no such problem.
    """
    found_package = importlib.util.find_spec(PROBLEMS)
    if found_package is None or found_package.origin is None:  # hidden from answers while they are graded
        return Report(id, "the checks are not installed here, so nothing was checked", ())
    asked = get_problem(id)
    generator = torch.Generator().manual_seed(random.SystemRandom().getrandbits(32) if seed is None else seed)
    found: list[Property] = []
    try:
        for property_ in asked.specification(answer, generator):
            found.append(property_)
    except NotImplementedError:
        found.append(Property("is written", False, "NotImplementedError", "the place to fill in is still empty"))
    except Exception as error:  # whatever the answer raises is feedback, not a crash
        found.append(Property("runs without an error", False, f"{type(error).__name__}: {str(error)[:300]}"))
    report = Report(id, asked.title, tuple(found))
    if report.passed:
        _ATTEMPTS.pop(id, None)
        if seed is None:  # a learner's own check; tests fix their inputs
            progress.check_passed(id)
        return report
    hint = asked.hints[min(_ATTEMPTS[id], len(asked.hints) - 1)]
    _ATTEMPTS[id] += 1
    return Report(id, asked.title, tuple(found), hint)


def holds(name: str, condition: bool, seen: object = "", misconception: str = "") -> Property:
    """A property that is simply true or false."""
    return Property(name, bool(condition), str(seen), "" if condition else misconception)


def equals(
    name: str,
    seen: object,
    expected: Tensor | float | int,
    *,
    misconceptions: Mapping[str, Tensor | float | int] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-6,
) -> Property:
    """A property of a number or tensor that must equal a reference within a tolerance.

    Args:
        name: what must hold, in words.
        misconceptions: what each plausible mistake would have given, by the words that describe the mistake.

    Returns:
        The property; when it fails, the misconception whose value the answer equals.
    """
    expected = torch.as_tensor(expected)
    if seen is None:
        return Property(name, False, "None", "the function returns nothing: is a return missing?")
    try:
        value = torch.as_tensor(seen)
    except (TypeError, ValueError, RuntimeError):
        return Property(name, False, f"a {type(seen).__name__}", "a number or tensor was expected")

    def close(other: Tensor | float | int) -> bool:
        other = torch.as_tensor(other)
        return value.shape == other.shape and torch.allclose(value.double(), other.double(), rtol=rtol, atol=atol)

    if value.shape != expected.shape and value.numel() == expected.numel() == 1:
        value = value.reshape(expected.shape)
    if close(expected):
        return Property(name, True)
    guess = next((words for words, wrong in (misconceptions or {}).items() if close(wrong)), "")
    if value.shape != expected.shape:
        return Property(name, False, f"shape {tuple(value.shape)}, expected {tuple(expected.shape)}", guess)
    if value.numel() == 1:
        return Property(name, False, f"{value.item():.6g}, expected {expected.item():.6g}", guess)
    worst = (value.double() - expected.double()).abs().max().item()
    return Property(name, False, f"largest difference {worst:.3g}", guess)
