"""What right answers of assignment 06 must satisfy: cross-terms, a lower rank, many candidates at once, which modules.

Notation: per module A (r, in) and B (out, r). Source: Huang et al. 2023, arXiv 2307.13269, sections 3.2 and 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from lorahub_checks.draws import normal
from lorahub_checks.predictions import choice
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds

OFTEN = 200  # draws after which it is no accident that a mistake gives the right value


def _modules(count: int, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """As (3, 9) and Bs (12, 3); of two modules As (2, 4) and Bs (3, 2)."""
    rank, inputs, outputs = (2, 4, 3) if count == 2 else (3, 9, 12)
    As = [normal(generator, rank, inputs) for _ in range(count)]
    return As, [normal(generator, outputs, rank) for _ in range(count)]


def _weights(count: int, generator: torch.Generator) -> list[float]:
    """Weights of both signs, none of size 0, ½ or 1."""
    sizes = 0.2 + 0.25 * torch.rand(count, generator=generator, dtype=torch.float64)
    return [-1.5 * size if i % 2 else size for i, size in enumerate(sizes.tolist())]


def _pairs(As: list[Tensor], Bs: list[Tensor], factors: Tensor) -> Tensor:
    """Σ factors[i, j] · BᵢAⱼ over all i and j."""
    return torch.einsum("ij,ior,jrn->on", factors.double(), torch.stack(Bs), torch.stack(As))


def _term_mistakes(As: list[Tensor], Bs: list[Tensor], weights: list[float]) -> dict[str, Tensor]:
    w = torch.tensor(weights, dtype=torch.float64)
    both, own, ones = torch.outer(w, w), torch.eye(len(w)).double(), torch.ones(len(w), len(w)).double()
    cross = ones - own
    factors = {
        "the own terms are still there: take off wᵢ²BᵢAᵢ": both,
        "each pair is counted once, i before j: BᵢAⱼ and BⱼAᵢ are different matrices": both.triu(1),
        "only the pairs with j before i are counted: BᵢAⱼ and BⱼAᵢ are different matrices": both.tril(-1),
        "the exact composition Σ wᵢBᵢAᵢ was taken off: in the product the own terms carry wᵢ²": both - torch.diag(w),
        "own terms without weights were taken off: they carry wᵢ²": both - own,
        "that is the exact composition": torch.diag(w),
        "these are the own terms": both * own,
        "the weights of B are missing": ones * w * cross,
        "the weights of A are missing": ones * w[:, None] * cross,
        "the weights are not used": cross,
        "the sign is turned: own terms minus composition": -both * cross,
        "the weights have lost their signs": both.abs() * cross,
    }
    return {words: _pairs(As, Bs, wrong) for words, wrong in factors.items()}


@problem(
    "06.4",
    "the cross-terms",
    hints=(
        "Multiply (w₁B₁ + w₂B₂)(w₁A₁ + w₂A₂) out. Which of the four terms belong to no module?",
        "All pairs i, j make the composition; the own terms i = j carry wᵢ². What is left are the cross-terms.",
        "Two modules: of (w₁B₁ + w₂B₂)(w₁A₁ + w₂A₂) the own terms are w₁²B₁A₁ and w₂²B₂A₂. Without them w₁w₂(B₁A₂ + "
        "B₂A₁) is left.",
    ),
)
def cross_terms(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of cross_terms(As, Bs, weights) -> (out, in)."""
    for name, count in {"four modules": 4, "three modules": 3, "two modules": 2}.items():
        As, Bs = _modules(count, generator)
        w = _weights(count, generator)
        stacked = np.einsum("i,ior,j,jrn->ijon", w, np.stack(Bs), w, np.stack(As))
        expected = torch.from_numpy(stacked[~np.eye(count, dtype=bool)].sum(0))
        mistakes = _term_mistakes(As, Bs, w)
        yield equals(name, answer(As, Bs, w), expected, misconceptions=mistakes)
    yield equals("one module alone has none", answer(As[:1], Bs[:1], [0.7]), torch.zeros(3, 4))
    single = answer(As[:2], Bs[:2], [0.7, 0.0])
    yield equals("nor has one beside a module of weight 0", single, torch.zeros(3, 4))


