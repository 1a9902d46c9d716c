"""Tasks one after the other: after each, its change is merged, the adapter starts anew, and every task is tested."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorahub_edu import results
from lorahub_edu.data import sequence_tasks
from lorahub_edu.errors import CourseError
from lorahub_edu.forgetting.lab import Lab, lab, spectrum
from lorahub_edu.forgetting.tails import DivergedError, Tuning, training
from lorahub_edu.spectra.updates import Update

LOG = "stages.json"


@dataclass(frozen=True)
class Stage:
    """After one task of the sequence.

    Attributes:
        task: that was trained last; "" before the first one.
        losses: of every task of the sequence on its validation rows, in nats a token.
        pretraining_loss: on plain text, in nats a token.
        spectrum: of the whole change since the base, as `lab.spectrum` gives it; {} before the first task.
        cpu_seconds: of this stage's optimizer steps.
    """

    task: str
    losses: dict[str, float]
    pretraining_loss: float
    spectrum: dict
    cpu_seconds: float


def continual(tail_lab: Lab, tasks: Sequence[str], tuning: Tuning, *, folder: str | Path | None = None) -> list[Stage]:
    """The base and then one stage a task: train, merge the change into the weights, re-initialise, test every task.

    Args:
        tail_lab: the tail and its cached rows; its weights are the base's again afterwards.
        tasks: keys of `sequence_tasks.TASKS`, any number, each once.
        tuning: of every stage; A and the rows' order get another seed in each.
        folder: keeps the merged weights and the stages, so that a stopped sequence continues after its last whole
            stage; None keeps nothing.

    Raises:
        CourseError: no or unknown tasks, or the folder holds another sequence.
        DivergedError: a stage's loss is no longer finite.

    Source: Shuttleworth et al. 2024, arXiv 2410.21228, figure 8 (claim I8).
    """
    if not tasks or len(set(tasks)) < len(tasks):
        raise CourseError(f"A sequence of the tasks {list(tasks)}: give at least one, and none twice.")
    for task in tasks:
        sequence_tasks.get(task)
    kept = _Folder(Path(folder), tasks, tuning) if folder else None
    stages, weights = kept.read() if kept else ([], None)
    try:
        if not stages:
            stages = [Stage("", {task: tail_lab.base_loss(task) for task in tasks}, tail_lab.pretraining_loss, {}, 0.0)]
        tail_lab.tail.put(weights)
        for number in range(len(stages) - 1, len(tasks)):
            updates, spent = _train(tail_lab, tasks[number], replace(tuning, seed=tuning.seed * 1000 + number))
            weights = {update.name: update.weight() for update in updates}
            tail_lab.tail.put(weights)
            stages = [*stages, _stage(tail_lab, tasks[number], tasks, updates, spent)]
            if kept:
                kept.write(stages, weights)
        return stages
    finally:
        tail_lab.tail.put()


def _train(tail_lab: Lab, task: str, tuning: Tuning) -> tuple[tuple[Update, ...], float]:
    """The change since the base after training a task, and the processor seconds of its steps."""
    run = training(tail_lab.tail, tail_lab.train(task), tuning, (tuning.steps,))
    progress = next(run)
    updates, spent = progress.updates(), progress.cpu_seconds
    run.close()
    return updates, spent


def _stage(tail_lab: Lab, task: str, tasks: Sequence[str], updates: Sequence[Update], spent: float) -> Stage:
    return Stage(
        task=task,
        losses={name: tail_lab.tail.loss(tail_lab.held(name)) for name in tasks},
        pretraining_loss=tail_lab.tail.loss(tail_lab.texts),
        spectrum=spectrum(tail_lab.count(updates)),
        cpu_seconds=round(spent, 1),
    )


class _Folder:
    """A sequence on disk: its settings and stages, and the weights after the last of them."""

    def __init__(self, path: Path, tasks: Sequence[str], tuning: Tuning) -> None:
        self.path = path
        self.settings = json.loads(json.dumps({"tasks": list(tasks), "tuning": asdict(tuning)}))

    def read(self) -> tuple[list[Stage], dict[str, Tensor] | None]:
        log = self.path / LOG
        if not log.is_file():
            return [], None
        try:
            content = json.loads(log.read_text(encoding="utf-8"))
            stages, settings = [Stage(**stage) for stage in content["stages"]], content["settings"]
            weights = load_file(self._weights(len(stages)))
        except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
            raise CourseError(f"{self.path} holds no whole sequence ({error!r}): delete it and start again.") from error
        if settings != self.settings:
            raise CourseError(f"{self.path} holds a sequence with other tasks or settings: choose another folder.")
        return stages, weights

    def write(self, stages: Sequence[Stage], weights: dict[str, Tensor]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.contiguous() for name, weight in weights.items()}, self._weights(len(stages)))
        # The log names the new weights' file only now that it is whole; the one before it is not needed any more.
        results.write_json(self.path / LOG, {"settings": self.settings, "stages": [asdict(stage) for stage in stages]})
        self._weights(len(stages) - 1).unlink(missing_ok=True)

    def _weights(self, stages: int) -> Path:
        return self.path / f"weights-{stages}.safetensors"


@dataclass(frozen=True)
class ContinualRun:
    """One sequence of a study; the fields are those of `TailRun`, for every stage."""

    tasks: tuple[str, ...]
    rank: int
    rule: str
    scaling: float
    learning_rate: float
    steps: int
    seed: int
    profile: str = "cpu"
    layers: int = 6


def run_continual(run: ContinualRun) -> dict:
    """Train one sequence, in this process's lab for the run's profile.

    Returns:
        `run` (its settings), `stages` (the base first), `texts`, and `diverged`: a message in tail_lab of the stages.
    """
    tail_lab = lab(run.profile, run.layers)
    tuning = Tuning(run.learning_rate, run.steps, run.rank, run.scaling, run.seed)
    row = {"run": asdict(run), "texts": tail_lab.texts_label, "diverged": "", "stages": []}
    try:
        return row | {"stages": [asdict(stage) for stage in continual(tail_lab, run.tasks, tuning)]}
    except DivergedError as problem:
        return row | {"diverged": str(problem)}
