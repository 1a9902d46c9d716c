"""The solver's one entry, `largest_cosines`: a search with its proof first, a decomposition where the proof is missing.

The squared singular values of a matrix are the eigenvalues of its Gram matrix G. The search (Rayleigh-Ritz) takes the
best approximations in a subspace, and adds what they miss to the subspace, until the residuals are small. How sure a
cosine then is, and what that rests on, is in `bounds`.
Source: Saad 2011, "Numerical Methods for Large Eigenvalue Problems", chapters 4.3 and 8.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import scipy.linalg
import torch
from torch import Tensor

from lorahub_edu.spectra import measures
from lorahub_edu.spectra.bases import TINY, BaseSpectrum, sum_of_squares
from lorahub_edu.spectra.solver import secular
from lorahub_edu.spectra.solver.bounds import Cosines, Ritz, Rounding, bounded
from lorahub_edu.spectra.solver.secular import Secular
from lorahub_edu.spectra.updates import Update

CERTIFIED, DECOMPOSED, DEFINITION = "certified", "decomposed", "two SVDs"
SMALL = 8  # below so many times the directions at its start, a short side is decomposed: a search would be slower
LOW_RANK = 16  # an update counts as low-rank if its rank is at most this part of the short side
TOLERANCE = 1e-9  # of a residual, relative to the k-th value
MAX_ROUNDS = 60
ORTHONORMAL = 1e-12  # ‖VᵀV − I‖ of vectors that count as orthonormal: more than rounding and less than the tolerance
SPARE = 22  # directions beside the wanted ones, at the start and when a large subspace is cut


def largest_cosines(update: Update, spectrum: BaseSpectrum, k: int, epsilons: Sequence[float]) -> tuple[Cosines, str]:
    """The largest |cosine| of each of the k strongest left vectors of one tuned matrix, and which way decided.

    For a low-rank update, not zero, a search for the k strongest vectors comes first. If its proof or its bounds are
    not enough, the tuned matrix is decomposed. If a cosine may still lie on either side of an ε, both matrices are, by
    the definition in `measures`.
    Raises CourseError: the tuned matrix has fewer than k singular vectors.
    """
    p = min(update.base.shape)
    if update.factored and SMALL * (k + SPARE) <= p and LOW_RANK * update.down.shape[0] <= p:
        cosines = searched(update, spectrum, k)
        if cosines is not None and cosines.decided(epsilons):
            return cosines, CERTIFIED
    cosines = decomposed(update, spectrum, k)
    if cosines is not None and cosines.decided(epsilons):
        return cosines, DECOMPOSED
    least = Rounding.of(update, spectrum).least
    exact = measures.largest_cosines(update.base, update.weight(torch.float64), k, least)
    return Cosines(exact, exact, exact), DEFINITION


def searched(update: Update, spectrum: BaseSpectrum, k: int) -> Cosines | None:
    """The cosines of the k < p strongest vectors of a factored update, by a search.

    None if there is no proof that no stronger vector was missed, or if the k-th singular value or the whole change is
    zero up to rounding.
    """
    matrix = secular.in_base_coordinates(update, spectrum)
    if not matrix.rank:
        return None
    ritz = largest_eigenpairs(matrix.apply, matrix.start(k + SPARE), k + 1, matrix.toward)
    ritz = measured_again(matrix.apply, ritz)
    beyond = ritz and none_missed(matrix, ritz)
    if beyond is None:
        return None
    ritz = ritz.first(k)
    return bounded(matrix.products(ritz.vectors, update.wide), update, spectrum, ritz, beyond, in_base=True)


def decomposed(update: Update, spectrum: BaseSpectrum, k: int) -> Cosines | None:
    """The same for any update, from a decomposition of its Gram matrix; None if the k-th singular value may be zero."""
    gram = sum_of_squares(tuned for _, tuned in update.slices())
    values, vectors = strongest(gram, min(k + 1, len(gram)))
    beyond = float(values[k]) if k < len(values) else -float("inf")
    ritz = measured_again(gram.matmul, Ritz(values, vectors, values).first(k))
    if ritz is None:
        return None
    products = ritz.vectors  # v₀ᵀu if out ≤ in, else v₀ᵀW₀ᵀW u, for kept v₀ and tuned u (p, k) of the short side
    if not update.wide:
        products = sum(base @ (tuned.T @ ritz.vectors) for base, tuned in update.slices())
    return bounded(spectrum.coordinates(products), update, spectrum, ritz, beyond, in_base=False)


def strongest(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of a symmetric matrix and their vectors; LAPACK computes only those on a CPU."""
    if gram.device.type != "cpu":
        values, vectors = torch.linalg.eigh(gram)
    else:
        wanted = (len(gram) - count, len(gram) - 1)
        pairs = scipy.linalg.eigh(gram.numpy(), subset_by_index=wanted, check_finite=False)
        values, vectors = map(torch.from_numpy, pairs)
    return values.flip(0)[:count], vectors.flip(1)[:, :count]


