"""What right answers of assignment 08 must satisfy: spectra of thin factors, the spike ratio, subspaces, a prediction.

Source: Shuttleworth et al. 2024, arXiv 2410.21228, sections 3 and 4; Hu et al. 2021, arXiv 2106.09685, section 7.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from lorahub_checks.draws import normal
from lorahub_checks.predictions import number
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals


def _factors(outputs: int, inputs: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """A (r, in), B (out, r) with directions of different strengths, and a scaling that is not near 1."""
    strengths = torch.linspace(1.5, 0.4, rank, dtype=torch.float64)
    A = strengths[:, None] * normal(generator, rank, inputs)
    return A, normal(generator, outputs, rank) * strengths, 1.6 + float(torch.rand((), generator=generator))


def _value_mistakes(A: Tensor, B: Tensor, scaling: float) -> dict[str, Tensor]:
    right, rank = torch.linalg.svdvals(scaling * B @ A), len(A)
    R1, R2 = torch.linalg.qr(B).R, torch.linalg.qr(A.T).R
    of_A, of_B = scaling * torch.linalg.svdvals(A), scaling * torch.linalg.svdvals(B)
    pairs = of_A * of_B / scaling
    return {
        "the singular values of A and of B are multiplied in pairs: that holds only where their vectors agree": pairs,
        "the scaling is left out": right[:rank] / scaling,
        "the scaling counts squared": scaling * right[:rank],
        "these are squared singular values (eigenvalues of the Gram matrix): take the root": right[:rank].square(),
        "R1 @ R2 is another matrix: B A = Q1 R1 R2ᵀ Q2ᵀ": scaling * torch.linalg.svdvals(R1 @ R2),
        "R2ᵀ R1 is another matrix: B A = Q1 R1 R2ᵀ Q2ᵀ": scaling * torch.linalg.svdvals(R2.T @ R1),
        "these are B's alone": of_B,
        "these are A's alone": of_A,
        "the weakest comes first: sort them the other way round": right[:rank].flip(0),
        "all min(out, in) values are here; an update of rank r has r, and zeros": right,
        "the diagonal of a triangular matrix holds no singular values": scaling * (R1 @ R2.T).diagonal().abs(),
    }


@problem(
    "08.4",
    "singular values without the product",
    hints=(
        "What do orthonormal columns on the left of a matrix do to its singular values?",
        "Write B = Q1 R1 and Aᵀ = Q2 R2. Then B A = Q1 (R1 R2ᵀ) Q2ᵀ, and the matrix in the middle is (r, r).",
        "For r = 2 all that is left is 2 × 2: R1 from torch.linalg.qr of B, R2 from that of Aᵀ. A negative scaling "
        "gives the same singular values as a positive one.",
    ),
)
def update_values(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of update_values(A, B, scaling) -> (r,), strongest first."""
    for name, (outputs, inputs, rank) in {
        "rank 4": (30, 45, 4),
        "few numbers": (5, 4, 2),
        "rank 6": (40, 24, 6),
    }.items():
        A, B, scaling = _factors(outputs, inputs, rank, generator)
        expected = torch.from_numpy(np.linalg.svd((scaling * B @ A).numpy(), compute_uv=False))[:rank]
        mistakes = _value_mistakes(A, B, scaling)
        yield equals(name, answer(A, B, scaling), expected, misconceptions=mistakes)
    yield equals(
        "a negative scaling turns directions round and leaves the values",
        answer(A, B, -scaling),
        expected,
        misconceptions={"a singular value is never negative: take the absolute value of the scaling": -expected},
    )


