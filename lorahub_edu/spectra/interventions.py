"""Making intruder dimensions weaker, and what that has to be compared with.

The tuned matrix is W = Σ σᵢuᵢvᵢᵀ. Scaling the singular values of a set I by λ gives W − (1 − λ) Σ_I σᵢuᵢvᵢᵀ, which
changes W₀ + ΔW by a matrix of rank |I|: an adapter of rank r stays an adapter, of rank r + |I|, and nothing is cut off.
Source: Shuttleworth et al. 2025, arXiv 2410.21228v3, section 6 (claim I12); PEFT's `reduce_intruder_dimension` does the
first of these, and cuts the result back to rank r.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.lora.adapter_files import AdapterFile, write_adapter
from lorahub_edu.spectra import measures
from lorahub_edu.spectra.bases import BaseSpectra
from lorahub_edu.spectra.solver.decide import largest_cosines
from lorahub_edu.spectra.updates import Update, base_of, base_weights, iter_updates

KINDS = {
    "intruders": "the singular values of the intruder dimensions",
    "others": "as many singular values of other strong vectors, in the same matrices (control)",
    "update": "the whole update, in every matrix (control)",
}


@torch.no_grad()
def scaled(
    updates: Iterable[Update],
    bases: BaseSpectra,
    factor: float,
    kind: str = "intruders",
    k: int = 10,
    epsilon: float = 0.5,
) -> Iterator[Update]:
    """Updates with a part of the tuned matrices' spectrum scaled; A and B stay factors (float32, rank up to r + k).

    `factor` λ = 1 changes nothing, 0 removes the part. `kind` is a key of `KINDS`: "others" are the strongest ones
    among the k, and may be fewer than the intruders. `k` and `epsilon` are as for `intruders.count`.
    Raises CourseError: unknown kind, a factor below 0, or as `intruders.count`.
    """
    if kind not in KINDS:
        raise CourseError(f"There is no part {kind!r} of an update to scale. {near_matches(kind, KINDS)}")
    if not 0.0 <= factor < float("inf"):
        raise CourseError(f"The factor scales singular values and is at least 0, but it is {factor}. Try 0.7.")
    measures.check_epsilon(epsilon)
    return (_scaled(update, bases, factor, kind, k, epsilon) for update in updates)


def _scaled(update: Update, bases: BaseSpectra, factor: float, kind: str, k: int, epsilon: float) -> Update:
    measures.check_k(k, tuple(update.base.shape))
    update.check_finite()
    if kind == "update" and update.factored:
        return replace(update, scaling=factor * update.scaling)
    if kind == "update":
        return replace(update, delta=factor * update.delta)
    if update.is_zero() or factor == 1:
        return update
    spectrum = bases.get(update.base)
    cosines, _ = largest_cosines(update, spectrum, k, (epsilon,))
    chosen = cosines.values < epsilon
    if kind == "others":  # the strongest vectors that are no intruders, as many as there are intruders
        others = ~chosen
        chosen = others & (others.cumsum(0) <= int(chosen.sum()))
    if not chosen.any():
        return update
    vectors = cosines.vectors
    if vectors is None:
        left, _, right = torch.linalg.svd(update.weight(torch.float64), full_matrices=False)
        vectors = left[:, :k] if update.wide else right[:k].T
    if cosines.in_base:
        vectors = spectrum.basis.double() @ vectors
    return _without(update, vectors[:, chosen], 1 - factor)


def _without(update: Update, vectors: Tensor, share: float) -> Update:
    """W − share · Σ σuvᵀ, from vectors (p, j) float64 of the short side: uuᵀW = σuvᵀ = Wvvᵀ."""
    vectors = vectors / vectors.norm(dim=0)
    partners = torch.cat([tuned.T @ vectors for _, tuned in update.slices()])  # (q, j): σ times the long side's vectors
    strengths = partners.norm(dim=0)
    partners = partners / strengths
    left, right = (vectors, partners) if update.wide else (partners, vectors)
    weights = -share * strengths
    if not update.factored:
        return replace(update, delta=(update.delta.double() + (left * weights) @ right.T).float())
    # The strength is shared evenly between the two factors, so that neither is out of scale with A and B.
    weights = weights / update.scaling
    root = weights.abs().sqrt()
    return replace(
        update,
        up=torch.cat([update.up.float(), (left * root * weights.sign()).float()], 1),
        down=torch.cat([update.down.float(), (right * root).T.float()]),
    )


def as_adapter(file: AdapterFile, changed: Iterable[Update]) -> AdapterFile:
    """The adapter `file` with the factors of its changed updates in place of its own, each layer with its new rank."""
    weights, configs = {}, {}
    for update in changed:
        rank, dtype = update.down.shape[0], update.down.dtype
        weights[update.name] = (update.down, update.up)
        configs[update.name] = replace(
            file.configs[update.name], rank=rank, alpha=update.scaling * rank, rank_stabilised=False, dtype=dtype
        )
    return replace(file, weights=weights, configs=configs)


def save_scaled(
    file: AdapterFile | Path,
    out: str | Path,
    factor: float,
    kind: str = "intruders",
    *,
    base: str = "",
    k: int = 10,
    epsilon: float = 0.5,
    profile: str | None = None,
) -> AdapterFile:
    """Scale a part of an adapter's spectrum and save the result as an adapter in PEFT's layout.

    `base` and `profile` are as for `intruders.examine`, the other settings as for `scaled`. Raises CourseError as they
    do, and for a source that is no adapter.
    """
    if not isinstance(file, AdapterFile):
        raise CourseError(f"{file} is a whole model: only an adapter can be saved as an adapter.")
    updates = iter_updates(file, base_weights(base or base_of(file, profile)))
    adapter = as_adapter(file, scaled(updates, BaseSpectra(), factor, kind, k, epsilon))
    write_adapter(adapter, out)
    return adapter
