"""The checks of lesson 04: right answers pass in whatever form, each plausible mistake is named."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorahub_edu import lessons, tiny
from lorahub_edu.checks import check
from lorahub_edu.errors import CourseError
from lorahub_edu.methods.attach import attach
from lorahub_edu.methods.bottleneck import Bottleneck

SEEDS = range(5)


def stub(*_arguments: object) -> None:
    raise NotImplementedError


def by_the_package(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    layer = Bottleneck(x.shape[-1], down.shape[0], x.device, x.dtype)
    layer.down.weight.data, layer.up.weight.data = down, up
    return layer(x)


def by_modules(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    first, second = nn.Linear(*down.shape[::-1], bias=False), nn.Linear(*up.shape[::-1], bias=False)
    first.weight, second.weight = nn.Parameter(down), nn.Parameter(up)
    return x + second(F.relu(first(x))).detach()


def by_torch(queries: Tensor, keys: Tensor, values: Tensor, gate: float) -> Tensor:
    return gate * F.scaled_dot_product_attention(queries, keys, values)


def head_by_head(queries: Tensor, keys: Tensor, values: Tensor, gate: float) -> Tensor:
    out = []
    for q, k, v in zip(queries, keys, values, strict=True):
        weights = (q @ k.T / q.shape[-1] ** 0.5).exp()
        out.append(gate * (weights / weights.sum(1, keepdim=True)) @ v)
    return torch.stack(out)


def by_trying(budget: int, width: int, places: int) -> int:
    return min(range(1, width), key=lambda m: abs(places * (2 * width * m + m + width) - budget))


def added_in_place(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    x += torch.relu(x @ down.T) @ up.T
    return x


def softmax(q: Tensor, k: Tensor, scale: float = 1.0, dim: int = -1) -> Tensor:
    return torch.softmax(scale * q @ k.mT / math.sqrt(q.shape[-1]), dim)


RIGHT: dict[str, dict[str, Callable]] = {
    "04.1": {
        "reference": lambda x, down, up: x + torch.relu(x @ down.T) @ up.T,
        "modules": by_modules,
        "the package": by_the_package,
    },
    "04.2": {
        "reference": lambda q, k, v, gate: gate * softmax(q, k) @ v,
        "torch": by_torch,
        "head by head": head_by_head,
        "gated at the end": lambda q, k, v, gate: (softmax(q, k) @ v) * gate,
    },
    "04.3": {
        "reference": lambda budget, width, places: max(1, round((budget / places - width) / (2 * width + 1))),
        "by trying": by_trying,
        "as a tensor": lambda b, w, p: torch.tensor(max(1, round((b / p - w) / (2 * w + 1)))),
    },
}
WRONG: list[tuple[str, str, Callable, str]] = [
    ("04.1", "no input", lambda x, d, u: torch.relu(x @ d.T) @ u.T, "input itself is missing"),
    ("04.1", "linear", lambda x, d, u: x + x @ d.T @ u.T, "nonlinearity is missing"),
    ("04.1", "late", lambda x, d, u: x + torch.relu(x @ d.T @ u.T), "belongs in the middle"),
    ("04.1", "behind the sum", lambda x, d, u: torch.relu(x + torch.relu(x @ d.T) @ u.T), "behind the sum"),
    ("04.1", "subtracted", lambda x, d, u: torch.relu(x @ d.T) @ u.T - x, "subtracted"),
    ("04.1", "in place", added_in_place, "has changed"),
    ("04.1", "no return", lambda x, d, u: None, "is a return missing"),
    ("04.2", "no gate", lambda q, k, v, g: softmax(q, k) @ v, "gate is missing"),
    ("04.2", "no root", lambda q, k, v, g: g * torch.softmax(q @ k.mT, -1) @ v, "not divided by the root"),
    ("04.2", "size", lambda q, k, v, g: g * torch.softmax(q @ k.mT / 8, -1) @ v, "not by its root"),
    ("04.2", "inside", lambda q, k, v, g: softmax(q, k, g) @ v, "inside the softmax"),
    ("04.2", "over queries", lambda q, k, v, g: g * softmax(q, k, dim=-2) @ v, "over the queries"),
    ("04.2", "no softmax", lambda q, k, v, g: g * (q @ k.mT / 8**0.5) @ v, "no softmax"),
    ("04.2", "twice", lambda q, k, v, g: g * g * softmax(q, k) @ v, "applied twice"),
    ("04.2", "exchanged", lambda q, k, v, g: g * softmax(q, v) @ k, "exchanged"),
    ("04.2", "mean", lambda q, k, v, g: g * v.mean(1, keepdim=True).expand_as(q), "mean of the values"),
    ("04.3", "no places", lambda b, w, p: round((b - w) / (2 * w + 1)), "divide the budget among"),
    ("04.3", "one matrix", lambda b, w, p: round((b / p - w) / (w + 1)), "two matrices is missing"),
    ("04.3", "a fraction", lambda b, w, p: (b / p - w) / (2 * w + 1), "a whole number"),
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


def test_rounding_the_wrong_way_is_found() -> None:
    answers = {
        "rounded down": lambda b, w, p: max(1, math.floor((b / p - w) / (2 * w + 1))),
        "rounded up": lambda b, w, p: max(1, math.ceil((b / p - w) / (2 * w + 1))),
        "biases are missing": lambda b, w, p: max(1, round(b / p / (2 * w))),
    }
    for words, answer in answers.items():
        reports = [check("04.3", answer, seed) for seed in SEEDS]
        assert any(not r.passed and words in str(r) for r in reports), words


def test_the_attention_that_the_lesson_builds_is_pefts() -> None:
    cells = lessons.build("04_rivals").cells
    source = next(cell.source for cell in cells if "def zero_init_attention" in cell.source)
    assert len(source.splitlines()) <= 60
    namespace = {"torch": torch}
    exec(source, namespace)
    model = tiny.model()
    made = attach(model, "llama_adapter", length=7)
    adapted = model.model.layers[-1].self_attn
    hidden = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(0))
    cos, sin = model.model.rotary_emb(hidden, torch.arange(9).repeat(2, 1))
    arguments = {"hidden_states": hidden, "position_embeddings": (cos, sin), "attention_mask": None}
    with torch.no_grad():
        for gate in (0.0, 0.7, -1.3):
            adapted.adaption_gate.fill_(gate)
            added = namespace["zero_init_attention"](
                adapted.model, hidden, cos, sin, adapted.adaption_prompt[0], adapted.adaption_gate
            )
            expected = adapted(**arguments)[0] - adapted.model(**arguments)[0]
            assert (added - expected).abs().max() < 1e-5
            assert (added.abs().max() > 1e-3) == (gate != 0)
    assert made.trainable == 2 * (7 * 128 + 1)


@pytest.mark.parametrize("problem", RIGHT)
def test_the_stub_is_told_apart_from_a_wrong_answer(problem: str) -> None:
    report = check(problem, stub)
    assert not report.passed and "still empty" in str(report) and report.hint


def test_there_are_three_problems() -> None:
    with pytest.raises(CourseError, match=r"no problem '04\.4'"):
        check("04.4", stub)
