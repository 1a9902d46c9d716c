"""The whole Gram matrix of a tuned matrix, for any change.

Certificate: let U hold k orthonormal vectors and let θᵢ be any numbers ≥ 0. If S = μI − G + U diag(θ) Uᵀ is positive
definite, then G < μI + U diag(θ) Uᵀ, whose (k+1)-th eigenvalue is μ, so λ_{k+1}(G) < μ (Weyl): no vector of a larger
singular value was missed. S is positive definite if its Cholesky factor exists, up to rounding.

Source: Horn and Johnson, "Matrix Analysis", section 4.3; Rump 2006, "Verification of positive definiteness".
"""

from __future__ import annotations

from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

from lorahub_edu.spectra.bases import EPSILON64, BaseSpectrum, sum_of_squares
from lorahub_edu.spectra.updates import Update


@dataclass(frozen=True)
class Gram:
    """G = W Wᵀ if out ≤ in, else Wᵀ W, of a tuned matrix: `matrix` (p, p) float64, with the base's kept `basis`."""

    matrix: Tensor
    basis: Tensor

    in_base = False
    rough = 1e-9  # tolerance of a search that is not certified
    toward = None  # the search adds the residual vectors

    def start(self, count: int) -> Tensor:
        """Directions to start from, (p, count): the base's strongest."""
        return self.basis[:, :count].double()

    def apply(self, vectors: Tensor) -> Tensor:
        """G times (p, any)."""
        return self.matrix @ vectors

    def bound_of_rest(self, mu: Tensor, values: Tensor, vectors: Tensor) -> float | None:
        """A bound of every eigenvalue but the k largest, near μ, if a Cholesky factor exists; else None."""
        shifted = (vectors * values) @ vectors.T
        shifted -= self.matrix
        shifted.diagonal().add_(mu)
        rounding = 4 * len(shifted) * EPSILON64 * float(shifted.diagonal().sum())  # of the factor, by Rump 2006
        return float(mu) + rounding if int(torch.linalg.cholesky_ex(shifted).info) == 0 else None

    def products(self, vectors: Tensor, update: Update, spectrum: BaseSpectrum) -> Tensor:
        """v₀ᵀu if out ≤ in, else v₀ᵀW₀ᵀW u, for kept v₀ and tuned u (p, k) of the short side: (p, k)."""
        if update.wide:
            return spectrum.coordinates(vectors)
        total = torch.zeros_like(vectors)
        for base, tuned in update.slices():
            total += base @ (tuned.T @ vectors)
        return spectrum.coordinates(total)

    def strongest(self, count: int) -> tuple[Tensor, Tensor]:
        """The largest eigenvalues, largest first, and their vectors, after a reduction of the whole matrix.

        On a CPU, LAPACK computes only the vectors that are wanted, which takes a half to a quarter of the time.
        """
        if self.matrix.device.type != "cpu":
            values, vectors = torch.linalg.eigh(self.matrix)
        else:
            wanted = (len(self.matrix) - count, len(self.matrix) - 1)
            pairs = scipy.linalg.eigh(self.matrix.numpy(), subset_by_index=wanted, check_finite=False)
            values, vectors = map(torch.from_numpy, pairs)
        return values.flip(0)[:count], vectors.flip(1)[:, :count]


def tuned_gram(update: Update, spectrum: BaseSpectrum) -> Gram:
    """The Gram matrix of W = W₀ + ΔW, added up slice by slice."""
    return Gram(sum_of_squares(tuned for _, tuned in update.slices()), spectrum.basis)
