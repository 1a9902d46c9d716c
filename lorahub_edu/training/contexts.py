"""Circumstances of a training step that hold for a block and are undone after it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from transformers import PreTrainedModel


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
    """Recompute activations in the backward pass instead of keeping them, while the block lasts.

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
    """
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
