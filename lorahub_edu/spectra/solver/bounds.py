"""How sure a cosine is: the error of a Ritz vector, and the error of the base's kept spectrum.

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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorahub_edu.spectra.bases import ROUNDING, BaseSpectrum
from lorahub_edu.spectra.solver.ritz import Ritz

EPSILON64 = 2.0**-53
TINY = 1e-300  # keeps a division by zero finite


@dataclass(frozen=True)
class Cosines:
    """The largest |cosine| of each of k vectors with all pretrained ones, (k,) float64, and its bounds.

    `vectors` (p, k) float64 are the tuned vectors of the short side, in the base's kept vectors if `in_base`; None if
    they were not kept.
    """

    values: Tensor
    lower: Tensor
    upper: Tensor
    vectors: Tensor | None = None
    in_base: bool = False

    def decided(self, epsilons: Sequence[float]) -> bool:
        """Whether every vector is surely an intruder or surely none, at every ε."""
        return all(bool(((self.upper < e) | (self.lower >= e)).all()) for e in epsilons)

    def without_bounds(self) -> Cosines:
        """The values as their own bounds, for a search that is trusted."""
        return replace(self, lower=self.values, upper=self.values)


def between(values: Tensor) -> Tensor:
    """Two numbers between the last two values at which to count: near the lower value, then farther."""
    low, high = values[-1], values[-2]
    return low + (high - low) * torch.tensor([0.1, 0.5], dtype=values.dtype, device=values.device)


def angles(ritz: Ritz, beyond: float, spectrum: BaseSpectrum | None, rounding: float) -> Tensor:
    """Upper bounds of sin of the angle between each Ritz vector and the true eigenvector.

    Args:
        ritz: k pairs.
        beyond: every other eigenvalue, of the matrix that the pairs belong to (M or G), is at most this.
        spectrum: whose errors M has; None for pairs of G itself.
        rounding: error of float64, in units of the values.

    Returns:
        (k,), 1 where nothing can be said.
    """
    omega, delta = (spectrum.orthogonality, spectrum.defect + rounding) if spectrum else (0.0, rounding)
    values = ritz.values
    residuals = (ritz.residuals + delta + values.abs() * omega) / (1 - omega)
    lower = (values - delta) / (1 + omega)
    upper = (values + ritz.residuals + delta) / (1 - omega)
    above = torch.cat([lower.new_full((1,), torch.inf), lower[:-1]])
    below = torch.cat([upper[1:], upper.new_full((1,), (beyond + delta) / (1 - omega))])
    gaps = torch.minimum(above - values, values - below)
    return torch.where(gaps > 0, residuals / gaps.clamp_min(TINY), 1.0).clamp_max(1.0)


def short_side(products: Tensor, sines: Tensor, spectrum: BaseSpectrum, slack: float) -> Cosines:
    """Cosines of tuned vectors of the short side (out ≤ in) with the base's vectors of that side.

    Args:
        products: (p, k), of the base's kept vectors with the tuned ones.
        sines: (k,), from `angles`.
        spectrum: of the base.
        slack: a further error of the products.
    """
    error = (slack + ROUNDING) * torch.ones_like(spectrum.values)
    return _largest(products, error[:, None], sines, spectrum)


def long_side(products: Tensor, values: Tensor, sines: Tensor, spectrum: BaseSpectrum, defect: float) -> Cosines:
    """Cosines of left vectors W v/σ with the base's left vectors W₀ v₀/σ₀, where out > in and only v, v₀ are kept.

    v₀ᵀW₀ᵀW v is divided by σ₀σ, so the errors of v₀ and of the products are divided by it too. An angle between v and
    v* becomes one between W v and W v* whose tangent is at most σ₁(W)/σ times as large.

    Args:
        products: (p, k), v₀ᵀW₀ᵀW v for all v₀ and v.
        values: (k,), σ² of the tuned vectors.
        sines: (k,), from `angles`, of v.
        spectrum: of the base.
        defect: error of the products and of the squared length of W v.
    """
    lengths = values.sqrt()
    kept = spectrum.values.clamp_min(TINY)
    cosines = products / (kept[:, None] * lengths)
    error = (defect / lengths + ROUNDING * spectrum.values[0]) / kept[:, None]
    error = error + cosines.abs() * (defect / values)
    tangents = sines / (1 - sines.square()).clamp_min(TINY).sqrt()
    return _largest(cosines, error, (tangents * lengths[0] / lengths).clamp_max(1.0), spectrum)


def _largest(cosines: Tensor, error: Tensor, sines: Tensor, spectrum: BaseSpectrum) -> Cosines:
    kept = spectrum.nonzero
    if not kept.any():  # a base of zeros has no vector to resemble
        nothing = torch.zeros_like(sines)
        return Cosines(nothing, nothing, nothing)
    cosines, error = cosines.abs()[kept], error[kept]
    turned = 2**0.5 * sines
    return Cosines(
        cosines.max(dim=0).values,
        (cosines - error).max(dim=0).values - turned,
        (cosines + error).max(dim=0).values + turned,
    )
