"""How sure a cosine is: what a Ritz vector can miss, and what the base's kept spectrum can be off.

Three facts are used, each in one line.
- *Residual.* If ‖G u − θ u‖ ≤ ρ for a unit u, and every eigenvalue of G but one is at least γ away from θ, then the
  angle between u and that one's eigenvector has sin ≤ ρ/γ (Davis and Kahan). A cosine with any unit vector is then off
  by at most ‖u − u*‖ ≤ √2 · ρ/γ.
- *Basis.* With SᵀS = I + Ω and SᵀGS = M + Δ, a Ritz pair (θ, z) of M with residual ρ gives u = S z with
  ‖G u − θ u‖ ≤ (ρ + ‖Δ‖ + θ‖Ω‖)/(1 − ‖Ω‖), because Sᵀ(G u − θ u) = (M z − θ z) + Δ z − θ Ω z.
- *Values.* λᵢ(M + Δ) = φ · λᵢ(G) with 1 − ‖Ω‖ ≤ φ ≤ 1 + ‖Ω‖ (Ostrowski), and adding Δ moves no eigenvalue by more than
  ‖Δ‖ (Weyl).

Source: Parlett 1998, "The Symmetric Eigenvalue Problem", chapters 10 and 11; Horn and Johnson, theorem 4.5.9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub_edu.spectra.bases import ROUNDING, BaseSpectrum, nonzero
from lorahub_edu.spectra.subspace import Ritz

EPSILON64 = 2.0**-53


@dataclass(frozen=True)
class Cosines:
    """The largest |cosine| of each of k vectors with all pretrained ones, and between which bounds it lies.

    Attributes:
        values: (k,) float64.
        lower, upper: (k,) float64.
        vectors: (p, k) float64, the tuned vectors of the short side; None where they were not kept.
        in_base: `vectors` are coordinates in the base's kept vectors.
    """

    values: Tensor
    lower: Tensor
    upper: Tensor
    vectors: Tensor | None = None
    in_base: bool = False

    def decided(self, epsilons: Sequence[float]) -> bool:
        """Whether every vector is surely an intruder or surely none, at every ε."""
        return all(bool(((self.upper < e) | (self.lower >= e)).all()) for e in epsilons)


def between(values: Tensor) -> Tensor:
    """Places between the last two values at which to count: near the lower one, then farther."""
    low, high = values[-1], values[-2]
    return low + (high - low) * torch.tensor([0.1, 0.5], dtype=values.dtype, device=values.device)


def angles(ritz: Ritz, beyond: float, spectrum: BaseSpectrum, exact_basis: bool, rounding: float) -> Tensor:
    """Upper bounds of sin of the angle between each of the first k Ritz vectors and the true eigenvector.

    Args:
        ritz: k pairs of which it is known that all other eigenvalues are at most `beyond`.
        beyond: as in the values' own matrix (M or G).
        spectrum: whose errors the basis has.
        exact_basis: the pairs are those of G itself, not of M.
        rounding: what float64 leaves, in units of the values.

    Returns:
        (k,), 1 where nothing can be said.
    """
    omega, delta = (0.0, rounding) if exact_basis else (spectrum.orthogonality, spectrum.defect + rounding)
    values = ritz.values
    residuals = (ritz.residuals + delta + values.abs() * omega) / (1 - omega)
    lower = (values - delta) / (1 + omega)
    upper = (values + ritz.residuals + delta) / (1 - omega)
    above = torch.cat([lower.new_full((1,), torch.inf), lower[:-1]])
    below = torch.cat([upper[1:], upper.new_full((1,), (beyond + delta) / (1 - omega))])
    gaps = torch.minimum(above - values, values - below)
    return torch.where(gaps > 0, residuals / gaps.clamp_min(1e-300), 1.0).clamp_max(1.0)


def short_side(inside: Tensor, sines: Tensor, spectrum: BaseSpectrum, slack: float) -> Cosines:
    """Cosines of vectors that live on the short side (out ≤ in) with the base's vectors of that side.

    Args:
        inside: (p, k), products of the base's kept vectors with the tuned ones.
        sines: (k,), from `angles`.
        spectrum: of the base.
        slack: how far `inside` may be off besides.

    Returns:
        For each vector the largest, and its bounds.
    """
    error = (slack + ROUNDING) * torch.ones_like(spectrum.values)
    return _largest(inside, error[:, None], sines, spectrum)


def long_side(inside: Tensor, values: Tensor, sines: Tensor, spectrum: BaseSpectrum, defect: float) -> Cosines:
    """Cosines of left vectors W v/σ with the base's left vectors W₀ v₀/σ₀, where out > in and only v, v₀ are kept.

    v₀ᵀW₀ᵀW v is divided by σ₀σ, so what v₀ and the products are off is divided by it too. An angle between v and v*
    becomes one between W v and W v* whose tangent is at most σ₁(W)/σ times as large.

    Args:
        inside: (p, k), v₀ᵀW₀ᵀW v for all v₀ and v.
        values: (k,), σ² of the tuned vectors.
        sines: (k,), from `angles`, of v.
        spectrum: of the base.
        defect: how far `inside` and the squared length of W v may be off.

    Returns:
        For each vector the largest, and its bounds.
    """
    lengths = values.sqrt()
    kept = spectrum.values.clamp_min(1e-300)
    cosines = inside / (kept[:, None] * lengths)
    error = (defect / lengths + ROUNDING * spectrum.values[0]) / kept[:, None]
    error = error + cosines.abs() * (defect / values)
    tangents = sines / (1 - sines.square()).clamp_min(1e-300).sqrt()
    return _largest(cosines, error, (tangents * lengths[0] / lengths).clamp_max(1.0), spectrum)


def _largest(cosines: Tensor, error: Tensor, sines: Tensor, spectrum: BaseSpectrum) -> Cosines:
    kept = nonzero(spectrum.values)
    if not kept.any():  # a base of zeros has no vector that could be resembled
        nothing = torch.zeros_like(sines)
        return Cosines(nothing, nothing, nothing)
    cosines = cosines.abs()[kept]
    error = error[kept] if error.shape[0] == len(kept) else error
    turned = 2**0.5 * sines
    return Cosines(
        cosines.max(dim=0).values,
        (cosines - error).max(dim=0).values - turned,
        (cosines + error).max(dim=0).values + turned,
    )
