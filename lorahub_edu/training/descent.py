"""The one way in which anything here is trained: AdamW steps over some parameters, each from the losses it is given.

Below it stand a step's circumstances, which hold for a block: random numbers, precision, memory, interrupts.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorahub_edu.errors import CourseError


class DivergedError(CourseError):
    """The loss or a gradient of a run is no longer a finite number."""


class Step(NamedTuple):
    """One optimizer step: its loss, its learning rate, and the gradient's norm before clipping."""

    loss: float
    learning_rate: float
    gradient_norm: float


def schedule(name: str, learning_rate: float, warmup_steps: int, steps: int) -> Callable[[int], float]:
    """The learning rate as a function of the number of steps already done, by transformers' schedule of that name."""
    from transformers import get_scheduler  # imports PEFT and bitsandbytes, for which a plan has no use

    anything = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # get_scheduler wants an optimizer; only its function is used
    multiplier = get_scheduler(name, anything, warmup_steps, steps).lr_lambdas[0]
    return lambda step: learning_rate * multiplier(step)


class Descent:
    """AdamW over some parameters, with a schedule, accumulation, clipping, and a stop at the first non-finite number.

        descent = Descent(parameters, schedule("linear", 3e-4, warmup_steps=0, steps=40))
        for _ in range(40):
            step = descent.step(summed_loss(batch) / labels for batch in batches)

    Args:
        learning_rate: of a step, given the number of steps already done (0 for the first).
        clip_norm: largest norm of the whole gradient; None does not clip.
        masters: starting values, one for each parameter, for a model in a shorter dtype. The optimizer changes float32
            copies of these (`values`), and each step rounds them into the parameters: a small step is lost between two
            bfloat16 numbers.
        fused: AdamW in one kernel, which rounds differently; None leaves the choice to torch.
    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", arXiv 1711.05101.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: Callable[[int], float],
        *,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        masters: Sequence[Tensor] | None = None,
        fused: bool | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.learning_rate, self.clip_norm = learning_rate, clip_norm
        self.values: list[Tensor] = self.parameters  # what the optimizer changes
        if masters is not None:
            self.values = [value.detach().to(torch.float32, copy=True) for value in masters]
        self.optimizer = torch.optim.AdamW(self.values, lr=0.0, weight_decay=weight_decay, fused=fused)
        self.steps_done = 0

    def step(self, losses: Iterable[Tensor]) -> Step:
        """One optimizer step down the sum of some losses.

        `losses`: one scalar a micro-batch, each already divided by what the whole step is averaged over. A generator
            computes each one only after the gradient of the one before, so one graph is in memory at a time.
        Raises DivergedError: the loss or a gradient is NaN or infinite. After any error, the parameters are as before
            the step and hold no gradient.
        """
        learning_rate = self.optimizer.param_groups[0]["lr"] = self.learning_rate(self.steps_done)
        total = 0.0
        try:
            for loss in losses:
                total += loss.item()
                loss.backward()
                del loss  # it holds gradients of its own, which the next micro-batch has no use for
            self._require_finite("The loss", total, learning_rate)
            if self.values is not self.parameters:
                for value, parameter in zip(self.values, self.parameters, strict=True):
                    value.grad, parameter.grad = parameter.grad.float(), None
            norm = torch.nn.utils.clip_grad_norm_(self.values, self.clip_norm or math.inf).item()
            self._require_finite("A gradient", norm, learning_rate)
            self.optimizer.step()
        finally:
            for tensor in (*self.parameters, *self.values):
                tensor.grad = None
        if self.values is not self.parameters:
            with torch.no_grad():
                for value, parameter in zip(self.values, self.parameters, strict=True):
                    parameter.copy_(value)
        self.steps_done += 1
        return Step(total, learning_rate, norm)

    def _require_finite(self, what: str, number: float, learning_rate: float) -> None:
        if not math.isfinite(number):
            raise DivergedError(
                f"{what} became {number} at step {self.steps_done + 1}, at learning rate {learning_rate:.2e}. "
                f"The weights are those of step {self.steps_done}. Try a 3 to 10 times smaller learning rate, more "
                f"warm-up, clip_norm 1.0, or float32."
            )


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw random numbers from `seed` inside the block, and leave the caller's generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def autocast(device: torch.device, dtype: str | None):  # noqa: ANN202 - one of two context managers
    """Mixed precision in the named dtype, or nothing when it is None."""
    return torch.autocast(device.type, dtype=getattr(torch, dtype)) if dtype else nullcontext()


@contextmanager
def gradient_checkpointing(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Recompute activations in the backward pass meanwhile (Chen et al. 2016, arXiv 1604.06174)."""
    if not wanted:
        yield
        return
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # what transformers calls it from 5.2x on
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    try:
        yield
    finally:
        getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """The first Ctrl-C (or Jupyter's stop button) sets the event; a second one interrupts at once, as usual."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield interrupted
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(_number: int, _frame: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
