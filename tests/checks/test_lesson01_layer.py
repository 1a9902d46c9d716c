"""The check of the LoRA layer as a module: right ones pass in whatever form, each plausible mistake is named."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorahub_edu.checks import check

SEEDS = range(3)


class Right(nn.Module):
    """The reference, with one place for each mistake."""

    trains_base = False
    transposed = False

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(self.trains_base)
        self.alpha, self.rank = alpha, rank
        self.start(base.in_features, base.out_features)

    def start(self, i: int, o: int) -> None:
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(self.rank, i)), nn.Parameter(torch.zeros(o, self.rank))

    def scaling(self) -> float:
        return self.alpha / self.rank

    def update(self, x: Tensor) -> Tensor:
        return x @ self.lora_A.T @ self.lora_B.T

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scaling() * self.update(x)


class ByMatrix(Right):
    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.base.weight + self.scaling() * self.lora_B @ self.lora_A).T


class FrozenOneByOne(nn.Module):
    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        for parameter in base.parameters():
            parameter.requires_grad = False
        self.register_parameter("lora_B", nn.Parameter(torch.zeros(base.out_features, rank)))
        self.register_parameter("lora_A", nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rank, base.in_features))))
        self.linear, self.factor = base, alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.factor * torch.einsum("...i,ri,or->...o", x, self.lora_A, self.lora_B)


class Delta(nn.Module):
    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.factor = alpha / rank

    def forward(self, W: Tensor) -> Tensor:
        return W + self.factor * self.lora_B @ self.lora_A


def by_parametrization(base: nn.Linear, rank: int, alpha: float) -> nn.Module:
    parametrize.register_parametrization(base.requires_grad_(False), "weight", Delta(base, rank, alpha))
    return base


class TrainsBase(Right):
    trains_base = True


class PlainTensors(Right):
    def start(self, i: int, o: int) -> None:
        self.lora_A, self.lora_B = torch.randn(self.rank, i), torch.zeros(o, self.rank)


class Transposed(Right):
    def start(self, i: int, o: int) -> None:
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(i, self.rank)), nn.Parameter(torch.zeros(self.rank, o))


class RandomB(Right):
    def start(self, i: int, o: int) -> None:
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(self.rank, i)), nn.Parameter(torch.randn(o, self.rank))


class BothZero(Right):
    def start(self, i: int, o: int) -> None:
        self.lora_A, self.lora_B = nn.Parameter(torch.zeros(self.rank, i)), nn.Parameter(torch.zeros(o, self.rank))


class NoScaling(Right):
    def scaling(self) -> float:
        return 1.0


class AlphaOnly(Right):
    def scaling(self) -> float:
        return self.alpha


class SquareRoot(Right):
    def scaling(self) -> float:
        return self.alpha / math.sqrt(self.rank)


class NoBase(Right):
    def forward(self, x: Tensor) -> Tensor:
        return self.scaling() * self.update(x)


class ComputedOnce(Right):
    def start(self, i: int, o: int) -> None:
        super().start(i, o)
        self.delta = (self.scaling() * self.lora_B @ self.lora_A).detach()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.delta.T


RIGHT = [Right, ByMatrix, FrozenOneByOne, by_parametrization]
WRONG = [
    (TrainsBase, "something else is trained too"),
    (PlainTensors, "a plain tensor is seen by no optimizer"),
    (Transposed, "of these shapes"),
    (RandomB, "start at the pretrained model"),
    (BothZero, "learn from the first step"),
    (NoScaling, "alpha / r is left out"),
    (AlphaOnly, "not by alpha / r"),
    (SquareRoot, "rank-stabilised"),
    (NoBase, "base weight W is missing"),
    (ComputedOnce, "computed once, when B was still zero"),
]


@pytest.mark.parametrize("answer", RIGHT, ids=lambda answer: answer.__name__)
def test_right_modules_pass(answer: Callable) -> None:
    for seed in SEEDS:
        report = check("01.5", answer, seed)
        assert report.passed and len(report.properties) == 3, str(report)


@pytest.mark.parametrize(("answer", "words"), WRONG, ids=lambda case: getattr(case, "__name__", ""))
def test_each_mistake_is_named(answer: Callable, words: str) -> None:
    for seed in SEEDS:
        report = check("01.5", answer, seed)
        assert any(words in p.misconception for p in report.properties if not p.passed), str(report)


def test_a_stub_is_told_apart() -> None:
    class Stub(nn.Module):
        def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
            raise NotImplementedError

    assert "still empty" in str(check("01.5", Stub))