def _cut(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank], S[:rank], Vh[:rank]


def _cutting_mistakes(A: Tensor, B: Tensor, rank: int) -> dict[str, Tensor]:
    U, S, Vh = torch.linalg.svd(B @ A, full_matrices=False)
    (UA, SA, VA), (UB, SB, VB) = _cut(A, rank), _cut(B, rank)
    strongest = (A.norm(dim=1) * B.norm(dim=0)).argsort(descending=True)[:rank]
    first, largest, weakest = B[:, :rank] @ A[:rank], B[:, strongest] @ A[strongest], slice(len(A) - rank, len(A))
    squared, rooted = (U[:, :rank] * S[:rank].pow(power) @ Vh[:rank] for power in (2, 0.5))
    apart = (UB * SB) @ VB @ (UA * SA) @ VA
    return {
        "the first rows of A and columns of B were kept: which ones those are is an accident of the basis": first,
        "the largest rows of A and columns of B were kept: another basis would give others, so take the SVD": largest,
        "the weakest directions were kept: svd gives the strongest first": U[:, weakest] * S[weakest] @ Vh[weakest],
        "the singular values are left out": U[:, :rank] @ Vh[:rank],
        "the singular values stand in both factors, so they count squared: use each once, or its root twice": squared,
        "only the root of each singular value is in the product": rooted,
        "A and B were cut each by its own SVD: what is strong in A alone may be weak in B A": apart,
    }


