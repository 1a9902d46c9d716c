"""How many intruder dimensions an update has, matrix by matrix, with what else its spectrum says.

Source: Shuttleworth et al. 2024, arXiv 2410.21228, algorithm 1. The definition in plain code is in `measures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub_edu.spectra import measures
from lorahub_edu.spectra.bases import BaseSpectra, BaseSpectrum, nonzero
from lorahub_edu.spectra.updates import Update

FULL_SVD, UNCHANGED = "full SVD", "unchanged"


@dataclass(frozen=True)
class MatrixReport:
    """One matrix: `cosines` are the largest |cosine| of each of its k strongest left vectors, strongest first.

    Attributes:
        intruders: how many of the cosines are below each ε, in the report's order.
        spike_ratio: σ₁(ΔW)/σₖ(W₀), the strength of the update beside the k-th singular value of the base.
        relative_size: ‖ΔW‖/‖W₀‖ in the Frobenius norm.
        decided: how the counts were found.
    """

    name: str
    shape: tuple[int, int]
    cosines: tuple[float, ...]
    intruders: tuple[int, ...]
    spike_ratio: float
    relative_size: float
    effective_rank: float
    stable_rank: float
    nuclear_norm: float
    decided: str


@dataclass(frozen=True)
class Report:
    """Every matrix of an update, and what was asked."""

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
) -> Report:
    """Count the intruder dimensions of an update, one matrix in memory at a time.

    Args:
        updates: from `updates.iter_updates`, `updates.from_model`, or made by hand.
        bases: the base's spectra.
        k: how many of a matrix's strongest left singular vectors are looked at.
        epsilons: a vector is an intruder when its largest |cosine| with all pretrained ones is below ε; one count each.
        certified: prove every count.
        device: where to compute.

    Returns:
        One row a matrix, in the order of the updates.

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
        rows.append(_row(update.to(device), bases.get(update.base).to(device), k, tuple(epsilons)))
    return Report(tuple(rows), k, tuple(epsilons))


def _row(update: Update, spectrum: BaseSpectrum, k: int, epsilons: tuple[float, ...]) -> MatrixReport:
    if update.is_zero():
        cosines, decided = torch.ones(k, dtype=torch.float64), UNCHANGED
    else:
        cosines, decided = _by_full_svd(update, spectrum, k), FULL_SVD
    changed = update.singular_values()
    return MatrixReport(
        name=update.name,
        shape=tuple(update.base.shape),
        cosines=tuple(cosines.tolist()),
        intruders=tuple(int((cosines < epsilon).sum()) for epsilon in epsilons),
        spike_ratio=float(changed[0] / spectrum.values[k - 1]) if spectrum.values[k - 1] > 0 else float("inf"),
        relative_size=float(changed.norm() / spectrum.values.norm()),
        effective_rank=measures.effective_rank(changed),
        stable_rank=measures.stable_rank(changed),
        nuclear_norm=measures.nuclear_norm(changed),
        decided=decided,
    )


def _by_full_svd(update: Update, spectrum: BaseSpectrum, k: int) -> Tensor:
    """The largest cosines from a full SVD of the tuned matrix."""
    vectors = measures.left_vectors(update.weight(torch.float64))
    if vectors.shape[1] < k:
        raise measures.rank_error(k, tuple(update.base.shape), vectors.shape[1])
    return left_cosines(update.base, spectrum, vectors[:, :k]).max(dim=1).values


def left_cosines(base: Tensor, spectrum: BaseSpectrum, vectors: Tensor) -> Tensor:
    """The |cosine| of unit vectors with every left singular vector of W₀ whose singular value is not zero.

    Args:
        base: W₀, (out, in).
        spectrum: of W₀.
        vectors: (out, k) float64.

    Returns:
        (k, rank of W₀) float64.
    """
    kept = nonzero(spectrum.values)
    basis = spectrum.basis.double()
    if base.shape[0] <= base.shape[1]:
        return (vectors.T @ basis).abs()[:, kept]
    return ((vectors.T @ base.double()) @ basis).abs()[:, kept] / spectrum.values[kept]
