"""How many intruder dimensions an update has, matrix by matrix, with what else its spectrum says.

Source: Shuttleworth et al. 2024, arXiv 2410.21228, algorithm 1. The definition in plain code is in `measures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from lorahub_edu.spectra import measures
from lorahub_edu.spectra.bases import BaseSpectra, BaseSpectrum
from lorahub_edu.spectra.solver.decide import Cosines, largest_cosines
from lorahub_edu.spectra.updates import Update

UNCHANGED = "unchanged"


@dataclass(frozen=True)
class MatrixReport:
    """One matrix: `cosines` are the largest |cosine| of each of its k strongest left vectors, strongest first.

    Attributes:
        uncertainty: the largest error of a cosine; 0 where nothing was proven.
        intruders: how many of the cosines are below each ε.
        spike_ratio: σ₁(ΔW)/σₖ(W₀), the strength of the update against the k-th singular value of the base.
        relative_size: ‖ΔW‖/‖W₀‖ in the Frobenius norm.
        decided: "certified" by a search and its proof, "decomposed" or "two SVDs" if that was not enough,
            "uncertified" by the search alone, "unchanged" for an update of zero.
    """

    name: str
    shape: tuple[int, int]
    cosines: tuple[float, ...]
    uncertainty: float
    intruders: tuple[int, ...]
    spike_ratio: float
    relative_size: float
    effective_rank: float
    stable_rank: float
    nuclear_norm: float
    decided: str


@dataclass(frozen=True)
class IntruderCounts:
    """The intruders of every matrix of an update, among its k strongest vectors, at each ε."""

    rows: tuple[MatrixReport, ...]
    k: int
    epsilons: tuple[float, ...]

    @property
    def intruders(self) -> tuple[int, ...]:
        """How many intruders there are in all matrices, for each ε."""
        return tuple(sum(row.intruders[i] for row in self.rows) for i in range(len(self.epsilons)))

    @property
    def unchanged(self) -> bool:
        """Whether no matrix changes at all."""
        return all(row.decided == UNCHANGED for row in self.rows)


@torch.no_grad()
def count(
    updates: Iterable[Update],
    bases: BaseSpectra,
    k: int = 10,
    epsilons: Sequence[float] = (0.5,),
    certified: bool = True,
    device: torch.device | str = "cpu",
) -> IntruderCounts:
    """Count the intruder dimensions of an update, one matrix in memory at a time.

    Args:
        updates: from `updates.iter_updates`, or made by hand.
        k: how many of a matrix's strongest left singular vectors.
        epsilons: a vector is an intruder if its largest |cosine| with a pretrained one is below ε; one count each.
        certified: prove that every count is the one that two full SVDs give. False trusts the search.

    Raises:
        CourseError: k or an ε makes no sense, a matrix has fewer than k singular vectors, or holds NaN or infinity.

    Source: arXiv 2410.21228, algorithm 1.
    """
    for epsilon in epsilons:
        measures.check_epsilon(epsilon)
    rows = []
    for update in updates:
        measures.check_k(k, tuple(update.base.shape))
        update.check_finite()
        rows.append(_row(update.to(device), bases.get(update.base).to(device), k, tuple(epsilons), certified))
    return IntruderCounts(tuple(rows), k, tuple(epsilons))


def _row(update: Update, spectrum: BaseSpectrum, k: int, epsilons: tuple[float, ...], certified: bool) -> MatrixReport:
    if update.is_zero():
        ones = torch.ones(k, dtype=torch.float64)
        cosines, decided = Cosines(ones, ones, ones), UNCHANGED
    else:
        cosines, decided = largest_cosines(update, spectrum, k, epsilons, certified)
    changed = update.singular_values()
    return MatrixReport(
        name=update.name,
        shape=tuple(update.base.shape),
        cosines=tuple(cosines.values.tolist()),
        uncertainty=float((cosines.upper - cosines.lower).max()) / 2,
        intruders=tuple(int((cosines.values < epsilon).sum()) for epsilon in epsilons),
        spike_ratio=float(changed[0] / spectrum.values[k - 1]) if spectrum.values[k - 1] > 0 else float("inf"),
        relative_size=float(changed.norm() / spectrum.values.norm()),
        effective_rank=measures.effective_rank(changed),
        stable_rank=measures.stable_rank(changed),
        nuclear_norm=measures.nuclear_norm(changed),
        decided=decided,
    )
