"""What scaling parts of a trained change does to task and text: intruders, as many others, the whole change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lorahub_edu.data import sequence_tasks
from lorahub_edu.forgetting.study import K, Lab, TailRun, lab, spectrum
from lorahub_edu.forgetting.tails import DivergedError, training
from lorahub_edu.spectra.intruders import Report
from lorahub_edu.spectra.updates import Update

SCALES = (0.9, 0.7, 0.5, 0.0)
WHAT = ("intruders", "others", "update")


@dataclass(frozen=True)
class Parts:
    """A tuned matrix, and the parts of it that its intruders and as many other strong directions make up.

    All are (out, in) float32; a part is Σ σᵢuᵢvᵢᵀ over its singular triplets, zero where the matrix has no intruder.
    """

    base: Tensor
    tuned: Tensor
    intruders: Tensor
    others: Tensor
    count: int

    def scaled(self, what: str, scale: float) -> Tensor:
        """The matrix with one thing multiplied by `scale`: its "intruders", as many "others", or the whole "update"."""
        if what == "update":
            return self.base + scale * (self.tuned - self.base)
        return self.tuned - (1 - scale) * getattr(self, what)


@torch.no_grad()
def parts(updates: Sequence[Update], report: Report, epsilon: float = 0.5) -> dict[str, Parts]:
    """Every tuned matrix with its intruders and, beside them, the strongest directions that are none.

    Args:
        updates: the changes.
        report: of `spectra.intruders.count` on them; tells which of the k strongest vectors are intruders.
        epsilon: below which cosine a vector is one.

    Returns:
        By name. Where fewer than `count` of the k strongest vectors are no intruders, there are fewer others.

    Source: Shuttleworth et al. 2024, arXiv 2410.21228 v2, section 5 (scaling intruder dimensions; claim I12). The other
        two are controls.
    """
    found = {}
    for update, row in zip(updates, report.rows, strict=True):
        weight = update.weight()
        is_intruder = torch.tensor(row.cosines) < epsilon
        count = int(is_intruder.sum())
        intruders, others = torch.zeros_like(weight), torch.zeros_like(weight)
        if count:
            vectors = strongest(weight, report.k)
            intruders = _projected(vectors[:, is_intruder], weight)
            others = _projected(vectors[:, ~is_intruder][:, :count], weight)
        found[update.name] = Parts(update.base.float(), weight, intruders, others, count)
    return found


def _projected(vectors: Tensor, weight: Tensor) -> Tensor:
    """Σ uᵢuᵢᵀW = Σ σᵢuᵢvᵢᵀ for left singular vectors uᵢ, the columns of `vectors`."""
    return vectors @ (vectors.T @ weight)


def strongest(weight: Tensor, k: int = K) -> Tensor:
    """The k strongest left singular vectors of a matrix, (out, k), from its short side's Gram matrix in float64."""
    wide = weight.double()
    if wide.shape[0] <= wide.shape[1]:
        vectors = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -k:]
    else:
        vectors = wide @ torch.linalg.eigh(wide.T @ wide).eigenvectors[:, -k:]
        vectors = vectors / vectors.norm(dim=0)
    return vectors.flip(1).to(weight.dtype)


@dataclass(frozen=True)
class Intervention:
    """A run whose change is taken apart: every `what` times every `scale`."""

    run: TailRun
    scales: tuple[float, ...] = SCALES
    epsilon: float = 0.5


def run_intervention(job: Intervention) -> dict:
    """Train a run and measure it under every intervention.

    Returns:
        `run` and `epsilon` (settings), `base` and `tuned` (loss and pretraining loss), `spectrum`, `scaled`: one entry
        for each `what` and `scale` with both losses, `texts`, and `diverged`: a message in place of the rest.
    """
    run = job.run
    place = lab(run.profile, run.layers)
    sequence_tasks.get(run.task)
    row = {"run": asdict(run), "epsilon": job.epsilon, "texts": place.texts_label, "diverged": ""}
    try:
        steps = training(place.tail, place.train(run.task), run.tuning, (run.steps,))
        updates = next(steps).updates()
        steps.close()
    except DivergedError as problem:
        return row | {"diverged": str(problem)}
    report = place.count(updates)
    taken = parts(updates, report, job.epsilon)
    row["base"] = {"loss": place.base_loss(run.task, run.part), "pretraining_loss": place.pretraining_loss}
    row["spectrum"] = spectrum(report)
    row["tuned"] = losses(place, run, {name: part.tuned for name, part in taken.items()})
    row["intruders"] = sum(part.count for part in taken.values())
    row["scaled"] = [
        {"what": what, "scale": scale}
        | losses(place, run, {name: part.scaled(what, scale) for name, part in taken.items()})
        for what in WHAT
        for scale in job.scales
    ]
    return row


def losses(place: Lab, run: TailRun, weights: Mapping[str, Tensor]) -> dict:
    """Both losses with the tail's matrices set to `weights`; they are the base's again afterwards."""
    try:
        place.tail.put(weights)
        return {
            "loss": place.tail.loss(place.held(run.task, run.part)),
            "pretraining_loss": place.tail.loss(place.texts),
        }
    finally:
        place.tail.put()
