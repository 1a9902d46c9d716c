"""Train the last layers of a model, by LoRA or in full, and watch the task's loss and the pretraining text's loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lorahub_edu.data.batching import step_rows
from lorahub_edu.errors import CourseError
from lorahub_edu.forgetting.hidden import CachedRows, HiddenBatch, Tail
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig, LoRALinear
from lorahub_edu.spectra.updates import Update

BATCH_SIZE = 8
WARMUP_SHARE = 0.06
CLIP = 1.0


class DivergedError(CourseError):
    """The loss of a run is no longer a finite number."""


@dataclass(frozen=True)
class Tuning:
    """How the tail is changed.

    Attributes:
        learning_rate: the peak; AdamW without weight decay, a linear warm-up and then a linear decay to zero.
        steps: optimizer steps of the schedule.
        rank: of LoRA on all seven matrices of every layer; 0 trains the matrices themselves.
        scaling: the factor in front of B @ A; not read in full fine-tuning.
        seed: of A and of the rows' order.
    """

    learning_rate: float
    steps: int
    rank: int = 0
    scaling: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rank < 0 or not self.learning_rate > 0 or not self.scaling > 0:
            raise CourseError(
                f"steps={self.steps}, rank={self.rank}, learning_rate={self.learning_rate}, scaling={self.scaling}: "
                f"take at least 1 step, a rank of 0 (full) or more, and positive numbers."
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        warmup = math.ceil(WARMUP_SHARE * self.steps)
        return self.learning_rate * min(step / warmup, (self.steps - step + 1) / (self.steps - warmup + 1))


@dataclass(frozen=True)
class Point:
    """Where a run stood after a step: mean losses in nats a token; `found` is what the caller measured besides.

    `pretraining_loss` is NaN in a run without texts.
    """

    step: int
    validation_loss: float
    pretraining_loss: float
    cpu_seconds: float
    found: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        updates: one a matrix of the tail, against the tail's original weights.
        points: the recorded steps, in their order.
        train_losses: of every step's rows, before that step, in nats a token.
        cpu_seconds: of the optimizer steps alone.
    """

    updates: tuple[Update, ...]
    points: tuple[Point, ...]
    train_losses: tuple[float, ...]
    cpu_seconds: float


