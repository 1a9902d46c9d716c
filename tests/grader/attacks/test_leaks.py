"""Attacks that carry a test's inputs out: to a later cell, to a friend, to the next attempt."""

from __future__ import annotations

import json

import pytest
from grading_arena import HONEST, TIMES, only, passed

from lorahub_grader import runner, worker
from lorahub_grader.collect import Submission
from lorahub_grader.handed_in import Found
from lorahub_grader.worker import Job

ASKED = "asked = []\ndef hard(x):\n    asked.append(x)\n    {keep}\n    return 0.0"
LATER = {
    "a list": ("pass", "print('SEEN', asked)"),
    "a file": ("open('asked.txt', 'a').write(str(x))", "import os\nprint('SEEN', os.path.exists('asked.txt') or [])"),
    "the environment": (
        "import os; os.environ['ASKED'] = str(x)",
        "import os\nprint('SEEN', os.environ.get('ASKED', []))",
    ),
    "a builtin": (
        "import builtins; builtins.asked = x",
        "import builtins\nprint('SEEN', getattr(builtins, 'asked', []))",
    ),
    "a thread": (
        "pass",
        "import threading, time\ndef tell():\n    time.sleep(1)\n    print('SEEN', asked)\n"
        "threading.Thread(target=tell).start()\nprint('SEEN', asked)",
    ),
}


def graded(arena, answers: dict[str, str], sandbox) -> worker.Outcome:
    job = Job(only(arena, {"easy", *answers}), "mallory", "", {**HONEST, **answers}, seed="s", times=TIMES)
    return worker.outcome_of(job, *worker.tested(job, sandbox))


@pytest.mark.parametrize("name", LATER)
def test_no_later_cell_sees_what_a_test_asked(name: str, arena, walls) -> None:
    keep, tell = LATER[name]
    answers = {"hard": ASKED.format(keep=keep), "tensor": tell}
    texts = [o.get("text", "") for outputs in graded(arena, answers, walls).outputs.values() for o in outputs]
    assert [text.strip() for text in texts if "SEEN" in text] == ["SEEN []"]
    control = {"hard": ASKED.format(keep=keep) + "\nhard(1369)", "tensor": tell}
    texts = [o.get("text", "") for outputs in graded(arena, control, walls).outputs.values() for o in outputs]
    assert not any("SEEN []" in text for text in texts)


def test_each_test_judges_the_answer_above_it(arena, walls) -> None:
    right = {"near": "def near(x):\n    return 0.140625", "far": "def far(x):\n    return 0.140625"}
    assert {"near", "far"} <= passed(arena, right, walls, "bubblewrap")
    late = {"near": "def near(x):\n    return 7.0", "far": right["far"] + "\n" + right["near"]}
    assert passed(arena, late, walls, "bubblewrap") == {"easy", "far"}
    spoilt = {"near": right["near"], "far": right["far"] + "\ndef near(x):\n    return 7.0"}
    assert passed(arena, spoilt, walls, "bubblewrap") == {"easy", "near", "far"}


ENDS = {
    "an exit": "import os\nos._exit(0)",
    "a crash": "import ctypes\nctypes.string_at(0)",
    "an abort": "import os\nos.abort()",
    "too much at once": "x = bytes(1 << 40)",
}


@pytest.mark.parametrize("name", ENDS)
def test_a_cell_that_ends_the_process_costs_its_own_points_only(name: str, arena, walls) -> None:
    outcome = graded(arena, {"hard": ENDS[name], "near": "def near(x):\n    return 0.140625"}, walls)
    assert {test.grade_id for test in outcome.tests if test.passed} == {"test_easy", "test_near"}
    assert outcome.reason == ("" if name == "too much at once" else "died")


@pytest.mark.parametrize("problem", ["tensor", "lucky"])
def test_what_a_test_draws_itself_is_each_hand_ins_own(problem: str, arena, walls) -> None:
    answers = {problem: f"def {problem}(x):\n    raise ValueError(repr(x))"}

    def told(seed: str) -> str:
        job = Job(only(arena, {problem}), "mallory", "", answers, seed=seed, times=TIMES)
        return worker.outcome_of(job, *worker.tested(job, walls)).tests[0].message

    assert told("one") == told("one") != told("another")


def test_inputs_are_each_hand_ins_own(arena, tmp_path) -> None:
    def seed(student: str, answer: str) -> str:
        cells = [{"cell_type": "code", "source": answer, "metadata": {"nbgrader": {"grade_id": "hard"}}}]
        (tmp_path / "hard.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
        submission = Submission(student, arena.name, Found(("hard.ipynb",), tmp_path / "hard.ipynb"))
        return runner._job(submission, arena, "secret", "bubblewrap", {})[0].seed

    first = seed("ada", "hard = 1")
    assert seed("ada", "hard = 1") == first
    assert len({first, seed("bea", "hard = 1"), seed("ada", "hard = 2")}) == 3
