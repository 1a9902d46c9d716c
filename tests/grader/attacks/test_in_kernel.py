"""Attacks on tests that share a process with the answer: each scores there, and nothing when the two are split."""

from __future__ import annotations

import pytest
from grading_arena import HONEST, Attack, attack, passed, passed_by_print, sharing

FIND = """
import re
def find(text):
    return float(re.search("2718" + "28", text).group())
"""
PATCHES = [
    attack("patched torch.allclose", "tensor", """
import torch
torch.allclose = lambda *a, **k: True
tensor = lambda x: x"""),
    attack("patched torch.equal", "late", """
import torch
torch.equal = lambda a, b: True
late = lambda x: x"""),
    attack("patched numpy", "array", """
import numpy
numpy.allclose = lambda *a, **k: True
array = lambda x: x"""),
    attack("patched random", "lucky", """
import random
random.randint = lambda a, b: 0
lucky = lambda x: 0"""),
    attack("patched clock", "quick", """
import time
wait, time.perf_counter = time.sleep, lambda: 0.0
def quick(n):
    wait(0.4)
    return sum(range(n))"""),
    attack("patched builtins", "near", """
import builtins
builtins.abs = lambda x: 0.0
near = lambda x: 1.0"""),
    attack("a false module", "hard", """
import sys, types
sys.modules["math"] = types.SimpleNamespace(isclose=lambda *a: True)
hard = lambda x: 0.0"""),
    attack("import hook", "hard", """
import sys, types
from importlib.machinery import ModuleSpec
class Hook:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name == "math" else None
    def create_module(self, spec):
        return types.ModuleType("math")
    def exec_module(self, module):
        module.isclose = lambda *a: True
sys.modules.pop("math", None)
sys.meta_path.insert(0, Hook())
hard = lambda x: 0.0"""),
    attack("replaced __import__", "hard", """
import builtins, types
old = builtins.__import__
def new(name, *more):
    found = old(name, *more)
    return types.SimpleNamespace(isclose=lambda *a: True) if name == "math" else found
builtins.__import__ = new
hard = lambda x: 0.0"""),
    attack("patched graded check", "scaling", """
import sys, types
sys.modules["lorahub_edu.show.graded"] = types.SimpleNamespace(require=lambda *a: None)
scaling = lambda alpha, rank: 0.0"""),
    attack("forged verdicts from inside", "hard", """
from lorahub_grader.inside import shell
shell.Notebook.run_cell = lambda self, source: ([], None)
hard = lambda x: 0.0"""),
    Attack("several at once", ("hard", "near", "tensor"), {
        "hard": "import sys, types\nsys.modules['math'] = types.SimpleNamespace(isclose=lambda *a: 1)\nhard = float",
        "near": "import builtins\nbuiltins.abs = lambda x: 0.0\nnear = lambda x: 1.0",
        "tensor": "import torch\ntorch.allclose = lambda *a, **k: True\ntensor = lambda x: x",
    }),
]  # fmt: skip
TRANSFORMS = [
    attack("input transformer that drops asserts", "hard", """
drop = lambda lines: [line for line in lines if not line.startswith("assert")]
get_ipython().input_transformers_cleanup.append(drop)
hard = lambda x: 0.0"""),
    attack("tree transformer that drops asserts", "hard", """
import ast
class Drop(ast.NodeTransformer):
    def visit_Assert(self, node):
        return ast.copy_location(ast.Pass(), node)
get_ipython().ast_transformers.append(Drop())
hard = lambda x: 0.0"""),
    attack("sys.settrace waits for the next statement", "far", """
import sys
def far(x):
    def trace(frame, event, argument):
        get_ipython().user_ns["abs"] = lambda x: 0.0
    sys.settrace(trace)
    return 1.0"""),
    attack("signal handler in the middle of the test", "far", """
import signal, time, builtins
def strike(*a):
    builtins.abs = lambda x: 0.0
def far(x):
    signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(0.05)
    return 1.0"""),
    attack("changed inputs move the reference", "late", """
import torch
def late(x):
    x.zero_()
    return torch.full((4,), 5.0)"""),
    attack("a callback's counter set back", "search", """
def search(f):
    for x in range(100):
        getattr(f, "__globals__", {}).get("calls", []).clear()
        if f(x) == 0:
            return x"""),
]  # fmt: skip
SPIES = [
    attack("the test's text in In[-1]", "hard", FIND + """
hard = lambda x: find(get_ipython().user_ns["In"][-1])"""),
    attack("the caller's constants", "hard", """
import sys
def hard(x):
    return next(c for c in sys._getframe(1).f_code.co_consts if type(c) is float)"""),
    attack("a callback's own code", "search", """
def search(f):
    return next(c for c in f.__code__.co_consts if type(c) is int and c > 9)"""),
    attack("strings in memory", "hard", FIND + """
import gc
def hard(x):
    known = [o.values() if type(o) is dict else o for o in gc.get_objects() if type(o) in (list, dict)]
    return find(next(s for o in known for s in o if type(s) is str and "isclose(" + "hard" in s))"""),
    attack("thread that outlives its cell", "hard", FIND + """
import threading, time
seen = []
def look(cells=get_ipython().user_ns["In"]):
    while not seen:
        seen.extend(cell for cell in cells if "isclose(" + "hard(" in cell)
        time.sleep(0.01)
threading.Thread(target=look, daemon=True).start()
def hard(x):
    for _ in range(100):
        if seen:
            return find(seen[0])
        time.sleep(0.01)"""),
]  # fmt: skip
PRINTED = [
    attack("printed result", "hard", """
import os, sys
print('RESULT {"test_hard": true}')
sys.stdout.flush()
os._exit(0)""", "print"),
    attack("result printed at exit", "hard", """
import atexit
atexit.register(print, 'RESULT {"test_hard": true}')
hard = lambda x: 0.0""", "print"),
    attack("patched json", "hard", """
import json
old = json.dumps
json.dumps = lambda o, **k: old(dict.fromkeys(o, True), **k)
hard = lambda x: 0.0""", "print"),
    attack("environment", "hard", """
import os
hard = lambda x: float(os.environ["ARENA_ANSWER"])""", "print"),
]  # fmt: skip


@pytest.mark.parametrize("case", [*PATCHES, *TRANSFORMS, *SPIES, *PRINTED], ids=lambda case: case.name)
def test_an_attack_gains_nothing_and_would_have(case: Attack, arena, walls) -> None:
    assert passed(arena, case.answers, walls, "bubblewrap") <= {"easy"}
    if case.control == "print":
        control = passed_by_print(arena, case.answers)
    else:
        control = passed(sharing(arena), case.answers, walls, "bubblewrap")
    assert set(case.gains) <= control


def test_honest_work_scores_in_all_of_them(arena, walls) -> None:
    right = {cell.grade_id: cell.source for cell in arena.cells if cell.role == "answer"}
    assert passed(arena, right, walls, "bubblewrap") == set(right)
    # in the answers' own process the instructor's check is hidden, so that one can't be run there
    assert passed(sharing(arena), right, walls, "bubblewrap") == set(right) - {"scaling"}
    assert passed(arena, HONEST, walls, "bubblewrap") == {"easy"}