def _spike_mistakes(W0: Tensor, A: Tensor, B: Tensor, scaling: float, k: int) -> dict[str, Tensor]:
    before, update = torch.linalg.svdvals(W0), torch.linalg.svdvals(scaling * B @ A)
    tuned = torch.linalg.svdvals(W0 + scaling * B @ A)
    top, bar = update[0], before[k - 1]
    most = scaling * torch.linalg.svdvals(A)[0] * torch.linalg.svdvals(B)[0] / bar
    return {
        "compared with the strongest pretrained value: a vector need only be among the k strongest": top / before[0],
        "one place too far: the k-th value has the index k − 1": top / before[k],
        "one place too early: the k-th value has the index k − 1": top / before[k - 2],
        "the scaling is left out": top / scaling / bar,
        "upside down: the update's value stands above": bar / top,
        "the tuned matrix's strongest value is taken: the question is how strong the update alone is": tuned[0] / bar,
        "compared with the tuned matrix's k-th value: what counts is the bar before the change": top / tuned[k - 1],
        "the update's norm is taken: one strong direction is enough": update.norm() / bar,
        "compared with the norm of W0: the bar is its k-th value": top / before.norm(),
        "compared with the weakest pretrained value": top / before[-1],
        "that is squared": (top / bar).square(),
        "the largest values of A and of B are multiplied: that is more than the largest of their product": most,
        "the sum of the update's values is taken: one strong direction is enough": update.sum() / bar,
    }


