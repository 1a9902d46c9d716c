"""Lesson 05's checks: right answers pass on every draw, wrong ones are named."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from lorahub_edu.checks import check

SEEDS = range(5)


def held(frozen: int, trained: int, frozen_bytes: int, trained_bytes: int) -> int:
    return frozen * frozen_bytes + 4 * trained * trained_bytes


def held_in_steps(frozen: int, trained: int, frozen_bytes: int, trained_bytes: int) -> int:
    weights = frozen * frozen_bytes + trained * trained_bytes
    gradients = trained * trained_bytes
    return weights + gradients + 2 * gradients


def running(changes: list[int]) -> int:
    live = peak = 0
    for change in changes:
        live += change
        peak = max(peak, live)
    return peak


def cumulative(changes: list[int]) -> int:
    return max([0, *itertools.accumulate(changes)])


def with_numpy(changes: list[int]) -> int:
    return int(np.cumsum([0, *changes]).max())


def in_place(changes: list[int]) -> int:
    for i in range(1, len(changes)):
        changes[i] += changes[i - 1]
    return max([0, *changes])


def four_bits(weights: int, block: int) -> float:
    return weights / 2 + 4 * (weights / block)


RIGHT: dict[str, dict[str, Callable]] = {
    "05.1": {"in a line": held, "in steps": held_in_steps},
    "05.2": {"running": running, "accumulate": cumulative, "numpy": with_numpy},
    "05.3": {"plain": four_bits, "in bits": lambda n, block: (4 * n + 32 * n // block) / 8},
}
WRONG: list[tuple[str, str, Callable, str]] = [
    ("05.1", "no optimizer", lambda f, t, fb, tb: f * fb + 2 * t * tb, "AdamW keeps two moments"),
    ("05.1", "no gradient", lambda f, t, fb, tb: f * fb + 3 * t * tb, "one of four is missing"),
    ("05.1", "all trained", lambda f, t, fb, tb: 4 * f * fb + 4 * t * tb, "frozen weights get no gradient"),
    ("05.1", "no base", lambda f, t, fb, tb: 4 * t * tb, "the frozen weights are missing"),
    ("05.1", "frozen dtype", lambda f, t, fb, tb: f * fb + 4 * t * fb, "with the frozen dtype's bytes"),
    ("05.1", "numbers", lambda f, t, fb, tb: f + 4 * t, "these are numbers"),
    ("05.1", "bits", lambda f, t, fb, tb: 8 * held(f, t, fb, tb), "eight of them"),
    ("05.1", "no return", lambda f, t, fb, tb: None, "is a return missing"),
    ("05.2", "end", lambda changes: sum(changes), "live at the end"),
    ("05.2", "taken", lambda changes: sum(c for c in changes if c > 0), "nothing freed"),
    ("05.2", "largest", lambda changes: max(changes, default=0), "largest single allocation"),
    ("05.2", "absolute", lambda changes: sum(abs(c) for c in changes), "added instead of taken off"),
    ("05.2", "in place", in_place, "changed in place"),
    ("05.3", "no scales", lambda n, block: n / 2, "the scales are missing"),
    ("05.3", "32 bytes", lambda n, block: n / 2 + 32 * n / block, "four bytes, not 32"),
    ("05.3", "one byte", lambda n, block: n / 2 + n / block, "four bytes, not one"),
    ("05.3", "half", lambda n, block: n / 2 + 2 * n / block, "four bytes, not two"),
    ("05.3", "each", lambda n, block: n / 2 + 4 * n, "a block shares one"),
    ("05.3", "bytes for bits", lambda n, block: 4 * n + 4 * n / block, "half a byte, not four bytes"),
    ("05.3", "bits", lambda n, block: 8 * four_bits(n, block), "eight of them"),
    ("05.3", "block scales", lambda n, block: n / 2 + 4 * block, "not one for each weight of a block"),
]


@pytest.mark.parametrize(
    ("problem", "answer"),
    [pytest.param(p, answer, id=f"{p}-{name}") for p, answers in RIGHT.items() for name, answer in answers.items()],
)
def test_right_answers_pass(problem: str, answer: Callable) -> None:
    for seed in SEEDS:
        report = check(problem, answer, seed)
        assert report.passed, str(report)
        assert len(report.properties) >= 3


@pytest.mark.parametrize(
    ("problem", "answer", "words"), [pytest.param(p, a, words, id=f"{p}-{name}") for p, name, a, words in WRONG]
)
def test_wrong_answers_are_named(problem: str, answer: Callable, words: str) -> None:
    for seed in SEEDS:
        report = check(problem, answer, seed)
        assert not report.passed
        assert any(words in p.misconception for p in report.properties if not p.passed), str(report)


@pytest.mark.parametrize("problem", RIGHT)
def test_the_stub_is_told_apart_from_a_wrong_answer(problem: str) -> None:
    def stub(*_arguments: object) -> None:
        raise NotImplementedError

    report = check(problem, stub)
    assert not report.passed and "still empty" in str(report) and report.hint


def test_the_answer_is_what_the_planner_counts() -> None:
    """The formula of 05.1 on a LoRA step is the planner's weights, gradients and optimizer."""
    from lorahub_edu import tiny
    from lorahub_edu.memory.predict import Setting, predict
    from lorahub_edu.memory.preparing import get_method

    config = tiny.config()
    setting = Setting(
        method=get_method("lora"), micro_batch=1, block=8, dtype="bfloat16", device="cpu", optimizer="adamw"
    )
    found = predict(config, setting)
    wanted = held(found.parameters - found.trained, found.trained, 2, 4)
    gradient = 4 * found.trained
    assert found.parts["weights"] + gradient + found.parts["optimizer"] == pytest.approx(wanted, rel=0.01)
