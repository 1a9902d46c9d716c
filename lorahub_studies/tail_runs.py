"""One run of the forgetting studies: train the tail, then measure it, or scale parts of its change."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from functools import lru_cache

from lorahub_edu.forgetting.lab import Lab, losses, parts
from lorahub_edu.forgetting.tails import Trained, Tuning, train, training
from lorahub_edu.spectra.interventions import KINDS
from lorahub_edu.spectra.intruders import IntruderCounts
from lorahub_edu.training.descent import DivergedError

SCALES = (0.9, 0.7, 0.5, 0.0)


@dataclass(frozen=True)
class TailRun:
    """What one run is; it can be sent to a worker as it is.

    Attributes:
        rank: of LoRA, in every matrix that admits it and else its full rank; 0 is full fine-tuning.
        rule: a key of `RULES`, or another word where `scaling` was chosen by itself; "" in full fine-tuning.
        seed: of A, of which rows are seen and of their order.
        at: steps at which losses and spectra are taken; the last one always is.
        part: which rows the loss is taken on, "settling" or "validation".
        spectra: whether to take pretraining loss and spectra besides; settling runs do without.
        matrices: what the names of the matrices that LoRA adapts hold; "" is all of a layer.
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
    matrices: str = ""
    batch_size: int = 8

    @property
    def tuning(self) -> Tuning:
        """Method and settings, for `tails.train`."""
        return Tuning(
            self.learning_rate, self.steps, self.rank, self.scaling, self.seed, self.matrices, self.batch_size
        )


@lru_cache(maxsize=1)
def lab(profile: str, layers: int) -> Lab:
    """The lab of this process; the last one is kept."""
    return Lab(profile, layers)


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


def run_tail(run: TailRun) -> dict:
    """Train one run and measure it, in this process's lab for the run's profile.

    Returns: `run` (its settings), `base` (losses before), `points` (step, losses, and, with spectra, totals of
        `spectrum`), `matrices` (of the last point, see `per_matrix`), `train_losses`, `cpu_seconds` of the optimizer
        steps, `texts`, and `diverged`: a message in place of the last points.
    Raises CourseError: unknown task or part.
    """
    tail_lab = lab(run.profile, run.layers)
    row = {"run": asdict(run), "base": base_losses(run, tail_lab), "texts": tail_lab.texts_label, "diverged": ""}
    reports: list[IntruderCounts] = []

    def look(state: Trained) -> dict:
        reports.append(tail_lab.count(state.updates))
        return spectrum(reports[-1])

    try:
        trained = train(
            tail_lab.tail,
            tail_lab.train(run.task),
            run.tuning,
            validation=tail_lab.held(run.task, run.part),
            texts=tail_lab.texts if run.spectra else None,
            at=run.at,
            look=look if run.spectra else None,
        )
    except DivergedError as problem:
        return row | {"points": [], "matrices": {}, "train_losses": [], "cpu_seconds": 0.0, "diverged": str(problem)}
    return row | {
        "points": [
            {"step": point.step, "loss": point.validation_loss}
            | ({"pretraining_loss": point.pretraining_loss} if run.spectra else {})
            | point.measured
            for point in trained.points
        ],
        "matrices": per_matrix(reports[-1]) if run.spectra else {},
        "train_losses": [round(loss, 4) for loss in trained.train_losses],
        "cpu_seconds": round(trained.cpu_seconds, 1),
    }


def base_losses(run: TailRun, tail_lab: Lab) -> dict[str, float]:
    """Both losses of the base, in nats a token."""
    return {"loss": tail_lab.base_loss(run.task, run.part), "pretraining_loss": tail_lab.pretraining_loss}


def per_matrix(report: IntruderCounts) -> dict:
    """A report's matrices as columns: names, counts of intruders by ε, and sizes with four digits."""
    sizes = ("spike_ratio", "relative_size", "effective_rank", "nuclear_norm")
    return {
        "names": [row.name for row in report.rows],
        "intruders": {str(e): [row.intruders[i] for row in report.rows] for i, e in enumerate(report.epsilons)},
    } | {size: [float(f"{getattr(row, size):.4g}") for row in report.rows] for size in sizes}


@dataclass(frozen=True)
class Intervention:
    """A run whose change is taken apart: every kind of intervention at every scale."""

    run: TailRun
    scales: tuple[float, ...] = SCALES
    epsilon: float = 0.5


def run_intervention(job: Intervention) -> dict:
    """Train a run and measure it under every intervention, in this process's lab for the run's profile.

    Returns: `run` and `epsilon` (settings), `base` and `tuned` (loss and pretraining loss), `spectrum`, `scaled`: one
        entry for each `kind` and `scale` with both losses, `texts`, and `diverged`: a message in place of the rest.
    """
    run = job.run
    tail_lab = lab(run.profile, run.layers)
    row = {"run": asdict(run), "epsilon": job.epsilon, "texts": tail_lab.texts_label, "diverged": ""}
    steps = training(tail_lab.tail, tail_lab.train(run.task), run.tuning, (run.steps,))
    try:
        updates = next(steps).updates
    except DivergedError as problem:
        return row | {"diverged": str(problem)}
    finally:
        steps.close()
    report = tail_lab.count(updates)
    taken = parts(updates, tail_lab, job.epsilon)
    return row | {
        "base": base_losses(run, tail_lab),
        "spectrum": spectrum(report),
        "tuned": losses(tail_lab, run.task, taken.tuned, run.part),
        "intruders": sum(int(cosine < job.epsilon) for matrix in report.rows for cosine in matrix.cosines),
        "scaled": [
            {"kind": kind, "scale": scale} | losses(tail_lab, run.task, taken.scaled(kind, scale), run.part)
            for kind in KINDS
            for scale in job.scales
        ],
    }
