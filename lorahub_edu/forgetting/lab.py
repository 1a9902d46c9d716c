"""A model's tail with all that does not depend on a run, and what scaling parts of a trained change does to its losses.

The lab keeps the rows, the texts, the losses of the base and the spectra of the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub_edu.data import sequence_tasks
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.forgetting import texts
from lorahub_edu.forgetting.hidden import CachedRows, HiddenBatch, Tail
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.spectra import intruders
from lorahub_edu.spectra.bases import BaseSpectra
from lorahub_edu.spectra.interventions import KINDS, scaled
from lorahub_edu.spectra.intruders import IntruderCounts
from lorahub_edu.spectra.updates import Update

K = 10
EPSILONS = (0.5, 0.6, 0.7, 0.8)
PIVOT = 16  # the rank at which all three rules of scaling agree
RULES = {
    "alpha = 2r": lambda rank: 2.0,
    "rank-stabilised": lambda rank: 2.0 * (PIVOT / rank) ** 0.5,
    "fixed alpha": lambda rank: 2.0 * PIVOT / rank,
}
PARTS = ("settling", "validation")


def scaling(rule: str, rank: int) -> float:
    """The factor in front of B @ A that a rule gives a rank r; all three rules give 2 at rank 16.

    "alpha = 2r" is 2 at every rank, "rank-stabilised" is 8/√r, "fixed alpha" is 32/r.
    Source: Kalajdzievski 2023, arXiv 2312.03732 (rank-stabilised); claim I10 (alpha = 2r).
    """
    if rule not in RULES:
        raise CourseError(f"There is no rule of scaling {rule!r}. {near_matches(rule, RULES)}")
    return RULES[rule](rank)


class Lab:
    """A base model's tail with what does not depend on the run: hidden states of rows and texts, the base's spectra.

    It computes in `pretrained.quick_dtype`, or in float32 for profile tiny. Runs draw from `train_rows` of a task, and
    `validation_rows` are reported on.
    """

    def __init__(
        self, profile: str = "cpu", layers: int = 6, train_rows: int = 960, validation_rows: int = 256
    ) -> None:
        small = get_profile(profile).name == "tiny"
        model, self.tokenizer = pretrained.load(profile, dtype=torch.float32)
        slow = pretrained.quick_dtype() is torch.float32
        self.tail = Tail(model, layers, None if small or slow else torch.bfloat16)
        loaded = texts.load(self.tokenizer, fetch=not small)
        self.texts, self.texts_label = self.tail.cache_texts(loaded.sequences), loaded.label
        self.pretraining_loss = self.tail.loss(self.texts)  # of the base
        self.bases = BaseSpectra()
        self.train_rows, self.validation_rows = train_rows, validation_rows
        self._train: dict[str, CachedRows] = {}
        self._held: dict[tuple[str, str], list[HiddenBatch]] = {}
        self._base: dict[tuple[str, str], float] = {}

    def train(self, task: str) -> CachedRows:
        if task not in self._train:
            rows = sequence_tasks.split(task, train=self.train_rows, validation=self.validation_rows).train
            self._train[task] = self.tail.cache(sequence_tasks.encode(self.tokenizer, rows))
        return self._train[task]

    def held(self, task: str, part: str = "validation") -> list[HiddenBatch]:
        if part not in PARTS:
            raise CourseError(f"There is no part {part!r} of held-out rows. {near_matches(part, PARTS)}")
        if (task, part) not in self._held:
            rows = getattr(sequence_tasks.split(task, train=1, validation=self.validation_rows), part)
            self._held[task, part] = self.tail.cache(sequence_tasks.encode(self.tokenizer, rows)).batches()
        return self._held[task, part]

    def base_loss(self, task: str, part: str = "validation") -> float:
        """The base's loss on a task's held-out rows, in nats a token; the tail must hold its original weights."""
        if (task, part) not in self._base:
            self._base[task, part] = self.tail.loss(self.held(task, part))
        return self._base[task, part]

    def count(self, updates: Sequence[Update]) -> IntruderCounts:
        """Intruders of some changes for every ε of `EPSILONS`, with the rest of what their spectra say."""
        return intruders.count(updates, self.bases, K, EPSILONS)


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


def parts(updates: Sequence[Update], tail_lab: Lab, epsilon: float = 0.5) -> Parts:
    """The matrices of a run's updates with and without each part, float32; one decomposition serves every scale.

    A vector is an intruder if its largest |cosine| with the base's is below `epsilon`.
    Source: Shuttleworth et al., arXiv 2410.21228, the section on scaling intruder dimensions (claim I12). "others" and
        "update" are controls.
    """
    tuned = {update.name: update.weight() for update in updates}
    without = {}
    for kind in KINDS:
        left = scaled(updates, tail_lab.bases, 0.0, kind, epsilon=epsilon)
        without[kind] = {
            after.name: tuned[after.name] if after is before else after.weight()
            for before, after in zip(updates, left, strict=True)
        }
    return Parts(tuned, without)


def losses(tail_lab: Lab, task: str, weights: Mapping[str, Tensor], part: str = "validation") -> dict:
    """Both losses with the tail's matrices set to `weights`; they are the base's again afterwards."""
    try:
        tail_lab.tail.put(weights)
        loss, pretraining_loss = tail_lab.tail.loss(tail_lab.held(task, part)), tail_lab.tail.loss(tail_lab.texts)
        return {"loss": loss, "pretraining_loss": pretraining_loss}
    finally:
        tail_lab.tail.put()
