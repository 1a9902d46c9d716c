"""One submission from answers to outcome: a throw-away process tests it, this one keeps the time."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import current_process, get_context

from pydantic import TypeAdapter

from lorahub_grader import split
from lorahub_grader.assignments import Assignment
from lorahub_grader.inside import namespaces
from lorahub_grader.inside.zygote import Limits, Settings
from lorahub_grader.journal import Outcome
from lorahub_grader.sandbox import choose
from lorahub_grader.sandbox.process import SandboxError, explain
from lorahub_grader.split import Result, Times

PRELOAD = ("torch", "transformers", "peft")
TESTER_MEMORY = 6 << 30  # of address space for the tests, beyond what this process has
MARGIN_SECONDS = 30.0  # for the tests, beyond the submission's own time
EVENT_BYTES = 256 << 20
BROKEN = 3  # exit code of a fork that found the sandbox gone
REPORTED = TypeAdapter(Result)


@dataclass(frozen=True)
class Job:
    """All that a worker needs for one submission; it holds no other submission and no gradebook."""

    assignment: Assignment
    student: str
    key: str
    answers: dict[str, str]
    notes: tuple[str, ...] = ()
    submitted: str = ""
    seed: str = ""
    sandbox: str = "bubblewrap"
    times: Times = Times()
    limits: Limits = Limits()
    preload: tuple[str, ...] = PRELOAD
    name: str = ""
    platform: str | None = None


class Sandboxes:
    """The sandbox of this process: started when first needed, kept for the next submission."""

    def __init__(self) -> None:
        self.key: tuple | None = None
        self.current: choose.Sandbox | None = None

    def get(self, job: Job) -> choose.Sandbox:
        """The one for a job."""
        may_import = job.assignment.may_import
        key = (job.sandbox, job.preload, job.limits, may_import)
        if key != self.key:
            self.close()
            settings = Settings(preload=job.preload, limits=job.limits, may_import=may_import)
            self.current, self.key = choose.start(job.sandbox, settings), key
        return self.current

    def close(self) -> None:
        """End it."""
        if self.current is not None:
            self.current.close()
        self.current = self.key = None


SANDBOXES = Sandboxes()


def work(job: Job) -> Outcome:
    """Grade one submission; whatever it does, there is an outcome, with the reason where points are missing.

    Raises SandboxError: the sandbox can't be started at all.
    """
    started = time.monotonic()
    for _ in range(2):
        sandbox = SANDBOXES.get(job)
        events, end = tested(job, sandbox)
        if end != "broken":
            break
        SANDBOXES.close()  # a zygote that was lost is replaced once
    return replace(outcome_of(job, events, end), seconds=time.monotonic() - started)


def work_apart(job: Job) -> Outcome:
    """Grade one submission in a process of this worker's own, kept for the next: a fork needs one without threads."""
    try:
        return _own_process().submit(work, job).result()
    except BrokenExecutor:
        _own_process.cache_clear()
        raise RuntimeError("its worker was killed, mostly for want of memory") from None


@cache
def _own_process() -> Executor:
    current_process()._config["daemon"] = False  # Dask's workers are daemons, which may start no process
    return ProcessPoolExecutor(1, get_context("spawn"), namespaces.die_with_parent)


def tested(job: Job, sandbox: choose.Sandbox) -> tuple[list[dict], str]:
    """Run the tests in a fork of this process: what they reported, and how that ended; "" when at their end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            code = _test(job, sandbox, writer)
        finally:
            os._exit(code)
    os.close(writer)
    in_time = False
    try:
        events, in_time = _listen(reader, time.monotonic() + job.times.total + MARGIN_SECONDS)
    finally:  # also when this process is interrupted
        os.close(reader)
        if not in_time:
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return events, "time" if not in_time else {0: "", BROKEN: "broken"}.get(code, "died")


def _test(job: Job, sandbox: choose.Sandbox, writer: int) -> int:
    """In the fork: grade, and write each event as one line."""

    def tell(event: dict) -> None:
        plain = {key: asdict(value) if isinstance(value, Result) else value for key, value in event.items()}
        text = json.dumps(plain, ensure_ascii=False)  # what is half a character in an answer's words ends here
        data = memoryview(text.encode("utf-8", "replace") + b"\n")
        while data:
            data = data[os.write(writer, data) :]

    namespaces.die_with_parent()
    namespaces.limit(TESTER_MEMORY, CPU=int(job.times.total + MARGIN_SECONDS))
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # a fork has none of the threads that its parent has computed with, and would wait
    try:
        split.grade(job.assignment, job.answers, sandbox.open, tell, times=job.times, seed=job.seed)
    except SandboxError:
        return BROKEN
    return 0


def _listen(reader: int, deadline: float) -> tuple[list[dict], bool]:
    """The events until the other end closes, and whether it did in time."""
    text, in_time = bytearray(), False
    while not in_time:
        left = deadline - time.monotonic()
        if left <= 0 or len(text) > EVENT_BYTES or not select.select([reader], [], [], left)[0]:
            break
        part = os.read(reader, 1 << 20)
        in_time = not part
        text += part
    whole = text.split(b"\n")[:-1]  # the last line may have been cut off
    return [json.loads(line) for line in whole], in_time


def outcome_of(job: Job, events: list[dict], end: str) -> Outcome:
    """Put together what was reported; a test that was not reached earns nothing, and says why.

    `end`: how the tests ended; empty when they came to their end.
    """
    reason = next((event["ending"] for event in events if "ending" in event), "") or end
    found = {event["test"]["grade_id"]: REPORTED.validate_python(event["test"]) for event in events if "test" in event}
    tests = []
    for cell in job.assignment.cells:
        if cell.role == "test":
            missing = Result(cell.grade_id, cell.points, 0.0, f"not reached: {explain(reason)}")
            tests.append(found.get(cell.grade_id, missing))
    return Outcome(
        job.assignment.name,
        job.student,
        job.key,
        job.assignment.points,
        tuple(tests),
        reason=reason,
        notes=job.notes,
        outputs={event["cell"]: event["outputs"] for event in events if "cell" in event},
        answers=job.answers,
        submitted=job.submitted,
        name=job.name,
        platform=job.platform,
    )
