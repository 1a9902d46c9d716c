"""Split grading: a learner's cells run in the answer process, the tests here, and only data crosses between them."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from lorahub_edu.show import progress
from lorahub_edu.show.graded import SEED_VARIABLE, NotSatisfiedError
from lorahub_grader.assignments import Assignment, Cell
from lorahub_grader.inside.protocol import ProtocolError
from lorahub_grader.remote import Conversation, Handle, Remote, UnansweredError
from lorahub_grader.sandbox.process import AnswerProcess

WORDS_KEPT = 2000
EMPTY = "the place to fill in is still empty"
OUTPUTS_KEPT = 8
BASE64 = re.compile(r"[A-Za-z0-9+/=\s]*")
RESTARTS = 2  # of the answer process, where a cell ended it


@dataclass(frozen=True)
class Times:
    """Seconds: for one cell, for one call from a test, and for the whole submission."""

    cell: float = 60.0
    call: float = 20.0
    total: float = 300.0


@dataclass(frozen=True)
class Result:
    """One test's outcome: points, and for the learner what was wrong and the next hint (nothing of the test's source).

    `properties` are (name, passed, value seen, probable misconception). `in_kernel` says that the answer's own process
    was believed, which an answer can mislead.
    """

    grade_id: str
    points: float
    earned: float
    message: str = ""
    hint: str = ""
    properties: tuple[tuple[str, bool, str, str], ...] = ()
    in_kernel: bool = False

    @property
    def passed(self) -> bool:
        return self.earned == self.points


@dataclass(frozen=True)
class Defined:
    """What the cells so far have defined, as a test sees it.

    `names` are values, and what stands for functions and classes; `broken` are names that can't be used, and why;
    `failures` say how an answer's cell failed, by the names that it should define.
    """

    names: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def copy(self) -> Defined:
        return Defined(dict(self.names), dict(self.broken), dict(self.failures))


@dataclass
class Split:
    """One submission: the assignment, the learner's cells by id, and a way to talk with a fresh answer process."""

    assignment: Assignment
    answers: Mapping[str, str]
    talk: Callable[[], Conversation]
    times: Times
    defined: Defined = field(default_factory=Defined)
    conversations: list[Conversation] = field(default_factory=list)
    passed_over: dict[int, str] = field(default_factory=dict)  # cells that end the process, and how

    @property
    def conversation(self) -> Conversation:
        return self.conversations[-1]

    def run(self, report: Callable[[dict], None]) -> None:
        """Run all cells, then all tests: no cell sees what a test asked for.

        A test gets what the cells above it had defined. Where a cell ends the process, the others run again without it.
        `report`: called with what happened to each cell as soon as it is known: {"outputs": …, "cell": index} or
            {"test": Result}.
        """
        tests: list[tuple[Cell, Defined]] = []
        while len(self.conversations) <= RESTARTS:
            self.conversations.append(self.talk())
            self.defined, tests = Defined(), []
            if self._cells(report, tests):
                break
        for cell, defined in tests:
            if "in_kernel" not in cell.options:
                report({"test": self._test(cell, defined)})
        for cell, _ in tests:  # last of all: what shares the answers' process could be read by another answer
            if "in_kernel" in cell.options:
                report({"test": self._test_in_kernel(cell)})

    def _cells(self, report: Callable[[dict], None], tests: list[tuple[Cell, Defined]]) -> bool:
        """Run the cells in one process; whether it was there to the end."""
        for cell in self.assignment.cells:
            if cell.role == "test":
                tests.append((cell, self.defined.copy()))
            elif cell.role == "code" or (cell.role != "text" and cell.is_code):
                source = cell.source if cell.role == "code" else self.answers.get(cell.grade_id, cell.stub)
                report({"cell": cell.index, "outputs": self._cell(cell, source)})
                if self.conversation.lost and cell.index not in self.passed_over:
                    self.passed_over[cell.index] = self.conversation.explanation()
                    if time.monotonic() < self.conversation.deadline:
                        return False
        return True

    def _cell(self, cell: Cell, source: str) -> list[dict]:
        """Run a cell in the answer process; one that is the same for all also runs here, for what the tests import."""
        if cell.role == "code":
            with quiet():
                exec(compile(_plain(source), "setup", "exec"), self.defined.names)
        outputs, failure = [], ""
        try:
            if cell.index in self.passed_over:
                raise UnansweredError(self.passed_over[cell.index])
            reply, _ = self.conversation.ask({"do": "cell", "source": source}, seconds=self.times.cell)
            outputs = checked_outputs(reply.get("outputs"))
            error = reply.get("error")
            if type(error) is list and len(error) == 2:
                failure = f"{error[0]}: {error[1]}"[:WORDS_KEPT]
        except UnansweredError as error:
            failure = str(error)
            outputs = [{"output_type": "stream", "name": "stdout", "text": failure + "\n"}]
        if cell.role == "answer":
            self._define(cell, failure)
        return outputs

    def _define(self, cell: Cell, failure: str) -> None:
        """Put what stands for a cell's functions, and the values of its other names, where the tests look for them."""
        defined = self.defined
        for name, kind in cell.names.items():
            defined.broken.pop(name, None)
            if failure:
                defined.failures[name] = failure
            target, value = {"name": name}, None
            try:
                if cell.index in self.passed_over:
                    raise UnansweredError(failure)
                value = self.conversation.get(target)
            except (Exception, UnansweredError) as error:
                if kind == "value" or isinstance(error, UnansweredError):
                    defined.broken[name] = f"{name} can't be used: {self._words(error)}"
            if kind == "value":
                defined.names[name] = value
            else:  # held by its number: a later cell of that name is another answer
                target = value._target if isinstance(value, Handle) else target
                defined.names[name] = Remote(self.conversation, target, name, kind == "class")

    def _test(self, cell: Cell, defined: Defined) -> Result:
        unusable = [defined.broken[name] for name in sorted(_names_read(cell.source)) if name in defined.broken]
        if unusable:
            return Result(cell.grade_id, cell.points, 0.0, self._explained(cell, unusable[0], defined))
        self.conversation.codec.finite = "infinite" not in cell.options
        self.conversation.writes_back, self.conversation.changed, self.conversation.believed = True, False, False
        result = self._attempt(cell, defined)
        if result.passed and self.conversation.changed and "changes_inputs" not in cell.options:
            # An answer that changes its inputs could change what it is compared with: it must hold for the old ones.
            self.conversation.writes_back = False
            result = self._attempt(cell, defined)
        return replace(result, in_kernel=self.conversation.believed)

    def _attempt(self, cell: Cell, defined: Defined) -> Result:
        """Run a test's source here, with what stands for the answers."""
        try:
            with quiet():
                exec(compile(cell.source, "test", "exec"), dict(defined.names))
        except NotSatisfiedError as error:
            found = tuple((p.name, p.passed, p.seen[:300], p.misconception) for p in error.report.properties)
            words = next(
                (p.misconception or f"{p.name}: {p.seen[:300]}" for p in error.report.properties if not p.passed),
                EMPTY,
            )
            return Result(
                cell.grade_id, cell.points, 0.0, self._explained(cell, words, defined), error.report.hint, found
            )
        except BaseException as error:  # a test is the instructor's; whatever ends it early earns nothing
            return Result(cell.grade_id, cell.points, 0.0, self._explained(cell, self._words(error), defined))
        return Result(cell.grade_id, cell.points, cell.points)

    def _explained(self, cell: Cell, words: str, defined: Defined) -> str:
        """The words, with how the answer's cell failed if it did and they don't say so."""
        names = [name for name in sorted(_names_read(cell.source)) if name in defined.failures]
        failed = defined.failures[names[0]] if names else ""
        return (words + (f" (its cell ended with {failed})" if failed not in words else ""))[:WORDS_KEPT]

    def _words(self, error: BaseException) -> str:
        if isinstance(error, NotImplementedError):
            return EMPTY
        if isinstance(error, AssertionError | UnansweredError | ProtocolError):
            return str(error)[:WORDS_KEPT] or "the answer is not right"
        return f"{type(error).__name__}: {error}"[:WORDS_KEPT]

    def _test_in_kernel(self, cell: Cell) -> Result:
        """A test that needs the answer's own process; its word is the answer's word, and is marked so."""
        try:
            reply, _ = self.conversation.ask({"do": "cell", "source": cell.source}, seconds=self.times.cell)
            passed = reply.get("error", "") is None
        except UnansweredError:
            passed = False
        words = "" if passed else "the test that looks at this from inside the notebook did not pass"
        return Result(cell.grade_id, cell.points, cell.points if passed else 0.0, words, in_kernel=True)


