"""What right answers of lesson 06 must satisfy: LoRAHub's composition, another basis, the exact composition.

Notation: per module A (r, in) and B (out, r). Source: Huang et al. 2023, arXiv 2307.13269, section 3.2, equation 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lorahub_checks.draws import normal
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds

NOT_A_PAIR = "return the pair A, B (is the return missing?)"


def _modules(ranks: Sequence[int], generator: torch.Generator) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """Random As (r, in), Bs (out, r) in float64 and weights of both signs, none of size 0, ½ or 1."""
    inputs, outputs = (4, 3) if len(ranks) == 2 else (11, 13)
    As = [normal(generator, r, inputs) for r in ranks]
    Bs = [normal(generator, outputs, r) for r in ranks]
    sizes = (0.2 + 0.25 * torch.rand(len(ranks), generator=generator, dtype=torch.float64)).tolist()
    weights = [size if i % 2 == 0 else -1.5 * size for i, size in enumerate(sizes)]
    return As, Bs, weights


def _summed(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    return sum(w * tensor for w, tensor in zip(weights, tensors, strict=True))


def _product(weights: list[float], As: list[Tensor], Bs: list[Tensor]) -> Tensor:
    return _summed(weights, Bs) @ _summed(weights, As)


def _exact(weights: Sequence[float], As: Sequence[Tensor], Bs: Sequence[Tensor]) -> Tensor:
    return _summed(weights, [B @ A for A, B in zip(As, Bs, strict=True)])


def _pair(made: object) -> tuple[Tensor, Tensor] | None:
    if isinstance(made, tuple | list) and len(made) == 2 and all(isinstance(m, Tensor) for m in made):
        return made[0], made[1]
    return None


@problem(
    "06.1",
    "compose modules in LoRAHub's way",
    hints=(
        "Before anything is multiplied, two sums are formed. Of what?",
        "A = Σ wᵢAᵢ and B = Σ wᵢBᵢ; the update is one product of the two sums, times the scaling, once.",
        "Weights 1 and 2, As 1 and 3, Bs 2 and 1, scaling 1: the sums are A = 7 and B = 4, the update is 28. The "
        "exact sum would be 8.",
    ),
)
def composed_update(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of composed_update(As, Bs, weights, scaling) -> update (out, in)."""
    scaling = 2.0 + float(torch.rand((), generator=generator))
    for name, count in {"five modules, some weights negative": 5, "two modules": 2}.items():
        As, Bs, weights = _modules([4 if count > 2 else 2] * count, generator)
        A, B, ones = _summed(weights, As), _summed(weights, Bs), [1.0] * count
        shares = [w / sum(weights) for w in weights]
        soft = _product(torch.softmax(torch.tensor(weights), 0).tolist(), As, Bs)
        sizes, squares = [abs(w) for w in weights], [w * w for w in weights]
        exact, own_terms = scaling * _exact(weights, As, Bs), scaling * _exact(squares, As, Bs)
        yield equals(
            name,
            answer(As, Bs, weights, scaling),
            scaling * B @ A,
            misconceptions={
                "these are the updates added up, Σ wᵢBᵢAᵢ: that is the exact composition, without cross-terms": exact,
                "only the own terms wᵢ²BᵢAᵢ are there: the cross-terms are missing": own_terms,
                "the scaling is left out": B @ A,
                "the scaling is applied to A and to B, so it counts squared: apply it once": scaling**2 * B @ A,
                "only A is weighted: LoRAHub's weight stands in both sums": scaling * _summed(ones, Bs) @ A,
                "only B is weighted: LoRAHub's weight stands in both sums": scaling * B @ _summed(ones, As),
                "the weights are not used": scaling * _product(ones, As, Bs),
                "the weights are divided by their sum; LoRAHub's are free": scaling * _product(shares, As, Bs),
                "the weights went through a softmax; LoRAHub's are free and may be negative": scaling * soft,
                "the weights have lost their signs": scaling * _product(sizes, As, Bs),
                "these are means, not sums": scaling * B @ A / count**2,
                "each weight is squared already in the sums": scaling * _product(squares, As, Bs),
            },
        )
    yield equals(
        "one module alone at weight -1 is the module itself",
        answer(As[:1], Bs[:1], [-1.0], scaling),
        scaling * Bs[0] @ As[0],
        misconceptions={
            "minus one is subtracted here; in the product of two sums the signs cancel": -scaling * Bs[0] @ As[0]
        },
    )


