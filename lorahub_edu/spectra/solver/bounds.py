"""How sure a cosine is: bounds of all that lies between the numbers of a search and the true singular vectors.

What a count is proven from, and what each part is checked or bounded by:
- *The tuned vectors.* Their right angles and residuals are measured (`decide.measured_again`). If ‖G u − θ u‖ ≤ ρ for a
  unit u, and every eigenvalue of G but one is at least γ away from θ, then the angle between u and that one's
  eigenvector has sin ≤ ρ/γ (Davis and Kahan). A cosine is then off by at most ‖u − u*‖ ≤ √2 · ρ/γ.
- *The gaps.* k orthonormal vectors with residuals R have k eigenvalues within ‖R‖ of the θᵢ (Kahan). They are the k
  largest ones if no other is above μ: a count of signs in `secular`, or all of them.
- *The base's kept basis* S, in float32: SᵀS = I + Ω and SᵀG₀S = Σ² + Δ are measured. A Ritz pair (θ, z) of M with
  residual ρ gives u = S z with ‖G u − θ u‖ ≤ (ρ + ‖Δ‖ + θ‖Ω‖)/(1 − ‖Ω‖), as Sᵀ(G u − θ u) = M z − θ z + Δ z − θ Ω z.
  λᵢ(M + Δ) = φ · λᵢ(G) with 1 − ‖Ω‖ ≤ φ ≤ 1 + ‖Ω‖ (Ostrowski), and Δ moves no eigenvalue by more than ‖Δ‖ (Weyl).
- *The base's singular vectors.* Where values lie close together, float64 can't tell their vectors apart. They form a
  cluster C, and only its space is known. With c the length of u's part in it, the largest cosine is from c/√|C| to c.
  Right angles to all other clusters bound c from above, also where left vectors of a tall base are lost.
- *Rounding* of every sum, of the factors' product and of LAPACK: a priori, by `Rounding`.
- *Edges.* The k-th value must surely be above what counts as zero, and a cosine surely on one side of every ε.
What is not proven is decomposed in float64. In a tie the vectors are those that LAPACK gives for these very matrices.
Source: Parlett 1998, "The Symmetric Eigenvalue Problem", chapters 10 and 11; Horn and Johnson, theorem 4.5.9; Higham
2002, "Accuracy and Stability of Numerical Algorithms", chapter 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub_edu.spectra.bases import EPSILON64, ROUNDING, BaseSpectrum
from lorahub_edu.spectra.measures import NEGLIGIBLE
from lorahub_edu.spectra.solver.secular import SMALLEST
from lorahub_edu.spectra.updates import Update

APART = 256  # neighbours of the base are told apart where their gap is so many times its rounding


@dataclass(frozen=True)
class Cosines:
    """The largest |cosine| of each of k vectors with all pretrained ones, (k,) float64, and its bounds.

    `vectors` (p, k) float64 are the tuned vectors of the short side, in the base's kept vectors if `in_base`.
    """

    values: Tensor
    lower: Tensor
    upper: Tensor
    vectors: Tensor | None = None
    in_base: bool = False

    def decided(self, epsilons: Sequence[float]) -> bool:
        """Whether every vector is surely an intruder or surely none, at every ε, and no bound contradicts another."""
        if not bool(((self.values <= 1 + ROUNDING) & (self.lower <= self.upper)).all()):
            return False
        return all(bool(((self.upper < e) | (self.lower >= e)).all()) for e in epsilons)


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenpairs of a symmetric G, largest first.

    `values` are (k,) and `vectors` (p, k) float64 with orthonormal columns. `residuals` (k,) are the norms of G u − θ
    u: an eigenvalue of G lies within that of θ.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor

    def first(self, k: int) -> Ritz:
        return Ritz(self.values[:k], self.vectors[:, :k], self.residuals[:k])


@dataclass(frozen=True)
class Rounding:
    """How far float64 may move an eigenvalue of a Gram matrix, in units of σ²: of the base's, and of the tuned one's.

    A singular value of the tuned matrix up to `least` is zero: the rounding of the base, which is in float32 or less,
    or of W in float64. None, for a whole change, is the rounding of a tuned matrix in float32.
    """

    base: float
    tuned: float
    least: float | None

    @staticmethod
    def of(update: Update, spectrum: BaseSpectrum) -> Rounding:
        """Sums of n products are off by n · 2⁻⁵³ of their parts' sizes; the decompositions have 4p of such units."""
        (p, q), rank = sorted(update.base.shape), update.down.shape[0] if update.factored else 0
        base = float(spectrum.values.norm())
        whole = base + update.most()
        units = EPSILON64 * (4 * p + q)
        left_out = 2 * EPSILON64 * rank + 2 * SMALLEST * rank**0.5
        least = max(NEGLIGIBLE * float(spectrum.values[0]), 2 * EPSILON64 * q * whole) if update.factored else None
        return Rounding(units * base**2, (units + left_out) * whole**2, least)


