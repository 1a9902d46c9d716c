"""A low-rank change of a matrix in its base's own coordinates, where everything about it is cheap.

Let W = W₀ + L Rᵀ have its short side first, (p, q) with p ≤ q, and let R have orthonormal columns (rank r). W and W₀
agree on everything orthogonal to R, W(I − RRᵀ) = W₀(I − RRᵀ), so with Y = W R and Z = W₀ R

    G = W Wᵀ = W₀W₀ᵀ + Y Yᵀ − Z Zᵀ.

In the basis S of W₀'s singular vectors this is M = Σ₀² + F J Fᵀ with F = Sᵀ[Y, Z], (p, 2r), and J = diag(1…1, −1…−1).
S is known, so one product with W₀ and one with S give F; after that no step costs more than p r² operations.

How many eigenvalues of M exceed μ follows from the signs of a (2r, 2r) matrix. The block matrix
[[Σ₀² − μ, F], [Fᵀ, −J]] can be reduced from either corner, and both must give the same number of positive eigenvalues
(Sylvester, Haynsworth):

    n₊(Σ₀² − μ) + n₊(−J − Fᵀ(Σ₀² − μ)⁻¹F)  =  n₊(−J) + n₊(Σ₀² + F J Fᵀ − μ),    n₊(−J) = r.

Source: Golub 1973, "Some modified matrix eigenvalue problems"; Haynsworth 1968 (inertia additivity).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub_edu.spectra.bases import SLICE, TINY, BaseSpectrum
from lorahub_edu.spectra.updates import Update

STRONGEST = 16  # directions of the change at the start of the search
SURE_SIGN = 1e-10  # rounding may turn the sign of an eigenvalue of the small matrix below this share of its terms
SMALLEST = 1e-14  # directions of the update below this share of its largest are rounding


@dataclass(frozen=True)
class Secular:
    """M = diag(squares) + F J Fᵀ, the Gram matrix of a changed matrix in its base's coordinates.

    Attributes:
        squares: (p,) float64, the base's squared singular values, largest first.
        factor: F = [Y, Z], (p, 2r) float64, strongest directions of the change first within Y and within Z.
        change: L in base coordinates, (p, r) float64: Y − Z.
    """

    squares: Tensor
    factor: Tensor
    change: Tensor

    @property
    def rank(self) -> int:
        return self.change.shape[1]

    @property
    def signs(self) -> Tensor:
        ones = torch.ones(self.rank, dtype=self.factor.dtype, device=self.factor.device)
        return torch.cat([ones, -ones])

    def start(self, count: int) -> Tensor:
        """Directions to start from, (p, any): the base's `count` strongest, and those of the change."""
        p, r, some = len(self.squares), self.rank, min(self.rank, STRONGEST)
        axes = torch.eye(p, count, dtype=torch.float64, device=self.squares.device)
        return torch.cat([axes, self.factor[:, :some], self.factor[:, r : r + some]], 1)

    def apply(self, vectors: Tensor) -> Tensor:
        return self.squares[:, None] * vectors + self.factor @ (self.signs[:, None] * (self.factor.T @ vectors))

    def toward(self, values: Tensor, vectors: Tensor) -> Tensor:
        """(M − θ)⁻¹ u, (p, c), for θ (c,) and u (p, c): one step of Rayleigh quotient iteration, by Woodbury."""
        together = max(1, len(self.squares) // (8 * self.rank))  # F weighted for all of them is half a float32 matrix
        steps = []
        for some, u in zip(values.split(together), vectors.split(together, dim=1), strict=True):
            weighted, small = self._reduced(some)
            inner = torch.linalg.solve_ex(small, weighted.mT @ u.T[..., None]).result  # (c, 2r, 1)
            steps.append(u / self._distances(some).T + (weighted @ inner)[..., 0].T)
        return torch.cat(steps, dim=1)

    def count_above(self, mu: Tensor) -> int | None:
        """How many eigenvalues of M are larger than μ, by the signs above; None if rounding may have turned one."""
        weighted, small = (part[0] for part in self._reduced(mu[None]))
        values = torch.linalg.eigvalsh((small + small.T) / 2)
        terms = 1.0 + float((weighted.abs() * self.factor.abs()).sum())
        if not float(values.abs().min()) > SURE_SIGN * terms:
            return None
        return int((self._distances(mu[None]) > 0).sum()) + int((values > 0).sum()) - self.rank

    def products(self, vectors: Tensor, wide: bool) -> Tensor:
        """Of vectors u (p, k) with the base's kept v₀: v₀ᵀu where out ≤ in, else v₀ᵀW₀ᵀW u."""
        if wide:
            return vectors
        old = self.factor[:, self.rank :]  # Z: W₀ᵀW = W₀ᵀW₀ + Z Lᵀ where the right vectors are kept
        return self.squares[:, None] * vectors + old @ (self.change.T @ vectors)

    def _distances(self, values: Tensor) -> Tensor:
        """Σ₀² − μ for each μ of (c,), (c, p), never zero."""
        distances = self.squares - values[:, None]
        floor = 1e-15 * self.squares[0].clamp_min(TINY)
        return torch.where(distances.abs() < floor, floor, distances)

    def _reduced(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(Σ₀² − μ)⁻¹F, (c, p, 2r), and −J − Fᵀ(Σ₀² − μ)⁻¹F, (c, 2r, 2r), for each μ of (c,)."""
        weighted = self.factor / self._distances(values)[..., None]
        return weighted, -(self.factor.T @ weighted) - torch.diag(self.signs)


def in_base_coordinates(update: Update, spectrum: BaseSpectrum) -> Secular:
    """The Gram matrix of W₀ + scaling · B A in the basis of W₀'s singular vectors; W₀ and S are read in slices."""
    left, right = (update.up, update.down.T) if update.wide else (update.down.T, update.up)
    R, triangle = torch.linalg.qr(right.double())
    L = update.scaling * (left.double() @ triangle.T)
    # Strongest first, and without directions that are rounding: L Rᵀ = (L V)(R V)ᵀ for every orthogonal V.
    _, strengths, turn = torch.linalg.svd(L, full_matrices=False)
    turn = turn[strengths > SMALLEST * strengths[0]].T
    L, R = L @ turn, R @ turn
    base = update.base if update.wide else update.base.T
    Z = torch.cat([rows.double() @ R for rows in base.split(SLICE)])
    change, Z = spectrum.coordinates(torch.cat([L, Z], 1)).chunk(2, dim=1)
    return Secular(spectrum.values.square(), torch.cat([change + Z, Z], 1), change)
