"""Problems: registered by the lessons' files, found by their id, and run on a learner's answer.

A specification draws fresh inputs, compares with an independent reference under a stated tolerance, and names the
misconception whose result the answer equals.
"""

from __future__ import annotations

import html
import importlib
import marshal
import pkgutil
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

import lorahub_checks
from lorahub_checks.properties import Property
from lorahub_checks.watched import Answer, StoppedError, described, generators_kept, place_of
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.show import progress
from lorahub_edu.show.check import SECONDS

Specification = Callable[[object, torch.Generator], Iterator[Property]]


@dataclass(frozen=True)
class Problem:
    """A problem of a lesson: its id, title, three hints from a nudge to a worked step, and its specification.

    With `in_place` an answer may change the tensors, arrays and lists that it is given. `trains` are the places of the
    arguments that a gradient must reach.
    """

    id: str
    title: str
    hints: tuple[str, str, str]
    specification: Specification
    in_place: bool = False
    trains: tuple[int, ...] = ()


@dataclass(frozen=True)
class Report:
    """The outcome of a check; no properties means that the answer's place is still empty."""

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
                lines += [f"        {p.example}"] if p.example else []
        return lines

    def _headed(self) -> str:
        if not self.properties:
            return f"{self.problem} {self.title}: not tried yet"
        count = sum(p.passed for p in self.properties)
        outcome = "public checks passed" if self.passed else f"{count} of {len(self.properties)} public checks passed"
        return "\n".join([f"{self.problem} {self.title}: {outcome}", *self._lines()])

    def __str__(self) -> str:
        return self._headed() + (f"\nhint: {self.hint}" if self.hint else "")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        # A border and words carry the outcome, colour only repeats it.
        failed = ("#D55E00", "dashed") if self.properties else ("#767676", "dotted")
        colour, style = ("#0072B2", "solid") if self.passed else failed
        text = (
            f'<pre style="border-left: 4px {style} {colour}; padding-left: 0.8em">{html.escape(self._headed())}</pre>'
        )
        return text + (f"<details><summary>A hint</summary>{html.escape(self.hint)}</details>" if self.hint else "")


_PROBLEMS: dict[str, Problem] = {}
_TRIED: dict[str, list[object]] = {}  # the different answers that failed, by problem


def problem(
    id: str, title: str, hints: tuple[str, str, str], in_place: bool = False, trains: tuple[int, ...] = ()
) -> Callable[[Specification], Specification]:
    """Register a specification: a generator function of the answer and a torch.Generator that yields properties.

    The id is "LL.N". The hints are a nudge, the concept and a worked step. Each answer that fails shows one more; the
    same answer again, as when all cells run, shows the same.
    """

    def register(specification: Specification) -> Specification:
        _PROBLEMS[id] = Problem(id, title, hints, specification, in_place, trains)
        return specification

    return register


def get_problem(id: str) -> Problem:
    """The problem of that id. Raises CourseError: there is none (near matches are listed)."""
    lesson = id.partition(".")[0]
    if id not in _PROBLEMS and lesson.isdigit():
        for room in pkgutil.iter_modules(lorahub_checks.__path__):
            if re.fullmatch(rf"lesson{lesson}(_.+)?", room.name):
                importlib.import_module(f"lorahub_checks.{room.name}")
        if not any(known.startswith(lesson + ".") for known in _PROBLEMS):
            raise CourseError(f"There are no checks for a lesson {lesson!r} (asked for {id!r}).")
    if id not in _PROBLEMS:
        raise CourseError(f"There is no problem {id!r}. {near_matches(id, _PROBLEMS)}")
    return _PROBLEMS[id]


def check(id: str, answer: object, seed: int | None = None, seconds: float = SECONDS, kept_as: str = "") -> Report:
    """As `lorahub_edu.show.check.check`, which is the learner's door to it."""
    asked = get_problem(id)
    generator = torch.Generator().manual_seed(random.SystemRandom().getrandbits(32) if seed is None else seed)
    watched = Answer(answer, seconds, asked.in_place) if callable(answer) else None
    found: list[Property] = []
    with generators_kept():
        try:
            for property_ in asked.specification(answer if watched is None else watched, generator):
                found += _noted(watched)
                found.append(_with_example(property_, watched))
            if asked.trains and watched is not None and all(p.passed for p in found):
                watched.follow_gradients(asked.trains)
                found += _noted(watched)
        except NotImplementedError:
            if found:  # a part of it is there
                found.append(Property("is written", False, "", "a place to fill in is still empty"))
        except (Exception, StoppedError, SystemExit, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt) and (watched is None or watched.remote):
                raise
            found += [*_noted(watched), _failure(error)]
    report = Report(id, asked.title, tuple(found))
    if report.passed:
        _TRIED.pop(id, None)
        if seed is None:  # a learner's own check; tests fix their inputs
            progress.check_passed(kept_as or id)
    if report.passed or not found:
        return report
    tried, written = _TRIED.setdefault(id, []), _as_written(answer)
    if written not in tried:
        tried.append(written)
    return Report(id, asked.title, tuple(found), asked.hints[min(tried.index(written), len(asked.hints) - 1)])


def _as_written(answer: object) -> object:
    """What tells one answer from another: the code of a function or of a class's methods, else how a value prints."""
    parts = [answer, *vars(answer).values()] if isinstance(answer, type) else [answer]
    return [marshal.dumps(code, 2) for part in parts if (code := getattr(part, "__code__", None))] or repr(answer)


def _noted(watched: Answer | None) -> list[Property]:
    """What the answer did beside its value since this was last asked."""
    if watched is None:
        return []
    noted, watched.faults = watched.faults, []
    return [Property(name, False, seen, words) for name, seen, words in noted]


def _with_example(property_: Property, watched: Answer | None) -> Property:
    """The property with the arguments of the call that it is about, if that is known."""
    if watched is None:
        return property_
    calls, watched.fresh = watched.calls, False
    parts = [call for call in calls if property_.value is not None and _holds(call[1], property_.value)]
    parts = parts or (calls if len(calls) == 1 else [])
    if property_.passed or not parts:
        return replace(property_, value=None)
    said = property_.example or f"you return {described({'': parts[0][1]})[3:]}"
    return replace(property_, value=None, example=f"for {described(parts[0][0])}: {said}")


def _holds(made: object, value: object) -> bool:
    """Whether a value is what a call returned, or a part of it."""
    return made is value or (isinstance(made, list | tuple) and any(part is value for part in made))


SHAPES = re.compile(
    "cannot be multiplied|must match|size mismatch|mismatch in its core|could not be broadcast|subscript"
)


def _failure(error: BaseException) -> Property:
    """The property of an answer that ended with an error: which one, and on which line of the learner's."""
    name = "runs without an error"
    place = place_of(error)
    seen = f"{type(error).__name__}: {str(error)[:300]}" + (f" ({place[:200]})" if place else "")
    words = ""
    if isinstance(error, StoppedError):
        return Property("comes to an end", False, place, str(error))
    if isinstance(error, SystemExit | KeyboardInterrupt):
        words = "the function ended the program, or was interrupted: return the value instead"
    elif isinstance(error, RuntimeError | ValueError) and SHAPES.search(str(error)):
        words = (
            "the shapes do not fit together: two factors meet in the wrong order or need a transpose. Rows x (..., in) "
            "are multiplied from the left, x @ W.T"
        )
    elif isinstance(error, NameError):
        words = "a name is used before it has a value: is it misspelt, or is an import missing?"
    return Property(name, False, seen, words)
