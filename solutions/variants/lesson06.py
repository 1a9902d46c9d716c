"""Right and wrong answers to the problems of lesson 06."""

from pathlib import Path

import torch
from torch import Tensor

from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.hub.compose import compose, stack
from lorahub_edu.lora.layer import LoRAConfig


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


def exact_backwards(As: list[Tensor], Bs: list[Tensor], weights: list[float]) -> list[Tensor]:
    order = range(len(As))[::-1]
    return [torch.cat([weights[i] * As[i] for i in order]), torch.cat([Bs[i] for i in order], dim=1)]


def exact_in_equal_shares(As: list[Tensor], Bs: list[Tensor], weights: list[float]) -> tuple[Tensor, Tensor]:
    roots = [abs(w) ** 0.5 for w in weights]
    A = torch.cat([root * A for root, A in zip(roots, As, strict=True)])
    signed = [root if w > 0 else -root for root, w in zip(roots, weights, strict=True)]
    return A, torch.cat([root * B for root, B in zip(signed, Bs, strict=True)], dim=1)


RIGHT = {
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
        "by solving": lambda A, B, Q: (Q.mm(A), torch.linalg.solve(Q.T, B.T).T),
    },
    "06.3": {
        "reference": lambda As, Bs, w: (torch.cat(As), torch.cat([x * B for x, B in zip(w, Bs, strict=True)], 1)),
        "weights on A, last module first": exact_backwards,
        "weights on both": exact_in_equal_shares,
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


def wrong_side(A: Tensor, B: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    """Where in = out = r, a factor on the wrong side has a legal shape."""
    return (A @ Q, Q.T @ B) if A.shape[0] == A.shape[1] else (Q @ A, B @ Q.T)


def keeps_the_sign(As: list[Tensor], Bs: list[Tensor], w: list[float], s: float) -> Tensor:
    return s * w[0] * Bs[0] @ As[0] if len(w) == 1 else s * weighted(w, Bs) @ weighted(w, As)


WRONG = {
    "06.1": {
        "the sign of one": (keeps_the_sign, "the signs cancel"),
        "updates added": (lambda As, Bs, w, s: s * exact(w, As, Bs), "the exact composition, without cross-terms"),
        "own terms": (lambda As, Bs, w, s: s * exact([x * x for x in w], As, Bs), "cross-terms are missing"),
        "no scaling": (lambda As, Bs, w, s: weighted(w, Bs) @ weighted(w, As), "scaling is left out"),
        "scaling twice": (lambda As, Bs, w, s: s * weighted(w, Bs) @ (s * weighted(w, As)), "counts squared"),
        "only A": (lambda As, Bs, w, s: s * sum(Bs) @ weighted(w, As), "only A is weighted"),
        "only B": (lambda As, Bs, w, s: s * weighted(w, Bs) @ sum(As), "only B is weighted"),
        "no weights": (lambda As, Bs, w, s: s * sum(Bs) @ sum(As), "the weights are not used"),
        "normalised": (normalised, "divided by their sum"),
        "softmax": (softmaxed, "softmax"),
        "mean": (lambda As, Bs, w, s: s * weighted(w, Bs) @ weighted(w, As) / len(w) ** 2, "these are means"),
        "no signs": (
            lambda As, Bs, w, s: s * weighted([abs(x) for x in w], Bs) @ weighted([abs(x) for x in w], As),
            "lost their signs",
        ),
        "squared in the sums": (
            lambda As, Bs, w, s: s * weighted([x * x for x in w], Bs) @ weighted([x * x for x in w], As),
            "squared already",
        ),
        "in place": (add_in_place, "was changed in place"),
        "no return": (lambda As, Bs, w, s: None, "is a return missing"),
    },
    "06.2": {
        "wrong side": (wrong_side, "turns the inputs"),
        "B @ Q": (lambda A, B, Q: (Q @ A, B @ Q), "B must undo Q"),
        "the other way": (lambda A, B, Q: (Q.T @ A, B @ Q), "turns the other way"),
        "A only": (lambda A, B, Q: (Q @ A, B), "it must undo the turn"),
        "nothing": (lambda A, B, Q: (A.clone(), B.clone()), "nothing is turned"),
        "product only": (lambda A, B, Q: B @ A, "return the pair"),
        "in place": (one_factor_changed, "was changed in place"),
    },
    "06.3": {
        "paper's sums": (lambda As, Bs, w: (weighted(w, As), weighted(w, Bs)), "does not add factors"),
        "squared": (lambda As, Bs, w: (torch.cat(scaled(w, As)), torch.cat(scaled(w, Bs), 1)), "counts squared"),
        "no weights": (lambda As, Bs, w: (torch.cat(As), torch.cat(Bs, 1)), "the weights are not used"),
        "roots": (rooted, "lost their signs"),
        "swapped": (lambda As, Bs, w: (torch.cat(scaled(w, Bs), 1), torch.cat(As)), "return A first"),
        "orders differ": (
            lambda As, Bs, w: (torch.cat(As[::-1]), torch.cat(scaled(w, Bs), 1)),
            "stacked in different orders",
        ),
        "dims": (lambda As, Bs, w: (torch.cat(As, 1), torch.cat(scaled(w, Bs))), "wrong way round"),
        "in place": (scale_in_place, "was changed in place"),
        "no return": (lambda As, Bs, w: None, "is the return missing"),
    },
}
