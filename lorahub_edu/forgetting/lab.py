"""One run of a study: train the tail on a task, and take its losses, what it forgot, and the spectra of its changes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch

from lorahub_edu.data import sequence_tasks
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.forgetting import texts
from lorahub_edu.forgetting.hidden import CachedRows, HiddenBatch, Tail
from lorahub_edu.forgetting.tails import DivergedError, TailState, Trained, Tuning, train
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.spectra import intruders
from lorahub_edu.spectra.bases import BaseSpectra
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
    """The factor in front of B @ A that a rule gives a rank; all three rules give 2 at rank 16.

    Args:
        rule: "alpha = 2r" is 2 at every rank, "rank-stabilised" is 8/√r, "fixed alpha" is 32/r.
        rank: at least 1.

    Returns:
        The factor.

    Raises:
        CourseError: there is no such rule.

    Source: Kalajdzievski 2023, arXiv 2312.03732 (rank-stabilised); claim I10 (alpha = 2r).
    """
    if rule not in RULES:
        raise CourseError(f"There is no rule of scaling {rule!r}. {near_matches(rule, RULES)}")
    return RULES[rule](rank)


@dataclass(frozen=True)
class TailRun:
    """What one run is; it can be sent to a worker as it is.

    Attributes:
        task: a key of `sequence_tasks.TASKS`.
        rank: of LoRA; 0 is full fine-tuning.
        rule: a key of `RULES`, or another word where `scaling` was chosen by itself; "" in full fine-tuning.
        scaling: the factor in front of B @ A.
        learning_rate: the peak.
        steps: of the schedule.
        seed: of A, of which rows are seen and of their order.
        at: steps at which losses and spectra are taken; the last one always is.
        part: which rows the loss is taken on, "settling" or "validation".
        spectra: whether to take pretraining loss and spectra besides; settling runs do without.
        profile: names the base model.
        layers: how many of the last layers are trained.
    """

    task: str
    rank: int
    rule: str
    scaling: float
    learning_rate: float
    steps: int
    seed: int
    at: tuple[int, ...] = ()
    part: str = "validation"
    spectra: bool = True
    profile: str = "cpu"
    layers: int = 6

    @property
    def tuning(self) -> Tuning:
        """Method and settings, for `tails.train`."""
        return Tuning(self.learning_rate, self.steps, self.rank, self.scaling, self.seed)


class Lab:
    """A base model's tail with what does not depend on the run: hidden states of rows and texts, the base's spectra.

    Args:
        profile: names the base model; it computes in bfloat16, or in float32 for profile tiny.
        layers: of the tail.
        train_rows: rows of a task that runs draw from.
        validation_rows: rows of a task that are reported on.
    """

    def __init__(
        self, profile: str = "cpu", layers: int = 6, train_rows: int = 960, validation_rows: int = 256
    ) -> None:
        small = get_profile(profile).name == "tiny"
        model, self.tokenizer = pretrained.load(profile, dtype=torch.float32)
        self.tail = Tail(model, layers, None if small else torch.bfloat16)
        loaded = texts.load(self.tokenizer, fetch=not small)
        self.texts, self.texts_label = self.tail.cache_texts(loaded.sequences), loaded.label
        self.pretraining_loss = self.tail.loss(self.texts)  # of the base
        self.bases = BaseSpectra()
        self.train_rows, self.validation_rows = train_rows, validation_rows
        self._train: dict[str, CachedRows] = {}
        self._held: dict[tuple[str, str], list[HiddenBatch]] = {}
        self._base: dict[tuple[str, str], float] = {}

    def train(self, task: str) -> CachedRows:
        """A task's rows to train on."""
        if task not in self._train:
            rows = sequence_tasks.split(task, train=self.train_rows, validation=self.validation_rows).train
            self._train[task] = self.tail.cache(sequence_tasks.encode(self.tokenizer, rows))
        return self._train[task]

    def held(self, task: str, part: str = "validation") -> list[HiddenBatch]:
        """Batches of a task's settling or validation rows."""
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


