"""What scaling parts of a trained change does to task and text: intruders, as many others, the whole change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub_edu.forgetting.lab import Lab
from lorahub_edu.spectra.interventions import KINDS, scaled
from lorahub_edu.spectra.updates import Update


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


def parts(updates: Sequence[Update], lab: Lab, epsilon: float = 0.5) -> Parts:
    """The matrices of a run's updates with and without each part, float32; one decomposition serves every scale.

    A vector is an intruder if its largest |cosine| with the base's is below `epsilon`.

    Source: Shuttleworth et al., arXiv 2410.21228, the section on scaling intruder dimensions (claim I12). "others" and
        "update" are controls.
    """
    tuned = {update.name: update.weight() for update in updates}
    without = {}
    for kind in KINDS:
        left = scaled(updates, lab.bases, 0.0, kind, epsilon=epsilon)
        without[kind] = {
            after.name: tuned[after.name] if after is before else after.weight()
            for before, after in zip(updates, left, strict=True)
        }
    return Parts(tuned, without)


def losses(lab: Lab, task: str, weights: Mapping[str, Tensor], part: str = "validation") -> dict:
    """Both losses with the tail's matrices set to `weights`; they are the base's again afterwards."""
    try:
        lab.tail.put(weights)
        return {"loss": lab.tail.loss(lab.held(task, part)), "pretraining_loss": lab.tail.loss(lab.texts)}
    finally:
        lab.tail.put()
