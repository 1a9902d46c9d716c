"""The solver's one entry, `largest_cosines`: a search with its proof first, a decomposition where the proof is missing.

The squared singular values of a matrix are the eigenvalues of its Gram matrix G. The search (Rayleigh-Ritz) takes the
best approximations in a subspace, and adds what they miss to the subspace, until the residuals are small. How sure a
cosine then is follows from three facts:
- *Residual.* If ‖G u − θ u‖ ≤ ρ for a unit u, and every eigenvalue of G but one is at least γ away from θ, then the
  angle between u and that one's eigenvector has sin ≤ ρ/γ (Davis and Kahan). A cosine with any unit vector is then off
  by at most ‖u − u*‖ ≤ √2 · ρ/γ.
- *Basis.* With SᵀS = I + Ω and SᵀGS = M + Δ, a Ritz pair (θ, z) of M with residual ρ gives u = S z with
  ‖G u − θ u‖ ≤ (ρ + ‖Δ‖ + θ‖Ω‖)/(1 − ‖Ω‖), because Sᵀ(G u − θ u) = (M z − θ z) + Δ z − θ Ω z.
- *Values.* λᵢ(M + Δ) = φ · λᵢ(G) with 1 − ‖Ω‖ ≤ φ ≤ 1 + ‖Ω‖ (Ostrowski), and adding Δ moves no eigenvalue by more than
  ‖Δ‖ (Weyl).

Source: Saad 2011, "Numerical Methods for Large Eigenvalue Problems", chapters 4.3 and 8.4; Parlett 1998, "The Symmetric
Eigenvalue Problem", chapters 10 and 11; Horn and Johnson, theorem 4.5.9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorahub_edu.spectra import measures
from lorahub_edu.spectra.bases import ROUNDING, TINY, BaseSpectrum
from lorahub_edu.spectra.measures import NEGLIGIBLE
from lorahub_edu.spectra.solver import gram, secular
from lorahub_edu.spectra.solver.gram import Gram
from lorahub_edu.spectra.solver.secular import Secular
from lorahub_edu.spectra.updates import Update

UNCERTIFIED, CERTIFIED, DECOMPOSED, DEFINITION = "uncertified", "certified", "decomposed", "two SVDs"
SMALL = 8  # below so many times the directions at its start, a short side is decomposed: a search would be slower
LOW_RANK = 16  # an update counts as low-rank if its rank is at most this part of the short side
TOLERANCE = 1e-9  # of a residual, relative to the k-th value
MAX_ROUNDS = 60
ORTHONORMAL = 1e-12  # ‖VᵀV − I‖ of vectors that count as orthonormal: more than rounding and less than the tolerance
SPARE = 22  # directions beside the wanted ones, at the start and when a large subspace is cut


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
        """Whether every vector is surely an intruder or surely none, at every ε, and no cosine is above 1."""
        if not bool((self.values <= 1 + ROUNDING).all()):
            return False
        return all(bool(((self.upper < e) | (self.lower >= e)).all()) for e in epsilons)


def largest_cosines(
    update: Update, spectrum: BaseSpectrum, k: int, epsilons: Sequence[float], certified: bool = True
) -> tuple[Cosines, str]:
    """The largest |cosine| of each of the k strongest left vectors of one tuned matrix, as cheaply as can be proven.

    A search for the k strongest vectors comes first. If its proof or its bounds are not enough, the tuned matrix is
    decomposed. If a cosine may still lie on either side of an ε, both matrices are, by the definition in `measures`.

    Args:
        update: one matrix and its change, not zero.
        epsilons: thresholds that the cosines must be told from.
        certified: False trusts the search without a proof.

    Returns:
        The cosines, and which of the ways decided.

    Raises:
        CourseError: the tuned matrix has fewer than k singular vectors.
    """
    p, matrix = min(update.base.shape), None
    if SMALL * (k + SPARE) <= p:
        if update.factored and LOW_RANK * update.down.shape[0] <= p:
            matrix = secular.in_base_coordinates(update, spectrum, torch.float64 if certified else torch.float32)
        else:
            matrix = gram.tuned_gram(update, spectrum)
        cosines = searched(matrix, update, spectrum, k, certified)
        if cosines is not None and (cosines.decided(epsilons) or not certified):
            return cosines, CERTIFIED if certified else UNCERTIFIED
    whole = matrix if isinstance(matrix, Gram) else gram.tuned_gram(update, spectrum)
    cosines = decomposed(whole, update, spectrum, k)
    if cosines is not None and cosines.decided(epsilons):
        return cosines, DECOMPOSED
    exact = measures.largest_cosines(update.base, update.weight(torch.float64), k)
    return Cosines(exact, exact, exact), DEFINITION


def searched(
    matrix: Secular | Gram, update: Update, spectrum: BaseSpectrum, k: int, certified: bool = True
) -> Cosines | None:
    """The cosines of the k < p strongest vectors by a search; not certified, their bounds are the values themselves.

    None if there is no proof that no stronger vector was missed, or if the k-th singular value or the whole change is
    zero up to rounding.
    """
    if matrix.in_base and not matrix.rank:
        return None
    tolerance = TOLERANCE if certified else matrix.rough
    ritz = largest_eigenpairs(matrix.apply, matrix.start(k + SPARE), k + 1, matrix.toward, tolerance)
    if certified and (ritz := measured_again(matrix, ritz)) is None:
        return None
    first = ritz.first(k)
    if not float(first.values[-1]) > NEGLIGIBLE**2 * float(first.values[0]):
        return None
    beyond = none_missed(matrix, ritz) if certified else 0.0
    if beyond is None:
        return None
    cosines = _bounded(matrix, update, spectrum, first, beyond)
    return cosines if certified else replace(cosines, lower=cosines.values, upper=cosines.values)


def decomposed(matrix: Gram, update: Update, spectrum: BaseSpectrum, k: int) -> Cosines | None:
    """The same from a decomposition of the tuned matrix's Gram matrix; None if its k-th singular value may be zero."""
    values, vectors = matrix.strongest(min(k + 1, len(matrix.matrix)))
    if not float(values[k - 1]) > max(NEGLIGIBLE**2 * float(values[0]), matrix.rounding):
        return None
    beyond = float(values[k]) if k < len(values) else -float("inf")
    first = Ritz(values, vectors, torch.zeros_like(values)).first(k)
    return _bounded(matrix, update, spectrum, first, beyond)


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
        for _ in range(2):  # its part in the basis is subtracted twice, because once leaves rounding
            new = new - basis @ (basis.T @ new)
            new = torch.linalg.qr(new / new.norm(dim=0).clamp_min(TINY)).Q
        image_of_new = apply(new)
        corner = basis.T @ image_of_new
        small = torch.cat([torch.cat([small, corner], 1), torch.cat([corner.T, new.T @ image_of_new], 1)])
        basis, image = torch.cat([basis, new], 1), torch.cat([image, image_of_new], 1)
    return Ritz(values[:k], vectors, residuals)


