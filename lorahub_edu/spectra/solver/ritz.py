"""The strongest eigenvectors of a large symmetric matrix by a subspace that grows (Rayleigh-Ritz).

The squared singular values of a matrix are the eigenvalues of its Gram matrix G. The search takes the best
approximations in a subspace, and adds what they miss to the subspace, until the residuals are small.

Source: Saad 2011, "Numerical Methods for Large Eigenvalue Problems", chapters 4.3 and 8.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-9  # of a residual, relative to the k-th value
MAX_ROUNDS = 60
SPARE = 22  # directions beside the wanted ones, at the start and when a large subspace is cut


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

    def first(self, k: int) -> Ritz:
        """The k largest pairs."""
        return Ritz(self.values[:k], self.vectors[:, :k], self.residuals[:k])


def largest_eigenpairs(
    apply: Callable[[Tensor], Tensor],
    start: Tensor,
    k: int,
    expand: Callable[[Tensor, Tensor], Tensor] | None = None,
    tolerance: float = TOLERANCE,
) -> Ritz:
    """The k largest eigenvalues of a symmetric matrix and their vectors, from a good first guess.

    The k Ritz pairs need not be the largest ones: that takes a certificate.

    Args:
        apply: multiplies a (p, any) float64 matrix by G.
        start: (p, q) float64, q ≥ k: directions that the wanted vectors nearly lie in.
        k: the first k − 1 pairs are iterated until their residuals are below tolerance · θₖ.
        expand: makes new directions from values (c,) and vectors (p, c) of pairs that are not yet good enough; None
            takes their residual vectors, which makes it block Lanczos with restarts.
    """
    basis = torch.linalg.qr(start).Q
    image = apply(basis)
    small = basis.T @ image  # Bᵀ G B
    limit = min(start.shape[0], start.shape[1] + 8 * k)
    for _ in range(MAX_ROUNDS):
        values, turn = (part.flip(-1) for part in torch.linalg.eigh((small + small.T) / 2))
        vectors = basis @ turn[:, :k]
        misfit = image @ turn[:, :k] - vectors * values[:k]
        residuals = misfit.norm(dim=0)
        missing = residuals > tolerance * values[k - 1].abs()
        if not missing[: max(k - 1, 1)].any():
            break
        if basis.shape[1] + int(missing.sum()) > limit:
            turn = turn[:, : k + SPARE]
            basis, image, small = basis @ turn, image @ turn, torch.diag(values[: k + SPARE])
        new = misfit[:, missing] if expand is None else expand(values[:k][missing], vectors[:, missing])
        new = _orthonormal_beside(basis, new)
        image_of_new = apply(new)
        corner = basis.T @ image_of_new
        small = torch.cat([torch.cat([small, corner], 1), torch.cat([corner.T, new.T @ image_of_new], 1)])
        basis, image = torch.cat([basis, new], 1), torch.cat([image, image_of_new], 1)
    return Ritz(values[:k], vectors, residuals)


def _orthonormal_beside(basis: Tensor, new: Tensor) -> Tensor:
    """The new directions without their part in the basis; subtracted twice, because once leaves rounding."""
    for _ in range(2):
        new = new - basis @ (basis.T @ new)
        new = torch.linalg.qr(new / new.norm(dim=0).clamp_min(1e-300)).Q
    return new
