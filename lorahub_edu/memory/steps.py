"""The step whose memory is counted: the course's own training step, or inference, one stage after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedConfig

from lorahub_edu.data.batching import Batch
from lorahub_edu.memory.tracker import OPTIMIZER, StorageTracker
from lorahub_edu.training.contexts import autocast, gradient_checkpointing
from lorahub_edu.training.losses import labelled_loss, last_hidden_states

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Rows:
    """A batch without padding, and the positions that carry a label: which ones they are changes no byte."""

    batch: Batch
    where: tuple[Tensor, Tensor]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything of it that lies in memory."""
        return self.batch.input_ids, self.batch.labels, self.batch.position_ids, *self.where


def full_rows(rows: int, length: int, labelled: float = 1.0) -> Rows:
    """The largest batch that `rows` rows of at most `length` tokens can make.

    Args:
        rows: B.
        length: T, in tokens.
        labelled: share of the positions that carry a label, 0 to 1.
    """
    count = max(1, round(labelled * rows * (length - 1)))
    ids, labels, positions = (torch.zeros(rows, length, dtype=torch.int64) for _ in range(3))  # (B, T)
    where = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    return Rows(Batch(ids, labels, positions), where)


def course_loss(model: nn.Module, rows: Rows) -> Tensor:
    """The loss of `lorahub_edu.training.losses`: logits where there is a label, a chunk at a time."""
    hidden = last_hidden_states(model, rows.batch)  # (B, T, d)
    return labelled_loss(model, hidden, rows.batch.labels[:, 1:], rows.where) / len(rows.where[0])


def library_loss(model: nn.Module, rows: Rows) -> Tensor:
    """transformers' own loss: the logits of every position at one time."""
    return model(input_ids=rows.batch.input_ids, labels=rows.batch.labels, use_cache=False).loss


LOSSES: dict[str, Callable[[nn.Module, Rows], Tensor]] = {"course": course_loss, "library": library_loss}


def layer_stacks(model: nn.Module, config: PreTrainedConfig) -> list[nn.ModuleList]:
    """The model's layers: one list, or an encoder's and a decoder's.

    Args:
        model: adapted or not.
        config: of the base model.
    """
    counts = {config.num_hidden_layers, getattr(config, "num_decoder_layers", None)}
    return [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) in counts and len(m[0]._modules) > 1]


def stage_layers(stacks: Sequence[nn.ModuleList], tracker: StorageTracker) -> list:
    """Name the stages "forward s.i" and "backward s.i" as layer i of stack s is entered, from either side.

    Args:
        stacks: the layers of a decoder, or of an encoder and a decoder.
        tracker: whose stages are named; while it is in a backward stage, layers that are run again name none.

    Returns:
        Handles to remove.
    """
    handles = []
    for s, stack in enumerate(stacks):
        for i, layer in enumerate(stack):
            place = f"{s}.{i}"

            def before(_layer: nn.Module, _inputs: tuple, place: str = place) -> None:
                if not tracker.stage.startswith("backward"):
                    tracker.enter(f"forward {place}")

            def after(_layer: nn.Module, _inputs: tuple, out: object, place: str = place) -> None:
                hidden = out[0] if isinstance(out, tuple) else out
                if hidden.requires_grad and not tracker.stage.startswith("backward"):
                    hidden.register_hook(lambda _slope: tracker.enter(f"backward {place}"))

            handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    return handles


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    rows: Rows,
    tracker: StorageTracker,
    *,
    loss: str = "course",
    micro_batches: int = 1,
    dtype: str | None = None,
    checkpointing: bool = False,
    clip_norm: float = 1.0,
    foreach: bool = False,
) -> None:
    """One optimizer step as `training.train` does it, with its stages named.

    Args:
        model: in training mode, everything that is not trained frozen.
        optimizer: over the trained parameters, its state made already.
        rows: of every micro-batch.
        tracker: entered already.
        loss: a key of `LOSSES`.
        micro_batches: how many are accumulated; from the second on gradients are there during the forward pass.
        dtype: of autocast, None without.
        checkpointing: keep each layer's input and run the layer again in the backward pass.
        clip_norm: as in `TrainingConfig`.
        foreach: handle all parameters in one call, as torch does on a GPU.
    """
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    with gradient_checkpointing(model, checkpointing):
        for _ in range(micro_batches):
            tracker.enter("forward")
            with autocast(CPU, dtype):
                value = LOSSES[loss](model, rows)
            tracker.enter("backward")
            value.backward()
            del value
    tracker.enter("optimizer")
    with tracker.making(OPTIMIZER):
        torch.nn.utils.clip_grad_norm_(trained, clip_norm, foreach=foreach)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def score(model: nn.Module, rows: Rows, tracker: StorageTracker, loss: str, dtype: str | None) -> None:
    """The loss of a batch without a gradient, as validation and LoRAHub's search need it.

    Args:
        model: in evaluation mode.
        rows: the batch.
        tracker: entered already.
        loss: a key of `LOSSES`.
        dtype: of autocast, None without.
    """
    tracker.enter("forward")
    with autocast(CPU, dtype):
        LOSSES[loss](model, rows)


@torch.no_grad()
def generate(model: nn.Module, rows: Rows, tracker: StorageTracker, _loss: str, dtype: str | None) -> None:
    """A prompt and the first new token, with the cache of keys and values; arguments as for `score`."""
    ids = rows.batch.input_ids  # (B, T)
    inputs = {"use_cache": True}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :1]
    else:
        inputs["logits_to_keep"] = 1
    tracker.enter("forward")
    with autocast(CPU, dtype):
        cache = model(input_ids=ids, **inputs).past_key_values
        if not model.config.is_encoder_decoder:
            tracker.enter("next token")
            model(input_ids=ids[:, :1], past_key_values=cache, **inputs)


INFERENCE: dict[str, Callable[[nn.Module, Rows, StorageTracker, str, str | None], None]] = {
    "scoring": score,
    "generation": generate,
}
