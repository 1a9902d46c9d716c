"""Right and wrong answers to the problems of lesson 01."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from lorahub_edu.lora.layer import LoRAConfig, LoRALinear

ROOT5 = math.sqrt(5)


def kaiming(rows, columns, **options):
    return nn.init.kaiming_uniform_(torch.empty(rows, columns), **options)


def forward_by_einsum(x, W, A, B, alpha):
    base = torch.einsum("...i,oi->...o", x, W)
    return base + torch.einsum("...i,ri,or->...o", x, A, B) * alpha / len(A)


def forward_by_loop(x, W, A, B, alpha):
    out = F.linear(x, W)
    for a, b in zip(A, B.T, strict=True):  # one rank-one update after the other
        out = out + alpha / B.shape[1] * (x @ a)[..., None] * b
    return out


def forward_by_the_package(x, W, A, B, alpha):
    base = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    layer = LoRALinear(base, LoRAConfig(rank=len(A), alpha=alpha))
    with torch.no_grad():
        base.weight.copy_(W)
        layer.lora_A["default"].copy_(A)
        layer.lora_B["default"].copy_(B)
    return layer(x)


def fits(first, second):
    """The first product where its shapes are legal, which is what a careless fix of a shape error comes to."""
    return first @ second if first.shape == second.shape else second @ first


def forward_without_transposing_w(x, W, A, B, alpha):
    return (x @ W if W.shape[0] == W.shape[1] else x @ W.T) + alpha / len(A) * (x @ A.T @ B.T)


def forward_in_place(x, W, A, B, alpha):
    W += alpha / A.shape[0] * (B @ A)
    return x @ W.T


def merge_by_loop(W, A, B, alpha):
    merged = W.clone()
    for k in range(A.shape[0]):
        merged += alpha / A.shape[0] * torch.outer(B[:, k], A[k])
    return merged


def merge_in_place(W, A, B, alpha):
    W += alpha / A.shape[0] * (B @ A)
    return W


def uniform_start(in_features, out_features, rank):
    A = (2 * torch.rand(rank, in_features) - 1) / in_features**0.5
    return A, torch.zeros(out_features, rank)


def linear_start(in_features, out_features, rank):
    down, up = nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=False)
    nn.init.zeros_(up.weight)
    return down.weight, up.weight


def seeded_start(in_features, out_features, rank):
    generator = torch.Generator().manual_seed(0)
    A = torch.empty(rank, in_features)
    nn.init.kaiming_uniform_(A, a=ROOT5, generator=generator)
    return A, torch.zeros(out_features, rank)


class Layer(nn.Module):
    """A right layer, with one place for each mistake."""

    trains_base = False

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base = base.requires_grad_(self.trains_base)
        self.alpha, self.rank = alpha, rank
        self.start(base.in_features, base.out_features)

    def start(self, i, o):
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(self.rank, i)), nn.Parameter(torch.zeros(o, self.rank))

    def scaling(self):
        return self.alpha / self.rank

    def update(self, x):
        return x @ self.lora_A.T @ self.lora_B.T

    def forward(self, x):
        return self.base(x) + self.scaling() * self.update(x)


class ByMatrix(Layer):
    def forward(self, x):
        return F.linear(x, self.base.weight + self.scaling() * self.lora_B @ self.lora_A, self.base.bias)


class FrozenOneByOne(nn.Module):
    def __init__(self, base, rank, alpha):
        super().__init__()
        for parameter in base.parameters():
            parameter.requires_grad = False
        self.register_parameter("lora_B", nn.Parameter(torch.zeros(base.out_features, rank)))
        self.register_parameter("lora_A", nn.Parameter(kaiming(rank, base.in_features)))
        self.linear, self.factor = base, alpha / rank

    def forward(self, x):
        return self.linear(x) + self.factor * torch.einsum("...i,ri,or->...o", x, self.lora_A, self.lora_B)


class Delta(nn.Module):
    def __init__(self, base, rank, alpha):
        super().__init__()
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.factor = alpha / rank

    def forward(self, W):
        return W + self.factor * self.lora_B @ self.lora_A


def by_parametrization(base, rank, alpha):
    parametrize.register_parametrization(base.requires_grad_(False), "weight", Delta(base, rank, alpha))
    return base


class TrainsBase(Layer):
    trains_base = True


class PlainTensors(Layer):
    def start(self, i, o):
        self.lora_A, self.lora_B = torch.randn(self.rank, i), torch.zeros(o, self.rank)


class Transposed(Layer):
    def start(self, i, o):
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(i, self.rank)), nn.Parameter(torch.zeros(self.rank, o))


class RandomB(Layer):
    def start(self, i, o):
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(self.rank, i)), nn.Parameter(torch.randn(o, self.rank))


class BothZero(Layer):
    def start(self, i, o):
        self.lora_A, self.lora_B = nn.Parameter(torch.zeros(self.rank, i)), nn.Parameter(torch.zeros(o, self.rank))


class NoScaling(Layer):
    def scaling(self):
        return 1.0


class AlphaOnly(Layer):
    def scaling(self):
        return self.alpha


class SquareRoot(Layer):
    def scaling(self):
        return self.alpha / math.sqrt(self.rank)


class NoBase(Layer):
    def forward(self, x):
        return self.scaling() * self.update(x)


class ComputedOnce(Layer):
    def start(self, i, o):
        super().start(i, o)
        self.delta = (self.scaling() * self.lora_B @ self.lora_A).detach()

    def forward(self, x):
        return self.base(x) + x @ self.delta.T


RIGHT = {
    "01.1": {
        "two matrices": lambda i, o, r: torch.empty(r, i).numel() + torch.empty(o, r).numel(),
        "as a tensor": lambda i, o, r: torch.tensor(i * r + o * r),
        "the package": lambda i, o, r: sum(
            p.numel() for p in LoRALinear(nn.Linear(i, o), LoRAConfig(rank=r)).parameters() if p.requires_grad
        ),
    },
    "01.2": {
        "merged": lambda x, W, A, B, alpha: F.linear(x, W + alpha / A.shape[0] * (B @ A)),
        "einsum": forward_by_einsum,
        "rank-one loop": forward_by_loop,
        "the package": forward_by_the_package,
    },
    "01.3": {
        "torch.rand": uniform_start,
        "nn.Linear's own start": linear_start,
        "as a list of parameters": lambda i, o, r: [
            nn.Parameter(kaiming(r, i, a=ROOT5)),
            nn.Parameter(torch.zeros(o, r)),
        ],
    },
    "01.4": {
        "addmm": lambda W, A, B, alpha: torch.addmm(W, B, A, alpha=alpha / B.shape[1]),
        "rank-one loop": merge_by_loop,
    },
    "01.5": {
        "one place for each mistake": Layer,
        "by the matrix": ByMatrix,
        "frozen one by one": FrozenOneByOne,
        "by a parametrization": by_parametrization,
    },
    "01.6": {"half": 4096 // 2, "as a float": 4096**2 / (4096 + 4096), "as a tensor": torch.tensor(2048)},
}

WRONG = {
    "01.1": {
        "full matrix": (lambda i, o, r: i * o, "LoRA trains A and B instead"),
        "rank times full": (lambda i, o, r: r * i * o, "rank times the full matrix"),
        "A only": (lambda i, o, r: r * i, "only A is counted"),
        "B only": (lambda i, o, r: r * o, "only B is counted"),
        "no rank": (lambda i, o, r: i + o, "the rank is missing"),
        "multiplied": (lambda i, o, r: r * i * r * o, "add them"),
        "with the frozen weight": (lambda i, o, r: i * o + r * (i + o), "but it is frozen"),
        "no return": (lambda i, o, r: None, "is a return missing"),
    },
    "01.2": {
        "no scaling": (lambda x, W, A, B, alpha: x @ W.T + x @ A.T @ B.T, "alpha / r is left out"),
        "alpha only": (lambda x, W, A, B, alpha: x @ W.T + alpha * (x @ A.T @ B.T), "not by alpha / r"),
        "sqrt": (lambda x, W, A, B, alpha: x @ W.T + alpha / len(A) ** 0.5 * (x @ A.T @ B.T), "rank-stabilised"),
        "upside down": (lambda x, W, A, B, alpha: x @ W.T + len(A) / alpha * (x @ A.T @ B.T), "upside down"),
        "no base": (lambda x, W, A, B, alpha: alpha / len(A) * (x @ A.T @ B.T), "base weight W is missing"),
        "no update": (lambda x, W, A, B, alpha: x @ W.T, "the update is missing"),
        "A @ B": (lambda x, W, A, B, alpha: x @ W.T + alpha / len(A) * (x @ (A @ B).T), "wrong order"),
        "A @ B where it fits": (
            lambda x, W, A, B, alpha: x @ (W + alpha / len(A) * fits(A, B)).T,
            "B (out, r) maps back",
        ),
        "W not transposed": (lambda x, W, A, B, alpha: x @ W + alpha / len(A) * (x @ A.T @ B.T), "wrong order"),
        "W not transposed where it fits": (forward_without_transposing_w, "it is x @ W.T"),
        "in place": (forward_in_place, "changed in place"),
    },
    "01.3": {
        "B random": (lambda i, o, r: (kaiming(r, i, a=ROOT5), kaiming(o, r, a=ROOT5)), "B is random"),
        "both zero": (lambda i, o, r: (torch.zeros(r, i), torch.zeros(o, r)), "nothing is ever learnt"),
        "A zero, B random": (lambda i, o, r: (torch.zeros(r, i), torch.randn(o, r)), "changed places"),
        "swapped": (lambda i, o, r: (torch.zeros(o, r), kaiming(r, i, a=ROOT5)), "return A first"),
        "transposed": (lambda i, o, r: (kaiming(i, r, a=ROOT5), torch.zeros(r, o)), "transposed shapes"),
        "fan-in from rank": (lambda i, o, r: (kaiming(i, r, a=ROOT5).T, torch.zeros(o, r)), "the bound is 1/sqrt(r)"),
        "a left out": (lambda i, o, r: (kaiming(r, i), torch.zeros(o, r)), "a = sqrt(5) is missing"),
        "standard normal": (lambda i, o, r: (torch.randn(r, i), torch.zeros(o, r)), "beyond the bound"),
        "tiny normal": (lambda i, o, r: (0.001 * torch.randn(r, i), torch.zeros(o, r)), "not uniform"),
        "seeded": (seeded_start, "a seed is set inside"),
        "no return": (lambda i, o, r: None, "is the return missing"),
    },
    "01.4": {
        "no scaling": (lambda W, A, B, alpha: W + B @ A, "alpha / r is left out"),
        "alpha only": (lambda W, A, B, alpha: W + alpha * (B @ A), "not by alpha / r"),
        "sqrt": (lambda W, A, B, alpha: W + alpha / len(A) ** 0.5 * (B @ A), "rank-stabilised"),
        "A @ B": (lambda W, A, B, alpha: W + alpha / len(A) * (A @ B), "wrong order"),
        "A @ B where it fits": (lambda W, A, B, alpha: W + alpha / len(A) * fits(A, B), "B (out, r) maps back"),
        "subtracted": (lambda W, A, B, alpha: W - alpha / len(A) * (B @ A), "is subtracted"),
        "only the update": (lambda W, A, B, alpha: alpha / len(A) * (B @ A), "base weight W is missing"),
        "in place": (merge_in_place, "changed in place"),
    },
    "01.5": {
        "trains the base": (TrainsBase, "something else is trained too"),
        "plain tensors": (PlainTensors, "a plain tensor is seen by no optimizer"),
        "transposed": (Transposed, "of these shapes"),
        "B random": (RandomB, "start at the pretrained model"),
        "both zero": (BothZero, "learn from the first step"),
        "no scaling": (NoScaling, "alpha / r is left out"),
        "alpha only": (AlphaOnly, "not by alpha / r"),
        "sqrt": (SquareRoot, "rank-stabilised"),
        "no base": (NoBase, "base weight W is missing"),
        "computed once": (ComputedOnce, "computed once, when B was still zero"),
    },
    "01.6": {
        "only A counts": (4096, "only one of A and B"),
        "the root": (64, "the root of the side"),
        "the usual rank": (8, "far fewer numbers"),
        "a quarter": (1024, "half as many"),
        "numbers, not a rank": (4096**2, "number of weights"),
        "a word": ("half", "a number or tensor was expected"),
    },
}
