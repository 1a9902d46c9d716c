"""Train the last layers of a model, by LoRA or in full, and watch the losses of the task and of pretraining text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from lorahub_edu.data.batching import step_rows
from lorahub_edu.errors import CourseError
from lorahub_edu.forgetting.hidden import CachedRows, HiddenBatch, Tail
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.spectra.updates import Update
from lorahub_edu.training.descent import Descent, DivergedError, schedule

BATCH_SIZE = 8
WARMUP_SHARE = 0.06
CLIP = 1.0


@dataclass(frozen=True)
class Tuning:
    """How the tail is changed: AdamW without weight decay, a linear warm-up and then a linear decay to zero.

    `learning_rate` is the peak. `rank` is that of LoRA on all seven matrices of every layer; 0 trains the matrices
    themselves. `scaling` is the factor in front of B @ A. `seed` fixes A and the rows' order. LoRA adapts the matrices
    whose names hold `matrices` ("self_attn"). A step takes `batch_size` rows.
    """

    learning_rate: float
    steps: int
    rank: int = 0
    scaling: float = 2.0
    seed: int = 0
    matrices: str = ""
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rank < 0 or not self.learning_rate > 0 or not self.scaling > 0:
            raise CourseError(
                f"steps={self.steps}, rank={self.rank}, learning_rate={self.learning_rate}, scaling={self.scaling}: "
                f"take at least 1 step, a rank of 0 (full) or more, and positive numbers."
            )

    def rates(self) -> Callable[[int], float]:
        """The learning rate as a function of the number of steps already done.

        transformers' schedule begins with a rate of 0 and would reach 0 one step after its last; that first step, which
        changes nothing, is left out.
        """
        rate = schedule("linear", self.learning_rate, math.ceil(WARMUP_SHARE * self.steps), self.steps + 1)
        return lambda steps_done: rate(steps_done + 1)


@dataclass(frozen=True)
class Point:
    """Mean losses after a step, in nats a token (NaN without texts), and whatever else the caller measured."""

    step: int
    validation_loss: float
    pretraining_loss: float
    cpu_seconds: float
    measured: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A run after some step, counted from 1: the updates of every matrix against the tail's original weights.

    `train_losses` are of every step's rows, before that step, in nats a token. `cpu_seconds` are of the optimizer steps
    alone. `points` are the recorded steps; () while the run goes on.
    """

    step: int
    updates: tuple[Update, ...]
    train_losses: tuple[float, ...]
    cpu_seconds: float
    points: tuple[Point, ...] = ()


def training(tail: Tail, rows: CachedRows, tuning: Tuning, at: Sequence[int]) -> Iterator[Trained]:
    """Train the tail and yield its state after the steps `at`; closing the iterator ends the run.

    The run starts from the tail's current weights. They are back in place when it ends, however it ends. A step takes
    `batch_size` rows, in an order that follows from the seed.
    Raises CourseError: no matrix admits the rank. DivergedError: the loss or a gradient is no longer finite.
    Source: Shuttleworth et al. 2024, "LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228, figure 5
        (LoRA and full fine-tuning at equal task loss; claim I4); Hu et al. 2021, arXiv 2106.09685.
    """
    change = LoRAChange(tail, tuning) if tuning.rank else FullChange(tail, tuning)
    losses: list[float] = []
    spent = 0.0
    try:
        for step in range(1, tuning.steps + 1):
            started = time.process_time()
            batch = rows.batch(step_rows(len(rows), min(tuning.batch_size, len(rows)), step - 1, tuning.seed))
            losses.append(change.descent.step([tail.summed_loss(batch) / len(batch.labels)]).loss)
            spent += time.process_time() - started
            if step in at:
                yield Trained(step, change.updates(), tuple(losses), spent)
    except DivergedError as error:
        raise DivergedError(
            f"{error} The run diverged. Lower the learning rate ({tuning.learning_rate:g}) or the scaling "
            f"({tuning.scaling:g})."
        ) from error
    finally:
        change.undo()


class LoRAChange:
    """The course's LoRA layers on the tail's matrices, trained in float32 beside the model's dtype."""

    def __init__(self, tail: Tail, tuning: Tuning) -> None:
        self.tail, self.scaling = tail, tuning.scaling
        full = {name: min(tail.original[name].shape) for name in tail.names if tuning.matrices in name}
        admitted = tuning.rank <= max(full.values())  # a rank that no matrix admits is refused by `inject`
        by_rank: dict[int, list[str]] = {}  # a matrix that does not admit the rank has its full one
        for name, largest in full.items():
            by_rank.setdefault(min(tuning.rank, largest) if admitted else tuning.rank, []).append(name)
        self.layers = []
        for rank, names in by_rank.items():
            config = LoRAConfig(rank=rank, alpha=tuning.scaling * rank, target_modules=tuple(names))
            self.layers += adapters.inject(tail.model, config, seed=tuning.seed)
        pairs = [(layer.lora_A["default"], layer.lora_B["default"]) for _, layer in self.layers]
        factors = [factor for pair in pairs for factor in pair]
        self.descent = Descent(factors, tuning.rates(), clip_norm=CLIP, masters=factors, fused=True)

    def updates(self) -> tuple[Update, ...]:
        values = [value.detach().clone() for value in self.descent.values]
        updates = []
        for (name, _), down, up in zip(self.layers, values[::2], values[1::2], strict=True):
            original, current = self.tail.original[name], self.tail.weights[name]
            if current is original:
                updates.append(Update(name, original, down, up, self.scaling))
            else:
                updates.append(Update(name, original, delta=current - original + self.scaling * (up @ down)))
        return tuple(updates)

    def undo(self) -> None:
        for name, layer in self.layers:
            self.tail.model.set_submodule(name, layer.base_layer)


class FullChange:
    """The tail's matrices themselves, trained in float32 beside the model's dtype."""

    def __init__(self, tail: Tail, tuning: Tuning) -> None:
        self.tail = tail
        matrices = [tail.model.get_submodule(name).weight.requires_grad_(True) for name in tail.names]
        masters = [tail.weights[name] for name in tail.names]
        self.descent = Descent(matrices, tuning.rates(), clip_norm=CLIP, masters=masters, fused=True)

    def updates(self) -> tuple[Update, ...]:
        return tuple(
            Update(name, self.tail.original[name], delta=value.detach() - self.tail.original[name])
            for name, value in zip(self.tail.names, self.descent.values, strict=True)
        )

    def undo(self) -> None:
        for matrix in self.descent.parameters:
            matrix.requires_grad_(False)
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
    look: Callable[[Trained], dict] | None = None,
) -> Trained:
    """Train the tail, recording both losses at the steps `at` and at the last one; its weights are restored afterwards.

    `validation` are batches of the task's rows, `texts` those of `Tail.cache_texts` or None. The run stops at the first
    recorded step whose validation loss is at most `target_loss`. `look` measures more at every recorded step.
    Raises CourseError, DivergedError: as `training`.
    """
    points: list[Point] = []
    run = training(tail, rows, tuning, sorted({*at, tuning.steps}))
    for state in run:
        loss = tail.loss(validation)
        if not math.isfinite(loss):
            raise DivergedError(f"The validation loss is {loss} after step {state.step}: the run diverged.")
        forgotten = tail.loss(texts) if texts else math.nan
        points.append(Point(state.step, loss, forgotten, state.cpu_seconds, look(state) if look else {}))
        if target_loss is not None and loss <= target_loss:
            break
    run.close()
    return replace(state, points=tuple(points))