@problem(
    "06.5",
    "back to one module's rank",
    hints=(
        "Which matrix of a given rank is nearest to B A?",
        "The strongest directions of the product (not of A and of B): U, S, Vh of B @ A, cut after `rank`.",
        "The SVD of a (out, in) product gives U (out, k), S (k,), Vh (k, in). Keep `rank` of each. S must go into one "
        "of the two sides, or its root into both.",
    ),
)
def cut_to_rank(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of cut_to_rank(A, B, rank) -> the pair A (rank, in), B (out, rank)."""
    for name, (full, rank, inputs, outputs) in {
        "rank 6 to 2": (6, 2, 15, 20),
        "rank 8 to 5": (8, 5, 15, 20),
        "few numbers": (3, 2, 4, 5),
    }.items():
        A, B = normal(generator, full, inputs), normal(generator, outputs, full)
        A = torch.linspace(0.5, 1.5, full, dtype=torch.float64)[:, None] * A
        made = answer(A, B, rank)
        sound = isinstance(made, tuple | list) and len(made) == 2 and all(isinstance(m, Tensor) for m in made)
        yield holds(f"{name}: two tensors come back", sound, type(made).__name__, "return the pair A, B")
        if not sound:
            return
        shapes, wanted = (tuple(made[0].shape), tuple(made[1].shape)), ((rank, inputs), (outputs, rank))
        guess = {
            wanted[::-1]: "A and B are swapped: return A first",
            ((inputs, rank), (rank, outputs)): "both are transposed: A is (rank, in), B is (out, rank)",
            ((full, inputs), (outputs, full)): "nothing was cut off: keep `rank` directions",
        }.get(shapes, "A is (rank, in), B is (out, rank)")
        yield holds(f"{name}: A is (rank, in), B (out, rank)", shapes == wanted, f"A {shapes[0]}, B {shapes[1]}", guess)
        if shapes != wanted:
            return
        U, S, Vh = np.linalg.svd((B @ A).numpy(), full_matrices=False)
        best = torch.from_numpy((U[:, :rank] * S[:rank]) @ Vh[:rank])
        seen, mistakes = made[1] @ made[0], _cutting_mistakes(A, B, rank)
        yield equals(f"{name}: B A is the best of its rank", seen, best, misconceptions=mistakes)


def _outputs(x: Tensor, As: list[Tensor], Bs: list[Tensor], weights: Tensor) -> Tensor:
    """x (P, b, in) through LoRAHub's composition of each candidate's weights (P, N): (P, b, out)."""
    A = torch.einsum("pn,nri->pri", weights, torch.stack(As))
    B = torch.einsum("pn,nor->por", weights, torch.stack(Bs))
    return x @ A.mT @ B.mT


def _population_mistakes(x: Tensor, As: list[Tensor], Bs: list[Tensor], w: Tensor, s: float) -> dict[str, Tensor]:
    """What plausible mistakes give for a population's outputs."""
    exact = torch.einsum("pn,pbi,nri,nor->pbo", w, x, torch.stack(As), torch.stack(Bs))
    ones = torch.ones_like(w)
    A_of, B_of = (torch.einsum("pn,nab->pab", w, torch.stack(M)) for M in (As, Bs))
    A_all, B_all = (torch.einsum("pn,nab->pab", ones, torch.stack(M)) for M in (As, Bs))
    return {
        "the updates were added, Σ wᵢBᵢAᵢ: LoRAHub adds the factors before it multiplies": s * exact,
        "every candidate got the weights of the first one": s * _outputs(x, As, Bs, w[:1].expand_as(w)),
        "every candidate got the mean of all weights": s * _outputs(x, As, Bs, w.mean(0, keepdim=True).expand_as(w)),
        "every candidate got the weights of the one before it": s * _outputs(x, As, Bs, w.roll(1, 0)),
        "the scaling is left out": _outputs(x, As, Bs, w),
        "the scaling counts squared: apply it once": s * s * _outputs(x, As, Bs, w),
        "only A is weighted": s * x @ A_of.mT @ B_all.mT,
        "only B is weighted": s * x @ A_all.mT @ B_of.mT,
        "the weights are not used": s * _outputs(x, As, Bs, ones),
        "every row got the sum of all candidates' updates": s * x @ (A_of.mT @ B_of.mT).sum(0),
        "all candidates got the rows of the first one": s * _outputs(x[:1].expand_as(x), As, Bs, w),
    }


@problem(
    "06.6",
    "many candidates in one forward",
    hints=(
        "Compose one candidate's A and B, and apply them to its rows. Which axis tells the candidates apart?",
        "A has the shape (P, r, in) then, B (P, out, r): torch.einsum over the modules, then a batched product.",
        "The string pn,nri->pri sums over the modules n for every candidate p. The Bs are (n, out, r) and need a "
        "string of the same kind. Then x @ A.mT has r numbers at its end.",
    ),
)
def population_update(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of population_update(x, As, Bs, weights, scaling) -> (P, b, out)."""
    for name, (people, count) in {
        "four candidates of three modules": (4, 3),
        "as many as modules": (3, 3),
        "few numbers": (2, 2),
    }.items():
        rows, (As, Bs) = 5, _modules(count, generator)
        if count == 2:
            rows, As, Bs = 2, [A[:2, :3] for A in As], [B[:4, :2] for B in Bs]
        x = normal(generator, people, rows, As[0].shape[1])
        scaling = 1.5 + float(torch.rand((), generator=generator))
        w = 0.4 * normal(generator, people, count)
        one_by_one = []
        for given, own in zip(x.numpy(), w.numpy(), strict=True):
            A, B = (sum(v * M.numpy() for v, M in zip(own, Ms, strict=True)) for Ms in (As, Bs))
            one_by_one.append(scaling * given @ (B @ A).T)
        mistakes = _population_mistakes(x, As, Bs, w, scaling)
        seen = answer(x, As, Bs, w, scaling)
        yield equals(name, seen, torch.from_numpy(np.stack(one_by_one)), misconceptions=mistakes)


def _first(scores: Tensor, count: int) -> list[int]:
    return scores.argsort(descending=True)[:count].tolist()


def _likeness_mistakes(task: Tensor, modules: Tensor, count: int) -> dict[str, list[int]]:
    mean = modules.mean(0)
    cosines = torch.cosine_similarity(task - mean, modules - mean)
    return {
        "the mean is still in there: all texts share one large direction, take it off task and modules": _first(
            torch.cosine_similarity(task[None], modules), count
        ),
        "the mean was taken off the modules only": _first(torch.cosine_similarity(task, modules - mean), count),
        "these are inner products: long vectors win; divide by the lengths": _first(
            (modules - mean) @ (task - mean), count
        ),
        "the least alike come first": _first(-cosines, count),
        "the right modules, sorted by their number: the most alike comes first": sorted(_first(cosines, count)),
        "the right modules, the most alike last": _first(cosines, count)[::-1],
        "absolute values were taken: an opposite vector is not alike": _first(cosines.abs(), count),
        "these are the nearest by distance, not by angle": _first(-(modules - task).norm(dim=1), count),
        "the number of modules to choose is not used: all are there": _first(cosines, len(modules)),
        "one too many": _first(cosines, count + 1),
        "the best one is missing: counting begins with 0": _first(cosines, count + 1)[1:],
    }


@problem(
    "06.7",
    "which modules for a task?",
    hints=(
        "What do the vectors of all texts have in common, and what does that say about any one of them?",
        "Take the mean of the modules' vectors off all vectors, then compare by cosine; the largest come first.",
        "(3, 1) and (1, 1) have the mean (2, 1). Less their mean they are (1, 0) and (-1, 0): they point apart, "
        "though they seemed alike before.",
    ),
)
def nearest_modules(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of nearest_modules(task, modules, count) -> list of whole numbers."""
    for name, (known, count) in {"4 of 12": (12, 4), "3 of 9": (9, 3), "2 of 4": (4, 2)}.items():
        for _ in range(OFTEN):
            shared = 3 * normal(generator, 6)
            sizes = 0.3 + 2 * torch.rand(known, 1, generator=generator, dtype=torch.float64)
            modules = shared + sizes * normal(generator, known, 6)
            task = shared + normal(generator, 6)
            mistakes = _likeness_mistakes(task, modules, count)
            centred = (modules - modules.mean(0)).numpy()
            wanted = (task - modules.mean(0)).numpy()
            cosines = centred @ wanted / np.linalg.norm(centred, axis=1)
            expected = np.argsort(-cosines)[:count].tolist()
            if len({tuple(numbers) for numbers in (expected, *mistakes.values())}) == 1 + len(mistakes):
                break
        yield equals(name, answer(task, modules, count), expected, misconceptions=mistakes)
    moved = answer(task + 7.0, modules + 7.0, count)
    yield equals("the same amount on every vector changes nothing", moved, expected)


@problem(
    "06.8",
    "all weights turned round",
    hints=(
        "Put −w for w into both formulas. How often does each wᵢ stand in a product?",
        "Exact: Σ wᵢBᵢAᵢ, each weight once. LoRAHub: (Σ wᵢBᵢ)(Σ wᵢAᵢ), every term has two weights.",
        "(−1)(−1) = 1. Turn both weights in w₁w₂B₁A₂, then the one in w₁B₁A₁: which changes its sign?",
    ),
)
def turned_weights(answer: object, _generator: torch.Generator) -> Iterator[Property]:
    """Specification of turned_weights, a letter."""
    mistakes = {
        "A": "that would hold if each weight stood once in every term; in LoRAHub's product there are two",
        "C": "in the exact composition each weight stands once, so its sign comes through",
        "D": "the two have changed places: count the weights in one term of each",
    }
    yield from choice(answer, "B", mistakes)
