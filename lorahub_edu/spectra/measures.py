"""What the singular values and vectors of a matrix say: the definitions, in plain code, computed in float64.

This room is the reference. `intruders.count` gives the same counts without decomposing the tuned matrix.

Source: Shuttleworth et al. 2024, "LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lorahub_edu.errors import CourseError

# A singular value below this share of the largest one is the rounding of a float32 matrix, and its vectors are no
# directions of that matrix: any basis of the same space would do.
NEGLIGIBLE = 2.0**-23
SLICE = 1024  # rows or columns that are held in float64 at a time


def left_vectors(matrix: Tensor) -> Tensor:
    """The left singular vectors of a matrix, strongest first, without those whose singular value is zero.

    Args:
        matrix: (out, in), any float dtype.

    Returns:
        (out, rank) float64, orthonormal columns; rank is at most min(out, in).
    """
    left, values, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left[:, values > NEGLIGIBLE * values[0]]


def similarity(tuned: Tensor, pretrained: Tensor) -> Tensor:
    """The absolute cosine of every tuned singular vector with every pretrained one.

    Args:
        tuned: (n, i), unit columns.
        pretrained: (n, j), unit columns.

    Returns:
        (i, j), each from 0 to 1.

    Source: arXiv 2410.21228, figures 1 to 3; claim I1.
    """
    return (tuned.T @ pretrained).abs()


def similarity_matrices(pretrained: Tensor, tuned: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
    """The similarity of the first k left and of the first k right singular vectors of two matrices.

    Args:
        pretrained: W₀, (out, in).
        tuned: W, (out, in).
        k: how many of each; None takes all.

    Returns:
        Two (k, k) float64 matrices, rows for the tuned vectors: left and right.
    """
    k = min(tuned.shape) if k is None else k
    check_k(k, tuned.shape)
    left0, _, right0 = torch.linalg.svd(pretrained.double(), full_matrices=False)
    left, _, right = torch.linalg.svd(tuned.double(), full_matrices=False)
    return similarity(left[:, :k], left0[:, :k]), similarity(right[:k].T, right0[:k].T)


def largest_cosines(pretrained: Tensor, tuned: Tensor, k: int = 10) -> Tensor:
    """For each of the k strongest left singular vectors of W, its largest |cosine| with any one of W₀.

    W₀ (out, in) has min(out, in) left singular vectors. Where out > in they don't span the whole space: a tuned vector
    outside their span is like none of them and has cosine 0.

    Args:
        pretrained: W₀, (out, in).
        tuned: W, (out, in).
        k: how many of the tuned vectors.

    Returns:
        (k,) float64, strongest vector first.

    Raises:
        CourseError: k is below 1 or above the rank of W.
    """
    check_k(k, tuned.shape)
    vectors = left_vectors(tuned)
    if k > vectors.shape[1]:
        raise rank_error(k, tuple(tuned.shape), vectors.shape[1])
    known = left_vectors(pretrained)
    if not known.shape[1]:  # a base of zeros has no vector that could be resembled
        return torch.zeros(k, dtype=torch.float64, device=vectors.device)
    return similarity(vectors[:, :k], known).max(dim=1).values


def intruder_count(pretrained: Tensor, tuned: Tensor, k: int = 10, epsilon: float = 0.5) -> int:
    """How many of the k strongest left singular vectors of W resemble no left singular vector of W₀.

    Args:
        pretrained: W₀, (out, in).
        tuned: W, (out, in).
        k: how many of the tuned vectors are looked at.
        epsilon: a vector is an intruder when its largest |cosine| is below this.

    Returns:
        From 0 to k.

    Raises:
        CourseError: k is below 1 or above the rank of W, or epsilon is not between 0 and 1.

    Source: arXiv 2410.21228, algorithm 1; the released code takes k = 10 and ε = 0.5 (claim I3).
    """
    check_epsilon(epsilon)
    intruders = 0
    for cosine in largest_cosines(pretrained, tuned, k):
        if cosine < epsilon:
            intruders += 1
    return intruders


def factored_singular_values(up: Tensor, down: Tensor, scaling: float = 1.0) -> Tensor:
    """The singular values of scaling · B A without forming the product.

    B = Q₁R₁ and Aᵀ = Q₂R₂ give BA = Q₁(R₁R₂ᵀ)Q₂ᵀ, and the orthonormal Q₁, Q₂ change no singular value.

    Args:
        up: B, (out, r).
        down: A, (r, in).
        scaling: the factor in front.

    Returns:
        (min(r, out, in),) float64, largest first.
    """
    R1 = torch.linalg.qr(up.double()).R
    R2 = torch.linalg.qr(down.double().T).R
    return abs(scaling) * torch.linalg.svdvals(R1 @ R2.T)


def short_gram(matrix: Tensor) -> Tensor:
    """W Wᵀ if out ≤ in, else Wᵀ W: (p, p) float64 with p = min(out, in), without a float64 copy of the matrix."""
    rows = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return sum_of_squares(part.double() for part in rows.split(SLICE, dim=1))


def sum_of_squares(parts: Iterable[Tensor]) -> Tensor:
    """The sum of P Pᵀ over (p, any) float64 parts."""
    total = None
    for part in parts:
        total = part @ part.T if total is None else total.addmm_(part, part.T)
    return total


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the singular values' shares: r equal ones give r, a single one gives 1.

    Args:
        values: singular values of an update.

    Returns:
        From 1 to their number; 0 for an update that is zero.

    Source: Roy and Vetterli 2007, "The effective rank"; arXiv 2410.21228, figure 6 (claim I7).
    """
    total = values.double().sum()
    if total == 0:
        return 0.0
    shares = values.double() / total
    return float(torch.exp(torch.special.entr(shares).sum()))


def stable_rank(values: Tensor) -> float:
    """‖ΔW‖²/σ₁²: the squared Frobenius norm by the squared largest singular value; 0 for zero.

    Args:
        values: singular values, largest first.
    """
    values = values.double()
    return float((values / values[0]).square().sum()) if values[0] > 0 else 0.0


def nuclear_norm(values: Tensor) -> float:
    """The sum of the singular values."""
    return float(values.double().sum())


def frobenius_norm(values: Tensor) -> float:
    """The Frobenius norm, from the singular values."""
    return float(values.double().square().sum().sqrt())


def check_epsilon(epsilon: float) -> None:
    """Raise a CourseError unless 0 < ε < 1."""
    if not 0.0 < epsilon < 1.0:
        raise CourseError(f"ε is a cosine between 0 and 1, but it is {epsilon}. The paper's code takes 0.5.")


def rank_error(k: int, shape: tuple[int, ...], rank: int) -> CourseError:
    """What is said when a matrix has fewer singular vectors than are asked for."""
    return CourseError(
        f"A matrix of shape {shape} and rank {rank} has no {k} strongest singular vectors. Choose k of at most {rank}."
    )


def check_k(k: int, shape: tuple[int, ...]) -> None:
    """Raise a CourseError unless a matrix of that shape can have k singular vectors."""
    if k < 1:
        raise CourseError(f"k counts singular vectors and must be at least 1, but it is {k}. The paper takes 10.")
    if k > min(shape):
        raise rank_error(k, tuple(shape), min(shape))
