"""The solver's one entry: a search with its proof first, a decomposition where the proof is missing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorahub_edu.spectra import measures
from lorahub_edu.spectra.bases import BaseSpectrum
from lorahub_edu.spectra.solver import gram, secular
from lorahub_edu.spectra.solver.bounds import Cosines
from lorahub_edu.spectra.solver.ritz import SPARE
from lorahub_edu.spectra.updates import Update

UNCERTIFIED, CERTIFIED, DECOMPOSED, DEFINITION = "uncertified", "certified", "decomposed", "two SVDs"
SMALL = 8  # below so many times the directions at its start, a short side is decomposed: a search would be slower
LOW_RANK = 16  # an update counts as low-rank if its rank is at most this part of the short side


def largest_cosines(
    update: Update, spectrum: BaseSpectrum, k: int, epsilons: Sequence[float], certified: bool = True
) -> tuple[Cosines, str]:
    """The largest |cosine| of each of the k strongest left vectors of one tuned matrix, as cheaply as can be proven.

    A search for the k strongest vectors comes first. If its proof or its bounds are not enough, the tuned matrix is
    decomposed. If a cosine may still lie on either side of an ε, both matrices are, by the definition in `measures`.

    Args:
        update: one matrix and its change, not zero.
        k: how many vectors.
        epsilons: thresholds that the cosines must be told from.
        certified: False trusts the search without a proof.

    Returns:
        The cosines, and which of the ways decided.

    Raises:
        CourseError: the tuned matrix has fewer than k singular vectors.
    """
    p = min(update.base.shape)
    tuned = None
    if SMALL * (k + SPARE) <= p:
        if update.factored and LOW_RANK * update.down.shape[0] <= p:
            cosines = secular.largest_cosines(update, spectrum, k, certified)
        else:
            tuned = gram.tuned_gram(update)
            cosines = gram.largest_cosines(update, spectrum, k, tuned, certified)
        if cosines is not None and (cosines.decided(epsilons) or not certified):
            return cosines, CERTIFIED if certified else UNCERTIFIED
    cosines = gram.all_decomposed(update, spectrum, k, gram.tuned_gram(update) if tuned is None else tuned)
    if cosines is not None and cosines.decided(epsilons):
        return cosines, DECOMPOSED
    exact = measures.largest_cosines(update.base, update.weight(torch.float64), k)
    return Cosines(exact, exact, exact), DEFINITION
