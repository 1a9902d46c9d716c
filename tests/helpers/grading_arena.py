"""Where attacks are tried: an assignment worth stealing, and the same submission with and without each protection."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import grading_course

from lorahub_grader import worker
from lorahub_grader.assignments import Assignment
from lorahub_grader.inside.zygote import Limits
from lorahub_grader.sandbox import choose
from lorahub_grader.split import Times
from lorahub_grader.worker import Job

NAME = "01_arena"
TIMES = Times(cell=60, call=30, total=120)
# Each problem is one that the attackers can't solve; the tests are what a trusting teacher might write.
PROBLEMS = {
    "easy": ("easy(x): return x + 1", "assert easy(20) == 21"),
    "hard": ("hard(x): return 271828.0", "import math\nassert math.isclose(hard(1369), 271828.0)"),
    "tensor": (
        "tensor(x): return 3 * x + 1",
        "import torch\nx = torch.randn(4, 3)\nassert torch.allclose(tensor(x), 3 * x + 1)",
    ),
    "lucky": (
        "lucky(x): return x * 7919 % 1000003",
        "import random\nx = random.randint(10**6, 10**9)\nassert lucky(x) == x * 7919 % 1000003",
    ),
    "array": (
        "array(x): return 1 - 2 * x",
        "import numpy as np\nx = np.random.default_rng().random(5)\nexpected = 1 - 2 * x\n"
        "assert np.allclose(np.asarray(array(x)), expected)",
    ),
    "quick": (
        "quick(n): return n * (n - 1) // 2",
        "import time\nstart = time.perf_counter()\nvalue = quick(1000)\n"
        "assert value == 499500 and time.perf_counter() - start < 0.2",
    ),
    "late": (
        "late(x): return x * x + 5",
        "import torch\nx = torch.arange(1.0, 5.0)\nassert torch.equal(late(x), x * x + 5)",
    ),
    "near": ("near(x): return 0.140625", "assert not abs(near(3) - 0.140625) > 1e-6"),
    "far": ("far(x): return 0.140625", "value = far(3)\nassert abs(value - 0.140625) <= 1e-6 * abs(value)"),
    "search": (
        "search(f): return 37",
        "calls = []\n\ndef f(x):\n    calls.append(x)\n    assert len(calls) <= 5, 'too many calls'\n"
        "    return (x - 37) ** 2\n\nassert search(f) == 37",
    ),
    "scaling": (
        "scaling(alpha, rank): return alpha / rank",
        "from lorahub_edu.show.graded import require\nrequire('00.1', scaling)",
    ),
}
SOURCE = grading_course.HEADER + "\n".join(
    f'# %% answer="{name}"\n### BEGIN SOLUTION\ndef {body}\n### END SOLUTION\n\n'
    f'# %% test="test_{name}" points=1\n### BEGIN HIDDEN TESTS\n{test}\n### END HIDDEN TESTS\n'
    for name, (body, test) in PROBLEMS.items()
)
HONEST = {"easy": "def easy(x):\n    return x + 1"}


@dataclass(frozen=True)
class Attack:
    """A submission that wants the points of `gains` without the work, and the control in which it gets them.

    `answers` are its cells by problem; `control` names the run without the protection.
    """

    name: str
    gains: tuple[str, ...]
    answers: Mapping[str, str]
    control: str = "shared"


def attack(name: str, problem: str, code: str, control: str = "shared") -> Attack:
    """An attack that is one cell, aimed at that cell's own problem."""
    return Attack(name, (problem,), {problem: code}, control)


def passed(assignment: Assignment, answers: Mapping[str, str], sandbox: choose.Sandbox, kind: str) -> set[str]:
    """The problems whose tests a submission passes, graded as a worker does."""
    assignment = only(assignment, {"easy", *answers})
    job = Job(assignment, "mallory", "", {**HONEST, **answers}, seed="s", sandbox=kind, times=TIMES, limits=Limits())
    outcome = worker.outcome_of(job, *worker.tested(job, sandbox))
    return {test.grade_id.removeprefix("test_") for test in outcome.tests if test.passed}


def only(assignment: Assignment, problems: set[str]) -> Assignment:
    """The assignment with fewer problems, which takes less time."""
    cells = (cell for cell in assignment.cells if cell.grade_id.removeprefix("test_") in problems)
    return replace(assignment, cells=tuple(cells))


def printed(assignment: Assignment, code: str, sandbox: choose.Sandbox, times: Times = TIMES) -> str:
    """What a submission's cell for `easy` prints."""
    return run(assignment, code, sandbox, times)[0]


def run(assignment: Assignment, code: str, sandbox: choose.Sandbox, times: Times = TIMES) -> tuple[str, worker.Outcome]:
    """What a submission's cell for `easy` prints, and its outcome; the honest answer follows the code."""
    job = Job(only(assignment, {"easy"}), "mallory", "", {"easy": code + "\n" + HONEST["easy"]}, seed="s", times=times)
    outcome = worker.outcome_of(job, *worker.tested(job, sandbox))
    texts = [output.get("text", "") for outputs in outcome.outputs.values() for output in outputs]
    return "".join(texts).strip(), outcome


def sharing(assignment: Assignment) -> Assignment:
    """The same assignment with every test in the process of the answers, as other graders have it."""
    cells = (replace(c, options=frozenset({"in_kernel"})) if c.role == "test" else c for c in assignment.cells)
    return replace(assignment, cells=tuple(cells))


HARNESS = """
import json, os, sys
cells = json.loads(sys.argv[1])
scores, space = {}, {"__name__": "__main__"}
for kind, name, source in cells:
    try:
        exec(source, space)
        scores[name] = True
    except BaseException:
        scores[name] = False
print("RESULT " + json.dumps(scores))
"""


def passed_by_print(assignment: Assignment, answers: Mapping[str, str]) -> set[str]:
    """The control of a grader that lets the graded process print the result, and hands it the environment."""
    cells = []
    for cell in assignment.cells:
        source = {**HONEST, **answers}.get(cell.grade_id, cell.stub) if cell.role == "answer" else cell.source
        cells.append((cell.role, cell.grade_id, source))
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, json.dumps(cells)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"ARENA_ANSWER": "271828.0"},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    scores = json.loads(lines[-1].removeprefix("RESULT ")) if lines else {}
    return {name.removeprefix("test_") for name, ok in scores.items() if ok and name.startswith("test_")}
