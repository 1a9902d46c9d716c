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

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorahub_edu.spectra import margins
from lorahub_edu.spectra.bases import BaseSpectrum
from lorahub_edu.spectra.margins import EPSILON64, Cosines, between
from lorahub_edu.spectra.measures import NEGLIGIBLE, SLICE
from lorahub_edu.spectra.subspace import SPARE, TOLERANCE, Ritz, largest_eigenpairs
from lorahub_edu.spectra.updates import Update

STRONGEST = 16  # directions of the change that it starts with
SURE_SIGN = 1e-10  # an eigenvalue of the small matrix below this share of its terms has no sign that rounding leaves
ROUGH = 1e-4  # tolerance of a search that nobody certifies
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
        """r, the rank of the change."""
        return self.change.shape[1]

    @property
    def signs(self) -> Tensor:
        """The diagonal of J, (2r,)."""
        ones = torch.ones(self.rank, dtype=self.factor.dtype, device=self.factor.device)
        return torch.cat([ones, -ones])

    def apply(self, vectors: Tensor) -> Tensor:
        """M times (p, any)."""
        return self.squares[:, None] * vectors + self.factor @ (self.signs[:, None] * (self.factor.T @ vectors))

    def toward(self, values: Tensor, vectors: Tensor, _: Tensor) -> Tensor:
        """(M − θ)⁻¹ u for each Ritz pair: one step of Rayleigh quotient iteration, by the Woodbury identity.

        Args:
            values: (c,) θ.
            vectors: (p, c) u.

        Returns:
            (p, c), of any length.
        """
        together = max(1, len(self.squares) // (8 * self.rank))  # F weighted for all of them is half a float32 matrix
        pairs = zip(values.split(together), vectors.split(together, dim=1), strict=True)
        return torch.cat([self._some_toward(*pair) for pair in pairs], dim=1)

    def _some_toward(self, values: Tensor, vectors: Tensor) -> Tensor:
        weighted, small = self._reduced(values)
        inside = torch.linalg.solve_ex(small, weighted.mT @ vectors.T[..., None]).result  # (c, 2r, 1)
        return vectors / self._distances(values).T + (weighted @ inside)[..., 0].T

    def count_above(self, mu: Tensor) -> int | None:
        """How many eigenvalues of M are larger than μ; None when rounding could have turned a sign.

        Proof: in this room's first lines.
        """
        weighted, small = (part[0] for part in self._reduced(mu[None]))
        values = torch.linalg.eigvalsh((small + small.T) / 2)
        terms = 1.0 + float((weighted.abs() * self.factor.abs()).sum())
        if not float(values.abs().min()) > SURE_SIGN * terms:
            return None
        return int((self.squares > mu).sum()) + int((values > 0).sum()) - self.rank

    def _distances(self, values: Tensor) -> Tensor:
        """Σ₀² − μ for each μ of (c,), (c, p), never zero."""
        away = self.squares - values[:, None]
        floor = 1e-15 * self.squares[0].clamp_min(1e-300)
        return torch.where(away.abs() < floor, floor, away)

    def _reduced(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(Σ₀² − μ)⁻¹F, (c, p, 2r), and −J − Fᵀ(Σ₀² − μ)⁻¹F, (c, 2r, 2r), for each μ of (c,)."""
        weighted = self.factor / self._distances(values)[..., None]
        return weighted, -(self.factor.T @ weighted) - torch.diag(self.signs)


def in_base_coordinates(update: Update, spectrum: BaseSpectrum, products: torch.dtype = torch.float64) -> Secular:
    """The Gram matrix of W₀ + scaling · B A in the basis of W₀'s singular vectors.

    Args:
        update: with A and B.
        spectrum: of its base.
        products: the precision of the two products with W₀ and S, which are nearly all the work.

    Returns:
        F and what belongs to it, as float64; W₀ and S are read in slices.
    """
    wide = update.base.shape[0] <= update.base.shape[1]
    left, right = (update.up, update.down.T) if wide else (update.down.T, update.up)
    R, triangle = torch.linalg.qr(right.double())
    L = update.scaling * (left.double() @ triangle.T)
    # Strongest first, and without directions that are rounding: L Rᵀ = (L V)(R V)ᵀ for every orthogonal V.
    _, strengths, turn = torch.linalg.svd(L, full_matrices=False)
    turn = turn[strengths > SMALLEST * strengths[0]].T
    L, R = L @ turn, R @ turn
    base = update.base if wide else update.base.T
    L, R = L.to(products), R.to(products)
    Z = torch.cat([rows.to(products) @ R for rows in base.split(SLICE)])
    inside = torch.zeros(len(spectrum.values), 2 * L.shape[1], dtype=products, device=L.device)
    for rows, parts in zip(spectrum.basis.split(SLICE), torch.cat([L, Z], 1).split(SLICE), strict=True):
        inside += rows.to(products).T @ parts
    change, Z = inside.double().chunk(2, dim=1)
    return Secular(spectrum.values.square(), torch.cat([change + Z, Z], 1), change)


def largest_cosines(update: Update, spectrum: BaseSpectrum, k: int, certified: bool = True) -> Cosines | None:
    """The largest |cosine| of each of the k strongest left vectors, from the base's coordinates alone.

    Args:
        update: with A and B.
        spectrum: of its base.
        k: how many vectors.
        certified: prove that no stronger vector was missed, and bound every cosine.

    Returns:
        The cosines; their bounds are the values themselves when they are not certified. None if there is no proof, or
        if the k-th singular value or the whole change is zero up to rounding.
    """
    precision, tolerance = (torch.float64, TOLERANCE) if certified else (torch.float32, ROUGH)
    inside = in_base_coordinates(update, spectrum, precision)
    if not inside.rank:
        return None
    ritz = largest_eigenpairs(inside.apply, _start(inside, k), k + 1, inside.toward, tolerance)
    values, vectors = ritz.values[:k], ritz.vectors[:, :k]
    if not float(values[-1]) > NEGLIGIBLE**2 * float(values[0]):
        return None
    sines = torch.zeros_like(values)
    rounding = 16 * len(inside.squares) * EPSILON64 * float(inside.squares[0] + inside.factor.square().sum())
    if certified:
        beyond = none_missed(inside, ritz)
        if beyond is None:
            return None
        first = Ritz(values, vectors, ritz.residuals[:k])
        sines = margins.angles(first, beyond, spectrum, exact_basis=False, rounding=rounding)
    if update.base.shape[0] <= update.base.shape[1]:
        found = margins.short_side(vectors, sines, spectrum, 2 * spectrum.orthogonality)
    else:
        old = inside.factor[:, inside.rank :]  # Z: W₀ᵀW = W₀ᵀW₀ + Z Lᵀ where the right vectors are kept
        products = inside.squares[:, None] * vectors + old @ (inside.change.T @ vectors)
        found = margins.long_side(products, values, sines, spectrum, spectrum.defect + rounding)
    if not certified:
        found = Cosines(found.values, found.values, found.values)
    return replace(found, vectors=vectors, in_base=True)


def _start(inside: Secular, k: int) -> Tensor:
    """The base's strongest directions, and those of the change."""
    p, r, some = len(inside.squares), inside.rank, min(inside.rank, STRONGEST)
    axes = torch.eye(p, k + SPARE, dtype=torch.float64, device=inside.squares.device)
    return torch.cat([axes, inside.factor[:, :some], inside.factor[:, r : r + some]], 1)


def none_missed(inside: Secular, ritz: Ritz) -> float | None:
    """A bound of every eigenvalue of M but the k largest; None if more than k lie above the places that were tried."""
    k = len(ritz.values) - 1
    for mu in between(ritz.values):
        if inside.count_above(mu) == k:
            return float(mu)
    return None
