"""Checks of lesson 06: right answers pass however they are written, and every misconception is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorahub_edu.adapter_files import AdapterFile
from lorahub_edu.checks import check
from lorahub_edu.hub.compose import compose, stack
from lorahub_edu.lora import LoRAConfig

SEEDS = range(5)


def stub(*_arguments: object) -> None:
    raise NotImplementedError


def weighted(weights: list[float], tensors: list[Tensor]) -> Tensor:
    return sum(w * tensor for w, tensor in zip(weights, tensors, strict=True))


def exact(weights: list[float], As: list[Tensor], Bs: list[Tensor]) -> Tensor:
    return sum(w * B @ A for w, A, B in zip(weights, As, Bs, strict=True))


def paper_by_terms(As: list[Tensor], Bs: list[Tensor], weights: list[float], scaling: float) -> Tensor:
    terms = [
        wi * wj * B @ A for wi, B in zip(weights, Bs, strict=True) for wj, A in zip(weights, As, strict=True)
    ]  # own terms and cross-terms, one after the other
    return scaling * sum(terms)


def files(As: list[Tensor], Bs: list[Tensor]) -> list[AdapterFile]:
    return [
        AdapterFile(
            Path(f"module{i}"), {"layer": (A, B)}, {"layer": LoRAConfig(len(A), len(A), dtype=A.dtype)}, "b", None
        )
        for i, (A, B) in enumerate(zip(As, Bs, strict=True))
    ]


def paper_by_the_package(As: list[Tensor], Bs: list[Tensor], weights: list[float], scaling: float) -> Tensor:
    A, B = compose(stack(files(As, Bs)), weights).weights["layer"]
    return scaling * B @ A


def exact_by_the_package(As: list[Tensor], Bs: list[Tensor], weights: list[float]) -> tuple[Tensor, Tensor]:
    return compose(stack(files(As, Bs), composition="exact"), weights, "exact").weights["layer"]


def exact_backwards(As: list[Tensor], Bs: list[Tensor], weights: list[float]) -> list[Tensor]:
    order = range(len(As))[::-1]
    return [torch.cat([weights[i] * As[i] for i in order]), torch.cat([Bs[i] for i in order], dim=1)]


RIGHT: dict[str, dict[str, Callable]] = {
    "06.1": {
        "reference": lambda As, Bs, w, s: s * weighted(w, Bs) @ weighted(w, As),
        "einsum": lambda As, Bs, w, s: (
            s
            * torch.einsum("n,nor->or", torch.tensor(w, dtype=As[0].dtype), torch.stack(Bs))
            @ torch.einsum("n,nri->ri", torch.tensor(w, dtype=As[0].dtype), torch.stack(As))
        ),
        "term by term": paper_by_terms,
        "the package": paper_by_the_package,
    },
    "06.2": {
        "reference": lambda A, B, Q: (Q @ A, B @ Q.T),
        "by the inverse": lambda A, B, Q: [Q @ A, B @ torch.linalg.inv(Q)],
    },
    "06.3": {
        "reference": lambda As, Bs, w: (torch.cat(As), torch.cat([x * B for x, B in zip(w, Bs, strict=True)], 1)),
        "weights on A, last module first": exact_backwards,
    },
}


def one_factor_changed(A: Tensor, B: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    A.copy_(Q @ A)
    return A, B @ Q.T


def add_in_place(As: list[Tensor], Bs: list[Tensor], w: list[float], s: float) -> Tensor:
    for x, A, B in zip(w, As, Bs, strict=True):
        A *= x
        B *= x
    return s * sum(Bs) @ sum(As)


def scale_in_place(As: list[Tensor], Bs: list[Tensor], w: list[float]) -> tuple[Tensor, Tensor]:
    for x, B in zip(w, Bs, strict=True):
        B *= x
    return torch.cat(As), torch.cat(Bs, 1)


def normalised(As: list[Tensor], Bs: list[Tensor], w: list[float], s: float) -> Tensor:
    shares = [x / sum(w) for x in w]
    return s * weighted(shares, Bs) @ weighted(shares, As)


def softmaxed(As: list[Tensor], Bs: list[Tensor], w: list[float], s: float) -> Tensor:
    shares = torch.tensor(w).softmax(0).tolist()
    return s * weighted(shares, Bs) @ weighted(shares, As)


def rooted(As: list[Tensor], Bs: list[Tensor], w: list[float]) -> tuple[Tensor, Tensor]:
    roots = [abs(x) ** 0.5 for x in w]
    A = torch.cat([root * A for root, A in zip(roots, As, strict=True)])
    return A, torch.cat([root * B for root, B in zip(roots, Bs, strict=True)], 1)


def scaled(w: list[float], tensors: list[Tensor]) -> list[Tensor]:
    return [x * tensor for x, tensor in zip(w, tensors, strict=True)]


# Named wrong answers: problem, the mistake, the answer, and words of the message that must name it.
WRONG: list[tuple[str, str, Callable, str]] = [
    ("06.1", "updates added", lambda As, Bs, w, s: s * exact(w, As, Bs), "the exact composition, without cross-terms"),
    ("06.1", "own terms", lambda As, Bs, w, s: s * exact([x * x for x in w], As, Bs), "cross-terms are missing"),
    ("06.1", "no scaling", lambda As, Bs, w, s: weighted(w, Bs) @ weighted(w, As), "scaling is left out"),
    ("06.1", "scaling twice", lambda As, Bs, w, s: s * weighted(w, Bs) @ (s * weighted(w, As)), "counts squared"),
    ("06.1", "only A", lambda As, Bs, w, s: s * sum(Bs) @ weighted(w, As), "only A is weighted"),
    ("06.1", "only B", lambda As, Bs, w, s: s * weighted(w, Bs) @ sum(As), "only B is weighted"),
    ("06.1", "no weights", lambda As, Bs, w, s: s * sum(Bs) @ sum(As), "the weights are not used"),
    ("06.1", "normalised", normalised, "divided by their sum"),
    ("06.1", "softmax", softmaxed, "softmax"),
    ("06.1", "mean", lambda As, Bs, w, s: s * weighted(w, Bs) @ weighted(w, As) / len(w) ** 2, "these are means"),
    (
        "06.1",
        "no signs",
        lambda As, Bs, w, s: s * weighted([abs(x) for x in w], Bs) @ weighted([abs(x) for x in w], As),
        "lost their signs",
    ),
    (
        "06.1",
        "squared in the sums",
        lambda As, Bs, w, s: s * weighted([x * x for x in w], Bs) @ weighted([x * x for x in w], As),
        "squared already",
    ),
    ("06.1", "in place", add_in_place, "a tensor that was passed in has changed"),
    ("06.1", "no return", lambda As, Bs, w, s: None, "is a return missing"),
    ("06.2", "B @ Q", lambda A, B, Q: (Q @ A, B @ Q), "B must undo Q"),
    ("06.2", "the other way", lambda A, B, Q: (Q.T @ A, B @ Q), "turns the other way"),
    ("06.2", "A only", lambda A, B, Q: (Q @ A, B), "it must undo the turn"),
    ("06.2", "nothing", lambda A, B, Q: (A.clone(), B.clone()), "nothing is turned"),
    ("06.2", "product only", lambda A, B, Q: B @ A, "return the pair"),
    ("06.2", "in place", one_factor_changed, "a tensor that was passed in has changed"),
    ("06.3", "paper's sums", lambda As, Bs, w: (weighted(w, As), weighted(w, Bs)), "does not add factors"),
    ("06.3", "squared", lambda As, Bs, w: (torch.cat(scaled(w, As)), torch.cat(scaled(w, Bs), 1)), "counts squared"),
    ("06.3", "no weights", lambda As, Bs, w: (torch.cat(As), torch.cat(Bs, 1)), "the weights are not used"),
    ("06.3", "roots", rooted, "lost their signs"),
    ("06.3", "swapped", lambda As, Bs, w: (torch.cat(scaled(w, Bs), 1), torch.cat(As)), "return A first"),
    (
        "06.3",
        "orders differ",
        lambda As, Bs, w: (torch.cat(As[::-1]), torch.cat(scaled(w, Bs), 1)),
        "stacked in different orders",
    ),
    ("06.3", "dims", lambda As, Bs, w: (torch.cat(As, 1), torch.cat(scaled(w, Bs))), "wrong way round"),
    ("06.3", "in place", scale_in_place, "a tensor that was passed in has changed"),
    ("06.3", "no return", lambda As, Bs, w: None, "is the return missing"),
]


@pytest.mark.parametrize(
    ("problem", "answer"),
    [pytest.param(p, answer, id=f"{p}-{name}") for p, answers in RIGHT.items() for name, answer in answers.items()],
)
def test_right_answers_pass(problem: str, answer: Callable) -> None:
    for seed in SEEDS:
        report = check(problem, answer, seed)
        assert report.passed, str(report)
        assert len(report.properties) >= 5


def test_the_package_composes_exactly_as_asked() -> None:
    """The package pads modules of different rank, so its shapes may differ from the check's, its product may not."""
    generator = torch.Generator().manual_seed(0)
    for ranks in ((4, 4, 4), (2, 5, 3)):
        As = [torch.randn(r, 11, generator=generator, dtype=torch.float64) for r in ranks]
        Bs = [torch.randn(13, r, generator=generator, dtype=torch.float64) for r in ranks]
        A, B = exact_by_the_package(As, Bs, [0.3, -0.4, 1.2])
        torch.testing.assert_close(B @ A, exact([0.3, -0.4, 1.2], As, Bs))


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


def test_factors_on_the_wrong_side_are_named_by_their_value() -> None:
    """Where in = out = r, a factor on the wrong side has a legal shape: the value must give it away."""

    def wrong_side(A: Tensor, B: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
        return (A @ Q, Q.T @ B) if A.shape[0] == A.shape[1] else (Q @ A, B @ Q.T)

    for seed in SEEDS:
        failed = [p for p in check("06.2", wrong_side, seed).properties if not p.passed]
        assert any("turns the inputs" in p.misconception for p in failed)
        assert any("turns the outputs" in p.misconception for p in failed)


def test_minus_one_alone_is_checked() -> None:
    def keeps_the_sign(As: list[Tensor], Bs: list[Tensor], w: list[float], s: float) -> Tensor:
        return s * w[0] * Bs[0] @ As[0] if len(w) == 1 else s * weighted(w, Bs) @ weighted(w, As)

    failed = [p for p in check("06.1", keeps_the_sign, 0).properties if not p.passed]
    assert len(failed) == 1 and "the signs cancel" in failed[0].misconception
