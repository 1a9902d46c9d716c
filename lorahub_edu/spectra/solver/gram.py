"""The strongest singular vectors of a tuned matrix from its whole Gram matrix, for any change.

Certificate: let U hold k orthonormal vectors and let θᵢ be any numbers ≥ 0. If S = μI − G + U diag(θ) Uᵀ is positive
definite, then G < μI + U diag(θ) Uᵀ, whose (k+1)-th eigenvalue is μ, so λ_{k+1}(G) < μ (Weyl): no vector of a larger
singular value was missed. S is positive definite if its Cholesky factor exists, up to rounding.

Source: Horn and Johnson, "Matrix Analysis", section 4.3; Rump 2006, "Verification of positive definiteness".
"""

from __future__ import annotations

from dataclasses import replace

import scipy.linalg
import torch
from torch import Tensor

from lorahub_edu.spectra.bases import BaseSpectrum, sum_of_squares
from lorahub_edu.spectra.measures import NEGLIGIBLE
from lorahub_edu.spectra.solver import bounds
from lorahub_edu.spectra.solver.bounds import EPSILON64, Cosines, between
from lorahub_edu.spectra.solver.ritz import SPARE, Ritz, largest_eigenpairs
from lorahub_edu.spectra.updates import Update


def tuned_gram(update: Update) -> Tensor:
    """W Wᵀ if out ≤ in, else Wᵀ W, of the tuned matrix: (p, p) float64, added up slice by slice."""
    return sum_of_squares(tuned for _, tuned in update.slices())


def largest_cosines(
    update: Update, spectrum: BaseSpectrum, k: int, gram: Tensor, certified: bool = True
) -> Cosines | None:
    """As `secular.largest_cosines`, by a search for the k < p strongest vectors of G, from `tuned_gram`."""
    start = spectrum.basis[:, : k + SPARE].double()
    ritz = largest_eigenpairs(lambda vectors: gram @ vectors, start, k + 1)
    first = ritz.first(k)
    if not float(first.values[-1]) > NEGLIGIBLE**2 * float(first.values[0]):
        return None
    if not certified:
        return _bounded(update, spectrum, first, 0.0, 0.0).without_bounds()
    beyond = none_missed(gram, ritz)
    return None if beyond is None else _bounded(update, spectrum, first, beyond, _rounding(gram))


def all_decomposed(update: Update, spectrum: BaseSpectrum, k: int, gram: Tensor) -> Cosines | None:
    """The same from a decomposition of the tuned matrix's Gram matrix; None if its k-th singular value may be zero."""
    values, vectors = _strongest(gram, min(k + 1, len(gram)))
    if not float(values[k - 1]) > max(NEGLIGIBLE**2 * float(values[0]), _rounding(gram)):
        return None
    beyond = float(values[k]) if k < len(values) else -float("inf")
    first = Ritz(values, vectors, torch.zeros_like(values)).first(k)
    return _bounded(update, spectrum, first, beyond, _rounding(gram))


def _strongest(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, largest first, and their vectors, after a reduction of the whole matrix.

    On a CPU, LAPACK computes only the vectors that are wanted, which takes a half to a quarter of the time.
    """
    if gram.device.type != "cpu":
        values, vectors = torch.linalg.eigh(gram)
    else:
        wanted = (len(gram) - count, len(gram) - 1)
        pairs = scipy.linalg.eigh(gram.numpy(), subset_by_index=wanted, check_finite=False)
        values, vectors = map(torch.from_numpy, pairs)
    return values.flip(0)[:count], vectors.flip(1)[:, :count]


def none_missed(gram: Tensor, ritz: Ritz) -> float | None:
    """A bound of every eigenvalue of G but the k largest, proven by a Cholesky factor; None if there is no proof."""
    k = len(ritz.values) - 1
    for mu in between(ritz.values):
        shifted = (ritz.vectors[:, :k] * ritz.values[:k]) @ ritz.vectors[:, :k].T
        shifted -= gram
        shifted.diagonal().add_(mu)
        rounding = _rounding(shifted)
        if int(torch.linalg.cholesky_ex(shifted).info) == 0:
            return float(mu) + rounding
    return None


def _rounding(symmetric: Tensor) -> float:
    """How far float64 may move an eigenvalue of a positive matrix: a small multiple of p · 2⁻⁵³ · trace (Rump 2006)."""
    return 4 * len(symmetric) * EPSILON64 * float(symmetric.diagonal().sum())


def _bounded(update: Update, spectrum: BaseSpectrum, ritz: Ritz, beyond: float, rounding: float) -> Cosines:
    """Cosines of the tuned left vectors with the base's, from the vectors of the short side."""
    vectors = ritz.vectors
    sines = bounds.angles(ritz, beyond, None, rounding)
    if update.wide:
        cosines = bounds.short_side(spectrum.coordinates(vectors), sines, spectrum, EPSILON64 * len(vectors))
    else:
        products = torch.zeros_like(vectors)
        for base, tuned in update.slices():
            products += base @ (tuned.T @ vectors)
        cosines = bounds.long_side(spectrum.coordinates(products), ritz.values, sines, spectrum, rounding)
    return replace(cosines, vectors=vectors)