class _Masters:
    """Float32 copies of parameters, which the optimizer changes; the model computes with them in its own dtype.

    A step of AdamW at these learning rates is far smaller than the distance between two bfloat16 numbers, so without
    such copies most weights would never move.
    """

    def __init__(self, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.values = [value.detach().to(torch.float32, copy=True) for value in values]
        self.optimizer = torch.optim.AdamW(self.values, lr=0.0, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.values, CLIP)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        for value, parameter in zip(self.values, self.parameters, strict=True):
            parameter.copy_(value)


@dataclass(frozen=True)
class Progress:
    """A run after some step: `train_losses` of all steps so far, the steps' `cpu_seconds`, and the change as it stands.

    `updates()` makes the changes when it is called; the model computes with them until the run goes on.
    """

    step: int
    train_losses: tuple[float, ...]
    cpu_seconds: float
    updates: Callable[[], tuple[Update, ...]]


def training(tail: Tail, rows: CachedRows, tuning: Tuning, at: Sequence[int]) -> Iterator[Progress]:
    """Train the tail and hand over at some steps; closing the iterator ends the run.

    The run starts from the tail's current weights, and those are back in place when it ends, however it ends.

    Args:
        tail: the layers that are trained.
        rows: to train on, `BATCH_SIZE` rows a step in an order that follows from the seed.
        tuning: method and settings.
        at: steps, counted from 1, after which the run is handed over.

    Yields:
        The run after each of these steps.

    Raises:
        CourseError: the rank does not fit a matrix.
        DivergedError: the loss is no longer finite.

    Source: Shuttleworth et al. 2024, "LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228,
        figure 5 (LoRA and full fine-tuning at equal task loss; claim I4); Hu et al. 2021, arXiv 2106.09685.
    """
    method = _LoRA(tail, tuning) if tuning.rank else _Full(tail)
    losses: list[float] = []
    spent = 0.0
    try:
        for step in range(1, tuning.steps + 1):
            started = time.process_time()
            batch = rows.batch(step_rows(len(rows), min(BATCH_SIZE, len(rows)), step - 1, tuning.seed))
            loss = tail.summed_loss(batch) / len(batch.labels)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise DivergedError(
                    f"The loss is {losses[-1]} at step {step}: the run diverged. Lower the learning rate "
                    f"({tuning.learning_rate:g}) or the scaling ({tuning.scaling:g})."
                )
            loss.backward()
            method.masters.step(tuning.rate(step))
            spent += time.process_time() - started
            if step in at:
                yield Progress(step, tuple(losses), spent, method.updates)
    finally:
        method.undo()


class _LoRA:
    """The course's LoRA layers on the tail's matrices."""

    def __init__(self, tail: Tail, tuning: Tuning) -> None:
        self.tail, self.scaling = tail, tuning.scaling
        config = LoRAConfig(
            rank=tuning.rank, alpha=tuning.scaling * tuning.rank, target_modules=tail.pattern()
        )  # the dtype is the model's, as the float32 masters are kept apart
        self.layers: list[tuple[str, LoRALinear]] = adapters.inject(tail.model, config, seed=tuning.seed)
        pairs = [(layer.lora_A["default"], layer.lora_B["default"]) for _, layer in self.layers]
        parameters = [parameter for pair in pairs for parameter in pair]
        self.masters = _Masters(parameters, parameters)

    def updates(self) -> tuple[Update, ...]:
        made = []
        for place, (name, _) in enumerate(self.layers):
            down, up = (value.detach().clone() for value in self.masters.values[2 * place : 2 * place + 2])
            original, current = self.tail.original[name], self.tail.weights[name]
            if current is original:
                made.append(Update(name, original, down=down, up=up, scaling=self.scaling))
            else:
                made.append(Update(name, original, delta=current - original + self.scaling * (up @ down)))
        return tuple(made)

    def undo(self) -> None:
        for name, layer in self.layers:
            self.tail.model.set_submodule(name, layer.base_layer)


class _Full:
    """The tail's matrices themselves."""

    def __init__(self, tail: Tail) -> None:
        self.tail = tail
        parameters = [tail.model.get_submodule(name).weight.requires_grad_(True) for name in tail.names]
        self.masters = _Masters(parameters, [tail.weights[name] for name in tail.names])

    def updates(self) -> tuple[Update, ...]:
        return tuple(
            Update(name, self.tail.original[name], delta=value.detach() - self.tail.original[name])
            for name, value in zip(self.tail.names, self.masters.values, strict=True)
        )

    def undo(self) -> None:
        for parameter in self.masters.parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        self.tail.put(self.tail.weights)


def train(
    tail: Tail,
    rows: CachedRows,
    tuning: Tuning,
    *,
    validation: Sequence[HiddenBatch],
    texts: Sequence[HiddenBatch] | None,
    at: Sequence[int] = (),
    target_loss: float | None = None,
    look: Callable[[Progress], dict] | None = None,
) -> Trained:
    """Train the tail, recording both losses at some steps and at the last one.

    Args:
        tail: the layers that are trained; they are back as they were afterwards.
        rows: to train on.
        tuning: method and settings.
        validation: batches of the task's validation rows.
        texts: batches of pretraining text, of `Tail.cache_texts`; None leaves them out.
        at: steps to record; the last one is always recorded.
        target_loss: stop at the first recorded step whose validation loss is at most this.
        look: measures something more at every recorded step, such as intruder counts.

    Returns:
        The updates, the recorded points and the cost.

    Raises:
        CourseError, DivergedError: as `training`.
    """
    points: list[Point] = []
    run = training(tail, rows, tuning, sorted({*at, tuning.steps}))
    for progress in run:
        loss = tail.loss(validation)
        if not math.isfinite(loss):
            raise DivergedError(f"The validation loss is {loss} after step {progress.step}: the run diverged.")
        forgotten = tail.loss(texts) if texts else math.nan
        points.append(Point(progress.step, loss, forgotten, progress.cpu_seconds, look(progress) if look else {}))
        reached = target_loss is not None and loss <= target_loss
        if reached or progress.step == tuning.steps:
            trained = Trained(progress.updates(), tuple(points), progress.train_losses, progress.cpu_seconds)
            run.close()
            return trained
    raise AssertionError("the last step is always recorded")