def largest_eigenpairs(
    apply: Callable[[Tensor], Tensor],
    start: Tensor,
    k: int,
    expand: Callable[[Tensor, Tensor], Tensor] | None = None,
    tolerance: float = TOLERANCE,
) -> Ritz:
    """The k largest eigenvalues of a symmetric matrix and their vectors, from a good first guess.

    The k Ritz pairs need not be the largest ones: that takes a certificate. The first k − 1 are iterated until their
    residuals are below tolerance · θₖ. `start` (p, q ≥ k) float64 are directions that the wanted vectors nearly lie in.
    `expand` makes new directions from values (c,) and vectors (p, c) of pairs that are not yet good enough; None takes
    their residual vectors, which makes it block Lanczos with restarts.
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
        if not bool(torch.isfinite(new.norm())):  # θ is an eigenvalue to the last bit
            new = misfit[:, missing]
        for _ in range(2):  # its part in the basis is subtracted twice, because once leaves rounding
            new = new - basis @ (basis.T @ new)
            new = torch.linalg.qr(new / new.norm(dim=0).clamp_min(TINY)).Q
        image_of_new = apply(new)
        corner = basis.T @ image_of_new
        small = torch.cat([torch.cat([small, corner], 1), torch.cat([corner.T, new.T @ image_of_new], 1)])
        basis, image = torch.cat([basis, new], 1), torch.cat([image, image_of_new], 1)
    return Ritz(values[:k], vectors, residuals)


def measured_again(apply: Callable[[Tensor], Tensor], ritz: Ritz) -> Ritz | None:
    """The pairs with the residuals that their vectors have; None unless the vectors are orthonormal.

    The search only updates its products with G. Where a new direction lies in its subspace up to rounding, what is left
    of that direction is noise: vectors then lose their right angles.
    """
    overlaps = ritz.vectors.T @ ritz.vectors
    overlaps.diagonal().sub_(1.0)
    if not float(overlaps.norm()) <= ORTHONORMAL:
        return None
    # Orthonormal vectors lie within that norm of these: G and θ move them by at most so much.
    skew = 2 * overlaps.norm() * ritz.values[0]
    residuals = (apply(ritz.vectors) - ritz.vectors * ritz.values).norm(dim=0)
    return replace(ritz, residuals=residuals + skew)


def none_missed(matrix: Secular, ritz: Ritz) -> float | None:
    """A bound of every eigenvalue but the k largest, from k + 1 pairs; None if there is no proof."""
    low, high = ritz.values[-1], ritz.values[-2]
    for share in (0.1, 0.5):  # of the way between the last two values: near the lower one, then farther
        bound = low + (high - low) * share
        if matrix.count_above(bound) == len(ritz.values) - 1:
            return float(bound)
    return None
