"""The strongest eigenvectors of a large symmetric matrix by a subspace that grows: Rayleigh-Ritz with a residual stop.

The squared singular values of a matrix are the eigenvalues of its Gram matrix G. From a subspace that is nearly right
the best approximations are taken (Rayleigh-Ritz), and what they miss is added, until the residuals are small.

Source: Saad 2011, "Numerical Methods for Large Eigenvalue Problems", chapters 4.3 and 8.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-9  # of a residual, relative to the k-th value
MOST_ROUNDS = 60
SPARE = 22  # directions beside the wanted ones: of the base to start with, and of a subspace that grew too large


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenpairs of a symmetric G, largest first.

    Attributes:
        values: (k,) float64; each is at most the true one (Cauchy).
        vectors: (p, k) float64, orthonormal columns.
        residuals: (k,) float64, the norms of G u − θ u; an eigenvalue of G lies within that of θ.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


def largest_eigenpairs(
    apply: Callable[[Tensor], Tensor],
    start: Tensor,
    k: int,
    expand: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    tolerance: float = TOLERANCE,
) -> Ritz:
    """The k largest eigenvalues of a symmetric matrix and their vectors, from a good first guess.

    Args:
        apply: multiplies a (p, any) float64 matrix by G.
        start: (p, q) float64, q ≥ k: directions that the wanted vectors nearly lie in.
        k: how many; the first k − 1 are iterated until their residuals are below tolerance · θₖ.
        expand: makes new directions from values (c,), vectors (p, c) and residual vectors (p, c); None takes the
            residual vectors, which makes it block Lanczos with restarts.
        tolerance: relative to the k-th value.

    Returns:
        k Ritz pairs. They need not be the largest ones: that takes a certificate.
    """
    basis = torch.linalg.qr(start).Q
    image = apply(basis)
    small = basis.T @ image  # Bᵀ G B
    limit = min(start.shape[0], start.shape[1] + 8 * k)
    for _ in range(MOST_ROUNDS):
        values, turn = _descending(small)
        vectors = basis @ turn[:, :k]
        misfit = image @ turn[:, :k] - vectors * values[:k]
        residuals = misfit.norm(dim=0)
        missing = residuals > tolerance * values[k - 1].abs()
        if not missing[: max(k - 1, 1)].any():
            break
        if basis.shape[1] + int(missing.sum()) > limit:
            turn = turn[:, : k + SPARE]
            basis, image, small = basis @ turn, image @ turn, torch.diag(values[: k + SPARE])
        new = (
            misfit[:, missing]
            if expand is None
            else expand(values[:k][missing], vectors[:, missing], misfit[:, missing])
        )
        new = _orthonormal_beside(basis, new)
        image_of_new = apply(new)
        corner = basis.T @ image_of_new
        small = torch.cat([torch.cat([small, corner], 1), torch.cat([corner.T, new.T @ image_of_new], 1)])
        basis, image = torch.cat([basis, new], 1), torch.cat([image, image_of_new], 1)
    return Ritz(values[:k], vectors, residuals)


def _descending(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh((symmetric + symmetric.T) / 2)
    return values.flip(0), vectors.flip(1)


def _orthonormal_beside(basis: Tensor, new: Tensor) -> Tensor:
    """The new directions without what the basis has of them; twice, because once leaves rounding."""
    for _ in range(2):
        new = new - basis @ (basis.T @ new)
        new = torch.linalg.qr(new / new.norm(dim=0).clamp_min(1e-300)).Q
    return new