def bounded(
    products: Tensor, update: Update, spectrum: BaseSpectrum, ritz: Ritz, beyond: float, *, in_base: bool
) -> Cosines | None:
    """Cosines of k tuned left vectors with the base's, if every other eigenvalue is at most `beyond`.

    `products` (p, k) are v₀ᵀu, or v₀ᵀW₀ᵀW u for a tall matrix; `in_base` says that the vectors are in the base's.
    None where a singular value may be zero: the k-th of the tuned matrix, or the largest of the base.
    """
    rounding, omega, cosines = Rounding.of(update, spectrum), 0.0, products
    delta = rounding.tuned
    if in_base:
        omega, delta = spectrum.orthogonality, delta + spectrum.defect + rounding.base
    sines, lower, upper = _sines(ritz, beyond, omega, delta)
    least = NEGLIGIBLE**2 * float(upper[0]) if rounding.least is None else rounding.least**2
    if not (float(lower[-1]) > least and float(spectrum.values[0]) > 0):
        return None
    error = torch.full_like(spectrum.values, ROUNDING + 2 * omega + EPSILON64 * len(ritz.vectors))[:, None]
    if not update.wide:
        # Left vectors are W v/σ and W₀ v₀/σ₀: v₀ᵀW₀ᵀW v is divided by σ₀σ, and so are the errors of v₀ and of the
        # products. The tangent of an angle between W v and W v* is at most σ₁(W)/σ times that between v and v*.
        known = spectrum.values.clamp_min(NEGLIGIBLE * spectrum.values[0])[:, None]
        cosines = cosines / (known * ritz.values.sqrt())
        error = ((delta + rounding.base) / lower.sqrt() + ROUNDING * spectrum.values[0]) / known
        error = error + cosines.abs() * ((delta + ritz.residuals) / lower + rounding.base / known.square())
        tangents = sines / (1 - sines.square()).clamp_min(0).sqrt()
        sines = (tangents * (upper[0] / lower).sqrt()).clamp_max(1.0)
    low, high = _largest(cosines, error, 2**0.5 * sines, spectrum.values.square(), rounding.base, update.wide)
    values = cosines.abs()[spectrum.values > NEGLIGIBLE * spectrum.values[0]].max(dim=0).values
    return Cosines(torch.minimum(torch.maximum(values, low), high), low, high, ritz.vectors, in_base)


def _sines(ritz: Ritz, beyond: float, omega: float, delta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Upper bounds of sin of the angle between each Ritz vector and the true eigenvector, and bounds of its eigenvalue.

    The k pairs belong to M, every other eigenvalue of M is at most `beyond`, and SᵀGS = M + Δ as above. A sine is 1
    where nothing can be said.
    """
    values, together = ritz.values, ritz.residuals.norm()
    residuals = (ritz.residuals + delta + values.abs() * omega) / (1 - omega)
    lower, upper = (values - together - delta) / (1 + omega), (values + together + delta) / (1 - omega)
    rest = lower.new_full((1,), (beyond + delta) / (1 - omega))
    above, below = torch.cat([lower.new_full((1,), torch.inf), lower[:-1]]), torch.cat([upper[1:], rest])
    gaps = torch.minimum(above - values, values - below)
    known = (gaps > residuals) & (lower[-1] > rest)
    return torch.where(known, residuals / gaps, 1.0), lower, upper


def _largest(
    cosines: Tensor, error: Tensor, turned: Tensor, squares: Tensor, rounding: float, wide: bool
) -> tuple[Tensor, Tensor]:
    """Bounds of the largest |cosine| of each of k vectors, (k,), from cosines (p, k) with the base's kept vectors.

    The cosines are off by `error` (p, k or 1), the k vectors by `turned` (k,), and the base's by its rounding.
    """
    gaps = squares[:-1] - squares[1:]
    apart = gaps > APART * rounding
    cluster = torch.cat([apart.new_zeros(1), apart]).cumsum(0)
    sizes = torch.bincount(cluster).to(squares.dtype)
    weakest = squares[torch.cat([apart, apart.new_ones(1)])]
    # Rounding mixes a left vector W₀v₀/σ₀ of a tall base with a neighbour σ₁ > σ₀ by σ₁/σ₀ times as much.
    more = 1.0 if wide else (squares[:-1][apart] / weakest[1:]).sqrt()
    nothing = squares.new_zeros(1)
    mixed = rounding / gaps[apart]
    mixed = 2 * (torch.cat([nothing, more * mixed]) + torch.cat([mixed, nothing if wide else rounding / weakest[-1:]]))

    def length(parts: Tensor) -> Tensor:  # of each cluster's part
        return parts.new_zeros(len(sizes), parts.shape[1]).index_add_(0, cluster, parts.square()).sqrt()

    inside, off = length(cosines), length(error) + mixed[:, None] + turned
    least = (inside - off).clamp_min(0)
    others = (least.square().sum(dim=0) - least.square()).clamp_max(1.0)
    most = torch.minimum(inside + off, (1 - others).sqrt())
    # A vector whose value may be zero is none of the base's, so it may not be what a tuned one resembles.
    kept = weakest > NEGLIGIBLE**2 * squares[0] + rounding
    return (least * kept[:, None] / sizes[:, None].sqrt()).max(dim=0).values, most.max(dim=0).values
