"""One run of the forgetting studies: train the tail on a task, measure it, and scale parts of its change."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from lorahub_edu.forgetting.interventions import losses, parts
from lorahub_edu.forgetting.lab import Lab, lab, spectrum
from lorahub_edu.forgetting.tails import TailState, Trained, Tuning, train, training
from lorahub_edu.spectra.interventions import KINDS
from lorahub_edu.spectra.intruders import IntruderCounts
from lorahub_edu.training.descent import DivergedError

SCALES = (0.9, 0.7, 0.5, 0.0)


@dataclass(frozen=True)
class TailRun:
    """What one run is; it can be sent to a worker as it is.

    Attributes:
        rank: of LoRA; 0 is full fine-tuning.
        rule: a key of `RULES`, or another word where `scaling` was chosen by itself; "" in full fine-tuning.
        scaling: the factor in front of B @ A.
        seed: of A, of which rows are seen and of their order.
        at: steps at which losses and spectra are taken; the last one always is.
        part: which rows the loss is taken on, "settling" or "validation".
        spectra: whether to take pretraining loss and spectra besides; settling runs do without.
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


def run_tail(run: TailRun) -> dict:
    """Train one run and measure it, in this process's lab for the run's profile.

    Returns:
        `run` (its settings), `base` (losses before), `points` (step, losses, and, with spectra, totals of `spectrum`),
        `matrices` (of the last point, see `per_matrix`), `train_losses`, `cpu_seconds` of the optimizer steps, `texts`,
        and `diverged`: a message in tail_lab of the last points.

    Raises:
        CourseError: unknown task or part.
    """
    tail_lab = lab(run.profile, run.layers)
    row = {
        "run": asdict(run),
        "base": {"loss": tail_lab.base_loss(run.task, run.part), "pretraining_loss": tail_lab.pretraining_loss},
        "texts": tail_lab.texts_label,
        "diverged": "",
    }
    try:
        return row | measured(*train_run(run, tail_lab))
    except DivergedError as problem:
        return row | {"points": [], "matrices": {}, "train_losses": [], "cpu_seconds": 0.0, "diverged": str(problem)}


def train_run(run: TailRun, tail_lab: Lab) -> tuple[Trained, IntruderCounts | None]:
    """The finished run with its updates and points, and, with spectra, the intruders of its last updates."""
    reports: list[IntruderCounts] = []

    def look(state: TailState) -> dict:
        reports.append(tail_lab.count(state.updates()))
        return spectrum(reports[-1])

    trained = train(
        tail_lab.tail,
        tail_lab.train(run.task),
        run.tuning,
        validation=tail_lab.held(run.task, run.part),
        texts=tail_lab.texts if run.spectra else None,
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


@dataclass(frozen=True)
class Intervention:
    """A run whose change is taken apart: every kind of intervention at every scale."""

    run: TailRun
    scales: tuple[float, ...] = SCALES
    epsilon: float = 0.5


def run_intervention(job: Intervention) -> dict:
    """Train a run and measure it under every intervention, in this process's lab for the run's profile.

    Returns:
        `run` and `epsilon` (settings), `base` and `tuned` (loss and pretraining loss), `spectrum`, `scaled`: one entry
        for each `kind` and `scale` with both losses, `texts`, and `diverged`: a message in tail_lab of the rest.
    """
    run = job.run
    tail_lab = lab(run.profile, run.layers)
    row = {"run": asdict(run), "epsilon": job.epsilon, "texts": tail_lab.texts_label, "diverged": ""}
    try:
        steps = training(tail_lab.tail, tail_lab.train(run.task), run.tuning, (run.steps,))
        updates = next(steps).updates()
        steps.close()
    except DivergedError as problem:
        return row | {"diverged": str(problem)}
    report = tail_lab.count(updates)
    taken = parts(updates, tail_lab, job.epsilon)
    row["base"] = {"loss": tail_lab.base_loss(run.task, run.part), "pretraining_loss": tail_lab.pretraining_loss}
    row["spectrum"] = spectrum(report)
    row["tuned"] = losses(tail_lab, run.task, taken.tuned, run.part)
    row["intruders"] = sum(int(cosine < job.epsilon) for matrix in report.rows for cosine in matrix.cosines)
    row["scaled"] = [
        {"kind": kind, "scale": scale} | losses(tail_lab, run.task, taken.scaled(kind, scale), run.part)
        for kind in KINDS
        for scale in job.scales
    ]
    return row
