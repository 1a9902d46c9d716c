"""What the singular values and vectors of a matrix say: the definitions, in plain code, computed in float64.

This file is the reference. `intruders.count` gives the same counts without decomposing the tuned matrix.
Source: Shuttleworth et al. 2024, "LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorahub_edu.errors import CourseError

# A singular value below this share of the largest one is the rounding of a float32 matrix, and its vectors are no
# directions of that matrix: any basis of the same space would do.
NEGLIGIBLE = 2.0**-23


class TooFewVectorsError(CourseError):
    """A matrix has fewer singular vectors than are asked for."""


def left_vectors(matrix: Tensor, least: float | None = None) -> Tensor:
    """The left singular vectors of a matrix (out, in), strongest first, (out, rank) float64 with orthonormal columns.

    Those whose singular value is zero are left out. A value up to `least` counts as zero; None takes `NEGLIGIBLE` times
    the largest.
    """
    left, values, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left[:, values > (NEGLIGIBLE * values[0] if least is None else least)]


def similarity(tuned: Tensor, pretrained: Tensor) -> Tensor:
    """The absolute cosine of every tuned singular vector with every pretrained one: units (n, i), (n, j) -> (i, j).

    Source: arXiv 2410.21228, figures 1 to 3; claim I1.
    """
    return (tuned.T @ pretrained).abs()


def largest_cosines(pretrained: Tensor, tuned: Tensor, k: int = 10, least: float | None = None) -> Tensor:
    """For each of the k strongest left singular vectors of W, its largest |cosine| with any one of W₀: (k,) float64.

    `pretrained` is W₀ and `tuned` is W, both (out, in). W₀ has min(out, in) left singular vectors. Where out > in they
    do not span the whole space. A tuned vector outside their span has cosine 0. `least` is as for W's `left_vectors`.
    Raises CourseError: k is below 1, or above the rank of W (`TooFewVectorsError`).
    """
    check_k(k, tuned.shape)
    vectors = left_vectors(tuned, least)
    check_k(k, tuned.shape, rank=vectors.shape[1])
    known = left_vectors(pretrained)
    if not known.shape[1]:  # a base of zeros has no vector to resemble
        return torch.zeros(k, dtype=torch.float64, device=vectors.device)
    return similarity(vectors[:, :k], known).max(dim=1).values


def intruder_count(pretrained: Tensor, tuned: Tensor, k: int = 10, epsilon: float = 0.5) -> int:
    """How many of the k strongest left singular vectors of W resemble no left singular vector of W₀, from 0 to k.

    `pretrained` is W₀ and `tuned` is W, both (out, in). A vector is an intruder when its largest |cosine| is below
    `epsilon`.
    Raises CourseError: k is below 1 or above the rank of W, or epsilon is not between 0 and 1.
    Source: arXiv 2410.21228, algorithm 1; the released code takes k = 10 and ε = 0.5 (claim I3).
    """
    check_epsilon(epsilon)
    intruders = 0
    for cosine in largest_cosines(pretrained, tuned, k):
        if cosine < epsilon:
            intruders += 1
    return intruders


def factored_singular_values(up: Tensor, down: Tensor, scaling: float = 1.0) -> Tensor:
    """The singular values of scaling · B A, (min(r, out, in),) float64, without forming the product.

    B (out, r) = Q₁R₁ and Aᵀ (in, r) = Q₂R₂ give BA = Q₁(R₁R₂ᵀ)Q₂ᵀ, and the orthonormal Q₁, Q₂ change no singular value.
    """
    R1 = torch.linalg.qr(up.double()).R
    R2 = torch.linalg.qr(down.double().T).R
    return abs(scaling) * torch.linalg.svdvals(R1 @ R2.T)


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the singular values' shares: r equal values give r, a single one gives 1, zeros give 0.

    Source: Roy and Vetterli 2007, "The effective rank"; arXiv 2410.21228, figure 6 (claim I7).
    """
    total = values.double().sum()
    if total == 0:
        return 0.0
    shares = values.double() / total
    return float(torch.exp(torch.special.entr(shares).sum()))


def stable_rank(values: Tensor) -> float:
    """‖ΔW‖²/σ₁², from singular values, largest first: the squared Frobenius norm by σ₁²; 0 for zero."""
    values = values.double()
    return float((values / values[0]).square().sum()) if values[0] > 0 else 0.0


def nuclear_norm(values: Tensor) -> float:
    return float(values.double().sum())


def check_epsilon(epsilon: float) -> None:
    if not 0.0 < epsilon < 1.0:
        raise CourseError(f"ε is a cosine between 0 and 1, but it is {epsilon}. The paper's code takes 0.5.")


def check_k(k: int, shape: tuple[int, ...], rank: int | None = None) -> None:
    """Raise an error unless a matrix of that shape, and of that rank or of full rank, has k singular vectors."""
    rank = min(shape) if rank is None else rank
    if k < 1:
        raise CourseError(f"k counts singular vectors and must be at least 1, but it is {k}. The paper takes 10.")
    if k > rank:
        raise TooFewVectorsError(
            f"A matrix of shape {tuple(shape)} and rank {rank} has no {k} strongest singular vectors. Choose k of at "
            f"most {rank}."
        )
