"""What every problem gets from the engine: copies, a time limit, the learner's line, kinds, and one tolerance."""

from __future__ import annotations

import contextlib
import random
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from lorahub_checks import problems, watched
from lorahub_checks.problems import get_problem, problem
from lorahub_checks.properties import equals
from lorahub_edu.show.check import check
from lorahub_grader import assignments, lint


@pytest.fixture(autouse=True)
def adding():
    @problem("98.1", "adding", ("nudge", "concept", "worked step"))
    def _specification(answer, generator):
        x, rows = torch.rand(3, generator=generator, dtype=torch.float64), [1, 2]
        for n in (3, 4):
            yield equals("n more", answer(x, rows, n), x + n, misconceptions={"it was subtracted": x - n})

    yield
    problems._PROBLEMS.pop("98.1")


def adds_in_place(x, rows, n):
    x += n
    return x


def appends(x, rows, n):
    rows.append(n)
    return x + n


def spoils(x, rows, n):
    x.zero_()  # a reference that is computed from the changed input would be n alone
    return x + n


@pytest.mark.parametrize(("answer", "name"), [(adds_in_place, "x"), (appends, "rows"), (spoils, "x")])
def test_what_an_answer_changes_is_named(answer, name) -> None:
    report = check("98.1", answer, 0)
    assert not report.passed and f"probably: {name} was changed in place" in str(report)


def never(x, rows, n):
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def test_a_loop_that_does_not_end_ends_with_a_word() -> None:
    started = time.monotonic()
    report = check("98.1", never, 0, seconds=0.3)
    assert time.monotonic() - started < 5 and "is there a loop that does not end?" in str(report)


def test_the_time_is_the_answers_alone(monkeypatch) -> None:
    """The first check of a process makes torch import a part of itself, which a stop would leave half done."""
    order = []

    @contextlib.contextmanager
    def noted(name):
        order.append(name)
        yield
        order.append(name)

    monkeypatch.setattr(watched, "time_limit", lambda _: noted("limit"))
    monkeypatch.setattr(watched.Answer, "_settings", lambda _: noted("settings"))
    check("98.1", lambda x, rows, n: x + n, 0)
    assert order[:4] == ["settings", "limit", "limit", "settings"]


def leaves(x, rows, n):
    sys.exit(3)


def interrupts(x, rows, n):
    raise KeyboardInterrupt


@pytest.mark.parametrize("answer", [leaves, interrupts])
def test_nothing_that_an_answer_raises_ends_the_notebook(answer) -> None:
    assert "ended the program" in str(check("98.1", answer, 0))


def helper(x):
    return x @ torch.zeros(7, 7, dtype=x.dtype)


def fails_below(x, rows, n):
    return helper(x)


def test_an_error_comes_with_the_learners_own_line() -> None:
    words = str(check("98.1", fails_below, 0))
    assert f"line {helper.__code__.co_firstlineno + 1}: return x @ torch.zeros" in words


def sets_dtype(x, rows, n):
    torch.set_default_dtype(torch.float64)
    return x + n


def switches_gradients_off(x, rows, n):
    torch.set_grad_enabled(False)
    return x + n


def seeds_torch(x, rows, n):
    torch.manual_seed(0)
    return x + n


def seeds_python(x, rows, n):
    random.seed(0)
    random.random()
    return x + n


def seeds_numpy(x, rows, n):
    np.random.seed(1)
    return x + n


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (sets_dtype, "default dtype"),
        (switches_gradients_off, "gradient mode"),
        (seeds_torch, "torch's global generator"),
        (seeds_python, "Python's global generator"),
        (seeds_numpy, "NumPy's global generator"),
    ],
)
def test_what_is_switched_for_everybody_is_named_and_put_back(answer, words) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    report = check("98.1", answer, 0)
    assert not report.passed and words in str(report)
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def draws(x, rows, n):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.rand(5)
    random.shuffle(list(range(5000)))
    np.random.rand(5000)
    return x + n


def test_drawing_from_a_global_generator_is_no_fault() -> None:
    assert check("98.1", draws, 0).passed


def test_the_input_on_which_it_fails_is_said_and_both_values() -> None:
    report = check("98.1", lambda x, rows, n: x + n * (n != 4), 0)
    (failed,) = [p for p in report.properties if not p.passed]
    assert failed.example.startswith("for x = [") and "rows = [1, 2], n = 4: at [" in failed.example
    assert "right is" not in failed.seen  # grading shows this part only


def test_one_tolerance_for_each_dtype() -> None:
    x = torch.tensor([1.0, 1e-3, 300.0], dtype=torch.float64) / 7
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        assert equals("x", x.to(dtype), x).passed
    assert not equals("x", x * (1 + 1e-5), x).passed
    assert not equals("x", (x * (1 + 1e-3)).float(), x).passed
    assert equals("x", (x * 3).float().tolist(), x * 3).passed


@pytest.mark.parametrize(
    ("seen", "expected", "passes"),
    [
        (torch.tensor([1.0, 0.0]), torch.tensor([True, False]), False),
        (torch.tensor([1, 0]), torch.tensor([True, False]), False),
        ([True, False], torch.tensor([True, False]), True),
        (torch.tensor([3.0, 4.0]), torch.tensor([3, 4]), False),
        (np.array([3, 4]), torch.tensor([3, 4]), True),
        (460_801, 460_800, False),
        (["a", "b"], ("a", "b"), True),
        (([1], [2, 3]), ([1], [2, 4]), False),
        (None, "a", False),
        ("a", None, False),
    ],
)
def test_promised_kinds_are_checked(seen, expected, passes) -> None:
    assert equals("x", seen, expected).passed == passes


def in_float32(value):
    if isinstance(value, list | tuple):
        return type(value)(in_float32(part) for part in value)
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype == torch.float64 else value
    return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value


REFERENCES = {one.problem: one.reference for name in assignments.names() for one in lint.asked(assignments.load(name))}


@pytest.mark.parametrize("id", [id for id, answer in REFERENCES.items() if callable(answer)])
def test_a_right_answer_in_float32_is_right(id: str) -> None:
    reference = REFERENCES[id]
    if isinstance(reference, type) or get_problem(id).id == "03.15":  # a module in float64 is handed over
        pytest.skip("works on objects of the answer's process")
    for seed in range(4):
        report = check(id, lambda *given: in_float32(reference(*in_float32(given))), seed)
        assert report.passed, str(report)


@pytest.mark.parametrize("id", [id for id, answer in REFERENCES.items() if callable(answer)])
def test_the_last_hint_is_a_step_and_not_the_answer(id: str) -> None:
    """Typed as the answer's body, no hint passes."""
    reference = REFERENCES[id]
    for hint in get_problem(id).hints:
        assert "return " not in hint
        if isinstance(reference, type):
            continue
        names = reference.__code__.co_varnames[: reference.__code__.co_argcount]
        namespace = dict(reference.__globals__)
        with contextlib.suppress(SyntaxError), warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            exec(f"def answer({', '.join(names)}):\n    return {hint.rstrip('.')}", namespace)
            assert not check(id, namespace["answer"], 0).passed, hint


def test_a_counterexample_prints_no_address_in_memory() -> None:
    told = watched.described({"loss": [].append, "f": described_here, "x": object(), "n": 0.1, "text": "<a>"})
    assert told == "loss = append, f = described_here, x = object, n = 0.1, text = '<a>'"


def described_here() -> None:
    """A function, to be printed."""