def measured_again(matrix: Secular | Gram, ritz: Ritz) -> Ritz | None:
    """The pairs with the residuals that their vectors have; None unless the vectors are orthonormal.

    The search only updates its products with G. Where a new direction lies in its subspace up to rounding, what is left
    of that direction is noise: vectors then lose their right angles.
    """
    overlaps = ritz.vectors.T @ ritz.vectors
    overlaps.diagonal().sub_(1.0)
    if not float(overlaps.norm()) <= ORTHONORMAL:
        return None
    residuals = (matrix.apply(ritz.vectors) - ritz.vectors * ritz.values).norm(dim=0)
    return replace(ritz, residuals=residuals)


def none_missed(matrix: Secular | Gram, ritz: Ritz) -> float | None:
    """A bound of every eigenvalue but the k largest, from k + 1 pairs; None if there is no proof."""
    first, low, high = ritz.first(len(ritz.values) - 1), ritz.values[-1], ritz.values[-2]
    for share in (0.1, 0.5):  # of the way between the last two values: near the lower one, then farther
        bound = matrix.bound_of_rest(low + (high - low) * share, first.values, first.vectors)
        if bound is not None:
            return bound
    return None


def _bounded(matrix: Secular | Gram, update: Update, spectrum: BaseSpectrum, ritz: Ritz, beyond: float) -> Cosines:
    """Cosines of k tuned left vectors with the base's, if every other eigenvalue is at most `beyond`."""
    products, error = matrix.products(ritz.vectors, update, spectrum)
    sines = _sines(ritz, beyond, spectrum if matrix.in_base else None, matrix.rounding)
    kept = spectrum.values > NEGLIGIBLE * spectrum.values[0]
    if not kept.any():  # a base of zeros has no vector to resemble
        nothing = torch.zeros_like(sines)
        return Cosines(nothing, nothing, nothing, ritz.vectors, matrix.in_base)
    if update.wide:
        cosines, error = products.abs()[kept], error + ROUNDING
    else:
        # Left vectors are W v/σ and W₀ v₀/σ₀: v₀ᵀW₀ᵀW v is divided by σ₀σ, and so are the errors of v₀ and of the
        # products. The tangent of an angle between W v and W v* is at most σ₁(W)/σ times that between v and v*.
        lengths, base_lengths = ritz.values.sqrt(), spectrum.values[kept, None].clamp_min(TINY)
        cosines = (products[kept] / (base_lengths * lengths)).abs()
        of_products = (error / lengths + ROUNDING * spectrum.values[0]) / base_lengths
        error = of_products + cosines * (error / ritz.values)
        tangents = sines / (1 - sines.square()).clamp_min(TINY).sqrt()
        sines = (tangents * lengths[0] / lengths).clamp_max(1.0)
    turned = 2**0.5 * sines
    return Cosines(
        cosines.max(dim=0).values,
        (cosines - error).max(dim=0).values - turned,
        (cosines + error).max(dim=0).values + turned,
        ritz.vectors,
        matrix.in_base,
    )


def _sines(ritz: Ritz, beyond: float, spectrum: BaseSpectrum | None, rounding: float) -> Tensor:
    """Upper bounds of sin of the angle between each Ritz vector and the true eigenvector.

    The k pairs belong to M, which has the errors of `spectrum`, or to G itself (None). Every other eigenvalue of that
    matrix is at most `beyond`, up to `rounding`.

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