def grade(
    assignment: Assignment,
    answers: Mapping[str, str],
    open_process: Callable[[], AnswerProcess],
    report: Callable[[dict], None],
    *,
    times: Times = Times(),
    seed: str = "",
) -> None:
    """Grade one submission in this process, which must be one that may be thrown away.

    `open_process` gives a fresh answer process. `report` gets each outcome as soon as it is known; the last has
    "ending".
    """
    os.environ |= {SEED_VARIABLE: seed, progress.VARIABLE: progress.OFF}
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    for start in (random.seed, np.random.seed, torch.manual_seed):  # else a test's own draws are the same for all
        start(number)
    deadline = time.monotonic() + times.total
    submission = Split(assignment, answers, lambda: Conversation(open_process(), times.call, deadline), times)
    submission.run(report)
    endings = [talk.process.stop() for talk in submission.conversations]
    lost = [talk.lost for talk in submission.conversations if talk.lost]
    lost += [ending for ending in endings if ending != "asked"]
    report({"ending": lost[0] if lost else ""})


@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def checked_outputs(found: object) -> list[dict]:
    """The outputs of a cell as plain text and pictures, whatever the answer process sent."""
    outputs = []
    for one in found if type(found) is list else ():
        text, data = (one.get("text"), one.get("data")) if type(one) is dict else (None, None)
        if type(text) is str:
            outputs.append({"output_type": "stream", "name": "stdout", "text": _clean(text)})
        elif type(data) is dict:
            kept = {kind: _clean(data[kind]) for kind in ("text/plain", "image/png") if type(data.get(kind)) is str}
            if not BASE64.fullmatch(kept.get("image/png", "")):
                del kept["image/png"]
            outputs.append({"output_type": "display_data", "metadata": {}, "data": kept})
    return outputs[:OUTPUTS_KEPT]


def _clean(text: str) -> str:
    return text[:2_000_000].encode("utf-8", "replace").decode()


def _plain(source: str) -> str:
    """A cell's source without IPython's own commands."""
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))


def _names_read(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
