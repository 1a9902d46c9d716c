"""The checks of lesson 01: right answers pass in whatever form, each plausible mistake is named."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorahub_edu.checks import check
from lorahub_edu.lora import LoRAConfig, LoRALinear

SEEDS = range(5)


def stub(*_arguments: object) -> None:
    raise NotImplementedError


def kaiming(rows: int, columns: int, **options: float) -> Tensor:
    return nn.init.kaiming_uniform_(torch.empty(rows, columns), **options)


ROOT5 = math.sqrt(5)


def forward_by_einsum(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    base = torch.einsum("...i,oi->...o", x, W)
    return base + torch.einsum("...i,ri,or->...o", x, A, B) * alpha / len(A)


def forward_by_loop(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    out = F.linear(x, W)
    for a, b in zip(A, B.T, strict=True):  # one rank-one update after the other
        out = out + alpha / B.shape[1] * (x @ a)[..., None] * b
    return out


def forward_by_the_package(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    base = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    layer = LoRALinear(base, LoRAConfig(rank=len(A), alpha=alpha))
    with torch.no_grad():
        base.weight.copy_(W)
        layer.lora_A["default"].copy_(A)
        layer.lora_B["default"].copy_(B)
    return layer(x)


def merge_by_loop(W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    merged = W.clone()
    for k in range(A.shape[0]):
        merged += alpha / A.shape[0] * torch.outer(B[:, k], A[k])
    return merged


def uniform_start(in_features: int, out_features: int, rank: int) -> tuple[Tensor, Tensor]:
    A = (2 * torch.rand(rank, in_features) - 1) / in_features**0.5
    return A, torch.zeros(out_features, rank)


def linear_start(in_features: int, out_features: int, rank: int) -> tuple[Tensor, Tensor]:
    down, up = nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=False)
    nn.init.zeros_(up.weight)
    return down.weight, up.weight


RIGHT: dict[str, dict[str, Callable]] = {
    "01.1": {
        "reference": lambda i, o, r: r * (i + o),
        "two matrices": lambda i, o, r: torch.empty(r, i).numel() + torch.empty(o, r).numel(),
        "as a tensor": lambda i, o, r: torch.tensor(i * r + o * r),
        "the package": lambda i, o, r: sum(
            p.numel() for p in LoRALinear(nn.Linear(i, o), LoRAConfig(rank=r)).parameters() if p.requires_grad
        ),
    },
    "01.2": {
        "reference": lambda x, W, A, B, alpha: x @ W.T + (alpha / A.shape[0]) * (x @ A.T @ B.T),
        "merged": lambda x, W, A, B, alpha: F.linear(x, W + alpha / A.shape[0] * (B @ A)),
        "einsum": forward_by_einsum,
        "rank-one loop": forward_by_loop,
        "the package": forward_by_the_package,
    },
    "01.3": {
        "reference": lambda i, o, r: (kaiming(r, i, a=ROOT5), torch.zeros(o, r)),
        "torch.rand": uniform_start,
        "nn.Linear's own start": linear_start,
        "as a list of parameters": lambda i, o, r: [
            nn.Parameter(kaiming(r, i, a=ROOT5)),
            nn.Parameter(torch.zeros(o, r)),
        ],
    },
    "01.4": {
        "reference": lambda W, A, B, alpha: W + (alpha / A.shape[0]) * (B @ A),
        "addmm": lambda W, A, B, alpha: torch.addmm(W, B, A, alpha=alpha / B.shape[1]),
        "rank-one loop": merge_by_loop,
    },
}


def forward_in_place(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    W += alpha / A.shape[0] * (B @ A)
    return x @ W.T


def merge_in_place(W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    W += alpha / A.shape[0] * (B @ A)
    return W


def seeded_start(in_features: int, out_features: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    A = torch.empty(rank, in_features)
    nn.init.kaiming_uniform_(A, a=ROOT5, generator=generator)
    return A, torch.zeros(out_features, rank)


# Named wrong answers: problem, the mistake, the answer, and words of the message that must name it.
WRONG: list[tuple[str, str, Callable, str]] = [
    ("01.1", "full matrix", lambda i, o, r: i * o, "LoRA trains A and B instead"),
    ("01.1", "rank times full", lambda i, o, r: r * i * o, "rank times the full matrix"),
    ("01.1", "A only", lambda i, o, r: r * i, "only A is counted"),
    ("01.1", "B only", lambda i, o, r: r * o, "only B is counted"),
    ("01.1", "no rank", lambda i, o, r: i + o, "the rank is missing"),
    ("01.1", "multiplied", lambda i, o, r: r * i * r * o, "add them"),
    ("01.1", "with the frozen weight", lambda i, o, r: i * o + r * (i + o), "but it is frozen"),
    ("01.1", "no return", lambda i, o, r: None, "is a return missing"),
    ("01.2", "no scaling", lambda x, W, A, B, alpha: x @ W.T + x @ A.T @ B.T, "alpha / r is left out"),
    ("01.2", "alpha only", lambda x, W, A, B, alpha: x @ W.T + alpha * (x @ A.T @ B.T), "not by alpha / r"),
    ("01.2", "sqrt", lambda x, W, A, B, alpha: x @ W.T + alpha / len(A) ** 0.5 * (x @ A.T @ B.T), "rank-stabilised"),
    ("01.2", "upside down", lambda x, W, A, B, alpha: x @ W.T + len(A) / alpha * (x @ A.T @ B.T), "upside down"),
    ("01.2", "no base", lambda x, W, A, B, alpha: alpha / len(A) * (x @ A.T @ B.T), "base weight W is missing"),
    ("01.2", "no update", lambda x, W, A, B, alpha: x @ W.T, "the update is missing"),
    ("01.2", "A @ B", lambda x, W, A, B, alpha: x @ W.T + alpha / len(A) * (x @ (A @ B).T), "wrong order"),
    ("01.2", "W not transposed", lambda x, W, A, B, alpha: x @ W + alpha / len(A) * (x @ A.T @ B.T), "wrong order"),
    ("01.2", "in place", forward_in_place, "changed in place"),
    ("01.3", "B random", lambda i, o, r: (kaiming(r, i, a=ROOT5), kaiming(o, r, a=ROOT5)), "B is random"),
    ("01.3", "both zero", lambda i, o, r: (torch.zeros(r, i), torch.zeros(o, r)), "nothing is ever learnt"),
    ("01.3", "A zero, B random", lambda i, o, r: (torch.zeros(r, i), torch.randn(o, r)), "changed places"),
    ("01.3", "swapped", lambda i, o, r: (torch.zeros(o, r), kaiming(r, i, a=ROOT5)), "return A first"),
    ("01.3", "transposed", lambda i, o, r: (kaiming(i, r, a=ROOT5), torch.zeros(r, o)), "transposed shapes"),
    (
        "01.3",
        "fan-in from rank",
        lambda i, o, r: (kaiming(i, r, a=ROOT5).T, torch.zeros(o, r)),
        "the bound is 1/sqrt(r)",
    ),
    ("01.3", "a left out", lambda i, o, r: (kaiming(r, i), torch.zeros(o, r)), "a = sqrt(5) is missing"),
    ("01.3", "standard normal", lambda i, o, r: (torch.randn(r, i), torch.zeros(o, r)), "beyond the bound"),
    ("01.3", "tiny normal", lambda i, o, r: (0.001 * torch.randn(r, i), torch.zeros(o, r)), "not uniform"),
    ("01.3", "seeded", seeded_start, "a seed is set inside"),
    ("01.3", "no return", lambda i, o, r: None, "is the return missing"),
    ("01.4", "no scaling", lambda W, A, B, alpha: W + B @ A, "alpha / r is left out"),
    ("01.4", "alpha only", lambda W, A, B, alpha: W + alpha * (B @ A), "not by alpha / r"),
    ("01.4", "sqrt", lambda W, A, B, alpha: W + alpha / len(A) ** 0.5 * (B @ A), "rank-stabilised"),
    ("01.4", "A @ B", lambda W, A, B, alpha: W + alpha / len(A) * (A @ B), "wrong order"),
    ("01.4", "subtracted", lambda W, A, B, alpha: W - alpha / len(A) * (B @ A), "is subtracted"),
    ("01.4", "only the update", lambda W, A, B, alpha: alpha / len(A) * (B @ A), "base weight W is missing"),
    ("01.4", "in place", merge_in_place, "changed in place"),
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
    report = check(problem, stub)
    assert not report.passed and "still empty" in str(report) and report.hint


@pytest.mark.parametrize("problem", ["01.2", "01.4"])
def test_a_b_instead_of_b_a_is_named_by_its_value(problem: str) -> None:
    """Where A @ B has a legal shape (in = out = r), no error protects the learner: the value must give it away."""

    def fits(first: Tensor, second: Tensor) -> Tensor:
        return first @ second if first.shape == second.shape else second @ first

    answers = {
        "01.2": lambda x, W, A, B, alpha: x @ (W + alpha / len(A) * fits(A, B)).T,
        "01.4": lambda W, A, B, alpha: W + alpha / len(A) * fits(A, B),
    }
    failed = [p for p in check(problem, answers[problem], 0).properties if not p.passed]
    assert len(failed) == 1 and "B (out, r) maps back" in failed[0].misconception


def test_a_missing_transpose_is_named_by_its_value() -> None:
    def answer(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
        return (x @ W if W.shape[0] == W.shape[1] else x @ W.T) + alpha / len(A) * (x @ A.T @ B.T)

    failed = [p for p in check("01.2", answer, 0).properties if not p.passed]
    assert len(failed) == 1 and "it is x @ W.T" in failed[0].misconception


def test_hints_go_from_a_nudge_to_a_worked_step() -> None:
    from lorahub_edu import checks

    checks._ATTEMPTS.clear()
    hints = [check("01.4", stub).hint for _ in range(4)]
    assert len(set(hints)) == 3 and hints[2] == hints[3] and "return W +" in hints[2]