@lru_cache(maxsize=1)
def lab(profile: str, layers: int) -> Lab:
    """The lab of this process; the last one is kept."""
    return Lab(profile, layers)


def run_tail(run: TailRun, place: Lab | None = None) -> dict:
    """Train one run and measure it.

    Args:
        run: what to do.
        place: where; None takes this process's lab for the run's profile.

    Returns:
        `run` (its settings), `base` (losses before), `points` (step, losses, and, with spectra, totals of `spectrum`),
        `matrices` (of the last point, see `per_matrix`), `train_losses`, `cpu_seconds` of the optimizer steps, `texts`,
        and `diverged`: a message in place of the last points.

    Raises:
        CourseError: unknown task or part.
    """
    place = place or lab(run.profile, run.layers)
    row = {
        "run": asdict(run),
        "base": {"loss": place.base_loss(run.task, run.part), "pretraining_loss": place.pretraining_loss},
        "texts": place.texts_label,
        "diverged": "",
    }
    try:
        return row | measured(*train_run(run, place))
    except DivergedError as problem:
        return row | {"points": [], "matrices": {}, "train_losses": [], "cpu_seconds": 0.0, "diverged": str(problem)}


def train_run(run: TailRun, place: Lab) -> tuple[Trained, IntruderCounts | None]:
    """Train one run.

    Args:
        run: what to do.
        place: where.

    Returns:
        The finished run with its updates and points, and, with spectra, the report on its last updates.

    Raises:
        CourseError: unknown task or part.
        DivergedError: a loss is no longer finite.
    """
    reports: list[IntruderCounts] = []

    def look(state: TailState) -> dict:
        reports.append(place.count(state.updates()))
        return spectrum(reports[-1])

    trained = train(
        place.tail,
        place.train(run.task),
        run.tuning,
        validation=place.held(run.task, run.part),
        texts=place.texts if run.spectra else None,
        at=run.at,
        look=look if run.spectra else None,
    )
    return trained, reports[-1] if reports else None


def measured(trained: Trained, report: IntruderCounts | None) -> dict:
    """What a row says of a finished run: points, matrices, losses of every step, processor seconds."""
    return {
        "points": [
            {"step": point.step, "loss": point.validation_loss}
            | ({"pretraining_loss": point.pretraining_loss} if report else {})
            | point.measured
            for point in trained.points
        ],
        "matrices": per_matrix(report) if report else {},
        "train_losses": [round(loss, 4) for loss in trained.train_losses],
        "cpu_seconds": round(trained.cpu_seconds, 1),
    }


def spectrum(report: IntruderCounts) -> dict:
    """What a report's matrices say together.

    Returns:
        `intruders`: totals by ε; `spike_ratio` and `largest_spike_ratio`: mean and largest σ₁(ΔW)/σ₁₀(W₀);
        `relative_size`: mean ‖ΔW‖/‖W₀‖; `nuclear_norm`: sum over matrices; `effective_rank`: mean.
    """
    rows = report.rows
    ratios = [row.spike_ratio for row in rows]
    return {
        "intruders": {str(e): total for e, total in zip(report.epsilons, report.intruders, strict=True)},
        "spike_ratio": statistics.fmean(ratios),
        "largest_spike_ratio": max(ratios),
        "relative_size": statistics.fmean(row.relative_size for row in rows),
        "nuclear_norm": sum(row.nuclear_norm for row in rows),
        "effective_rank": statistics.fmean(row.effective_rank for row in rows),
    }


def per_matrix(report: IntruderCounts) -> dict:
    """A report's matrices as columns: names, and for each a spike ratio, counts by ε, and how they were decided."""
    return {
        "names": [row.name for row in report.rows],
        "spike_ratio": [float(f"{row.spike_ratio:.4g}") for row in report.rows],
        "intruders": {str(e): [row.intruders[i] for row in report.rows] for i, e in enumerate(report.epsilons)},
        "relative_size": [float(f"{row.relative_size:.4g}") for row in report.rows],
        "effective_rank": [float(f"{row.effective_rank:.4g}") for row in report.rows],
        "nuclear_norm": [float(f"{row.nuclear_norm:.4g}") for row in report.rows],
    }