@problem(
    "08.5",
    "will there be an intruder?",
    hints=(
        "A new direction is an intruder only if it is among the k strongest. How strong must it be for that?",
        "Compare the update's largest singular value with the k-th of the pretrained matrix.",
        "The update's largest value is 6, the pretrained ones are 9, 5, 3. With k = 3 the strength is 2. "
        "torch.linalg.svdvals lists the largest first.",
    ),
)
def spike_ratio(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of spike_ratio(W0, A, B, scaling, k) -> number."""
    for name, (outputs, inputs, rank, k) in {
        "k = 4": (18, 25, 3, 4),
        "k = 6": (24, 16, 2, 6),
        "few numbers": (4, 5, 2, 3),
    }.items():
        A, B, scaling = _factors(outputs, inputs, rank, generator)
        W0 = 3 * normal(generator, outputs, inputs)
        expected = np.linalg.norm((scaling * B @ A).numpy(), 2) / np.linalg.svd(W0.numpy(), compute_uv=False)[k - 1]
        mistakes = _spike_mistakes(W0, A, B, scaling, k)
        yield equals(name, answer(W0, A, B, scaling, k), expected, misconceptions=mistakes)
    doubled = answer(W0, A, B, 2 * scaling, k)
    yield equals("twice the scaling is twice the ratio", doubled, 2 * expected)
    turned = answer(W0, A, B, -scaling, k)
    yield equals("a negative scaling changes nothing", turned, expected)


def _similarity_mistakes(A1: Tensor, A2: Tensor, i: int, j: int) -> dict[str, Tensor]:
    (_, S1, V1), (_, S2, V2) = (torch.linalg.svd(A, full_matrices=False) for A in (A1, A2))
    cosines = V1[:i] @ V2[:j].T
    rows = torch.nn.functional.normalize(A1[:i], dim=1) @ torch.nn.functional.normalize(A2[:j], dim=1).T
    energy, fewer = cosines.square().sum(), min(i, j)
    plain, weakest = (A1[:i] @ A2[:j].T).square().sum(), (V1[-i:] @ V2[-j:].T).square().sum()
    weighted = (S1[:i, None] * V1[:i]) @ (S2[:j, None] * V2[:j]).T
    return {
        "the norm is not squared": cosines.norm() / fewer,
        "divided by the larger of i and j: a space inside a larger one has similarity 1": energy / max(i, j),
        "divided by i · j, a mean over all pairs: a space then has less than 1 with itself": energy / (i * j),
        "not divided: two equal spaces have similarity 1": energy,
        "the rows of A are used as they are: take its right singular vectors": plain / fewer,
        "the rows of A are made length 1, but they are not at right angles: take right singular vectors": (
            rows.square().sum() / fewer
        ),
        "absolute cosines are summed: square them": cosines.abs().sum() / fewer,
        "cosines are summed with their signs: square them": cosines.sum() / fewer,
        "that is the best pair alone": cosines.abs().max(),
        "the vectors are weighted by their singular values: every direction of the space counts alike": (
            weighted.square().sum() / fewer
        ),
        "the weakest vectors are taken: svd gives the strongest first": weakest / fewer,
        "all vectors are taken, not the first i and j": (V1 @ V2.T).square().sum() / min(len(V1), len(V2)),
        "i and j have changed places": (V1[:j] @ V2[:i].T).square().sum() / fewer,
        "only vectors of the same number are compared": cosines.diagonal().square().sum() / fewer,
    }


@problem(
    "08.6",
    "do two adapters look at the same inputs?",
    hints=(
        "Which vectors of A say what it listens to, and how does one compare two sets of them at once?",
        "Right singular vectors: Vh[:i] and Vh[:j]. The sum of all squared cosines is min(i, j) when one space holds "
        "the other.",
        "i = 1, j = 2: two cosines, 0.6 and 0.8. Their squares add up to 1, over min(1, 2): the first direction lies "
        "in the second space.",
    ),
)
def subspace_similarity(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of subspace_similarity(A1, A2, i, j) -> number from 0 to 1."""
    for name, (width, i, j) in {
        "few numbers": (6, 2, 3),
        "the first 2 of 4 and 4 of 7": (20, 2, 4),
        "the first 3 of 4 and 2 of 7": (20, 3, 2),
    }.items():
        if width < 20:
            A1, A2 = normal(generator, 3, width), normal(generator, 4, width)
        else:
            A1 = normal(generator, 4, 20) * torch.linspace(2, 0.5, 4, dtype=torch.float64)[:, None]
            near = A1[:3] + 0.4 * normal(generator, 3, 20)
            A2 = normal(generator, 7, 7) @ torch.cat([near, normal(generator, 4, 20)])
        V1, V2 = (np.linalg.svd(A.numpy(), full_matrices=False)[2] for A in (A1, A2))
        # The trace of the product of two projections: the same number by another road.
        expected = np.trace(V1[:i].T @ V1[:i] @ V2[:j].T @ V2[:j]) / min(i, j)
        mistakes = _similarity_mistakes(A1, A2, i, j)
        yield equals(name, answer(A1, A2, i, j), expected, misconceptions=mistakes)
    yield equals("the other way round it is the same", answer(A2, A1, j, i), expected)
    Q = torch.linalg.qr(normal(generator, 4, 4)).Q
    yield equals("a module in another basis looks at the same", answer(Q @ A1, A2, i, j), expected)
    yield equals("a space has similarity 1 with itself", answer(A1, A1, 3, 3), 1.0)
    yield equals("and with a larger one that holds it", answer(A1, A1, 2, 4), 1.0)
    apart = torch.eye(12, dtype=torch.float64)
    yield equals("spaces at right angles have similarity 0", answer(apart[:3], apart[5:9], 2, 3), 0.0)


@problem(
    "08.7",
    "how strong an intruder has to be",
    hints=(
        "Two things make an intruder. Which of them does this direction have at any strength?",
        "It resembles nothing. But it must also be among the five strongest: at which place does it stand with c?",
        "The five strongest are 9.5, 8.5, 7.5, 6.5 and 5.5. The new one has to push 5.5 out.",
    ),
)
def first_strength(answer: object, _generator: torch.Generator) -> Iterator[Property]:
    """Specification of first_strength, a number."""
    mistakes = {
        "at that strength it is the sixth strongest, and only five are looked at": 5,
        "it need not be the strongest of all: among the five strongest is enough": 10,
        "it is like no pretrained vector at any strength, but a weak one is not looked at": 1,
        "ε is a threshold for the cosine, not for the strength": 3,
        "that is the fifth value itself: it is the next whole number that lies above": 5.5,
        "it has to be stronger than one of the five, not than the sum of those below": 13,
    }
    yield from number(answer, "the smallest whole strength", 6, mistakes)