@problem(
    "06.2",
    "the same module in another basis",
    hints=(
        "Which matrix may stand between B and A without changing B @ A?",
        "QᵀQ is the identity, so it may stand between B and A without changing their product.",
        "B (QᵀQ) A has four factors. Put brackets around two and two: one pair is as large as A, the other as large "
        "as B.",
    ),
)
def rotate(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of rotate(A, B, Q) -> (Q A, the B that goes with it)."""
    # With in = out = r every order of the factors has a legal shape, so that no shape error protects the learner.
    for name, (inputs, outputs, rank) in {"": (11, 13, 4), ", with in = out = r": (6, 6, 6)}.items():
        A = torch.randn(rank, inputs, generator=generator, dtype=torch.float64)
        B = torch.randn(outputs, rank, generator=generator, dtype=torch.float64)
        Q = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))[0]
        made = answer(A, B, Q)
        pair = _pair(made)
        yield holds("two tensors come back" + name, pair is not None, type(made).__name__, NOT_A_PAIR)
        if pair is None:
            return
        turned_A, turned_B = (
            {"A is left as it was: nothing is turned": A},
            {"B is left as it was: it must undo the turn": B},
        )
        turned_A["Q.T is applied: that turns the other way"] = Q.T @ A
        turned_B["B @ Q turns once more in the same direction; B must undo Q: B @ Q.T"] = B @ Q
        if inputs == rank:
            turned_A["Q stands on the right of A: that turns the inputs, not the rank space"] = A @ Q
            turned_B["Q stands on the left of B: that turns the outputs, not the rank space"] = Q.T @ B
        yield equals("A becomes Q A" + name, pair[0], Q @ A, misconceptions=turned_A)
        yield equals("B becomes B Qᵀ" + name, pair[1], B @ Q.T, misconceptions=turned_B)
        same = pair[1].shape[-1] == pair[0].shape[0] and torch.allclose(pair[1] @ pair[0], B @ A)
        yield holds("the update B A stays the same" + name, same, misconception="this is another module than before")


@problem(
    "06.3",
    "the exact composition as one module",
    hints=(
        "A sum of products wᵢBᵢAᵢ is itself one product, of two larger matrices. What are their shapes?",
        "The As go over each other, (Σr, in); the Bs go side by side, (out, Σr). Each weight is used once.",
        "Ranks 2 and 1, in = 4, out = 3: A is (3, 4), B is (3, 3). The third column of B is the second module's, "
        "times that module's weight.",
    ),
)
def exact_composition(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of exact_composition(As, Bs, weights) -> A (Σr, in), B (out, Σr)."""
    for name, ranks in {
        "three modules of one rank": [4, 4, 4],
        "modules of ranks 2, 5 and 3": [2, 5, 3],
        "few numbers": [2, 1],
    }.items():
        As, Bs, weights = _modules(ranks, generator)
        made = answer(As, Bs, weights)
        pair = _pair(made)
        yield holds(f"two tensors come back for {name}", pair is not None, type(made).__name__, NOT_A_PAIR)
        if pair is None:
            return
        A, B = pair
        shapes, wanted = (tuple(A.shape), tuple(B.shape)), ((sum(ranks), As[0].shape[1]), (len(Bs[0]), sum(ranks)))
        guess = {
            (
                (4, 11),
                (13, 4),
            ): "these are LoRAHub's sums, Σ wᵢAᵢ and Σ wᵢBᵢ: the exact composition does not add factors",
            wanted[::-1]: "A and B are swapped: return A first",
            ((ranks[0], 11 * len(ranks)), (13 * len(ranks), ranks[0])): "the dims are the wrong way round: As go over "
            "each other (dim 0), Bs side by side (dim 1)",
        }.get(shapes, "the As go over each other, the Bs side by side: the ranks add up")
        yield holds(f"the ranks add up for {name}", shapes == wanted, f"A {shapes[0]}, B {shapes[1]}", guess)
        if shapes != wanted:
            return
        B_all = torch.cat([w * B for w, B in zip(weights, Bs, strict=True)], 1)
        unsigned = _exact([abs(w) for w in weights], As, Bs)
        yield equals(
            f"B A = Σ wᵢBᵢAᵢ for {name}",
            B @ A,
            _exact(weights, As, Bs),
            misconceptions={
                "the weight stands on both A and B, so it counts squared": _exact([w * w for w in weights], As, Bs),
                "the weights are not used": _exact([1.0] * len(ranks), As, Bs),
                "the weights have lost their signs (a square root of |w| on both sides does that)": unsigned,
                "the As and the Bs are stacked in different orders": B_all @ torch.cat(As[::-1]),
            },
        )
