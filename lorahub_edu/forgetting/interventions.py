"""What scaling parts of a trained change does to task and text: intruders, as many others, the whole change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lorahub_edu.forgetting.lab import Lab, TailRun, lab, spectrum
from lorahub_edu.forgetting.tails import DivergedError, training
from lorahub_edu.spectra.interventions import KINDS, scaled
from lorahub_edu.spectra.updates import Update

SCALES = (0.9, 0.7, 0.5, 0.0)


@dataclass(frozen=True)
class Parts:
    """The tuned matrices by name, and for each kind of `spectra.interventions` the same matrices without that part."""

    tuned: dict[str, Tensor]
    without: dict[str, dict[str, Tensor]]

    def scaled(self, kind: str, scale: float) -> dict[str, Tensor]:
        """The matrices with one part multiplied by `scale`: they lie on a straight line in it."""
        return {
            name: weight if weight is self.tuned[name] else torch.lerp(weight, self.tuned[name], scale)
            for name, weight in self.without[kind].items()
        }


def parts(updates: Sequence[Update], place: Lab, epsilon: float = 0.5) -> Parts:
    """Take updates apart, once for every scale.

    Args:
        updates: the changes of a run.
        place: whose base they belong to.
        epsilon: below which cosine a vector is an intruder.

    Returns:
        The matrices with and without each part, float32.

    Source: Shuttleworth et al., arXiv 2410.21228, the section on scaling intruder dimensions (claim I12). "others" and
        "update" are controls.
    """
    tuned = {update.name: update.weight() for update in updates}
    without = {}
    for kind in KINDS:
        left = scaled(updates, place.bases, 0.0, kind, epsilon=epsilon)
        without[kind] = {
            after.name: tuned[after.name] if after is before else after.weight()
            for before, after in zip(updates, left, strict=True)
        }
    return Parts(tuned, without)


@dataclass(frozen=True)
class Intervention:
    """A run whose change is taken apart: every kind of intervention at every scale."""

    run: TailRun
    scales: tuple[float, ...] = SCALES
    epsilon: float = 0.5


def run_intervention(job: Intervention, place: Lab | None = None) -> dict:
    """Train a run and measure it under every intervention.

    Args:
        job: what to do.
        place: where; None takes this process's lab for the run's profile.

    Returns:
        `run` and `epsilon` (settings), `base` and `tuned` (loss and pretraining loss), `spectrum`, `scaled`: one entry
        for each `kind` and `scale` with both losses, `texts`, and `diverged`: a message in place of the rest.
    """
    run = job.run
    place = place or lab(run.profile, run.layers)
    row = {"run": asdict(run), "epsilon": job.epsilon, "texts": place.texts_label, "diverged": ""}
    try:
        steps = training(place.tail, place.train(run.task), run.tuning, (run.steps,))
        updates = next(steps).updates()
        steps.close()
    except DivergedError as problem:
        return row | {"diverged": str(problem)}
    report = place.count(updates)
    taken = parts(updates, place, job.epsilon)
    row["base"] = {"loss": place.base_loss(run.task, run.part), "pretraining_loss": place.pretraining_loss}
    row["spectrum"] = spectrum(report)
    row["tuned"] = losses(place, run, taken.tuned)
    row["intruders"] = sum(int(cosine < job.epsilon) for matrix in report.rows for cosine in matrix.cosines)
    row["scaled"] = [
        {"kind": kind, "scale": scale} | losses(place, run, taken.scaled(kind, scale))
        for kind in KINDS
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
