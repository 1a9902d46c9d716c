"""The step whose memory is counted: the course's own training step, or inference, one stage after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig

from lorahub_edu.data.batching import Batch
from lorahub_edu.memory.setting import Setting
from lorahub_edu.memory.tracker import OPTIMIZER, StorageTracker
from lorahub_edu.training.descent import autocast, gradient_checkpointing
from lorahub_edu.training.loop import TrainingConfig
from lorahub_edu.training.losses import labelled_loss, last_hidden_states

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Rows:
    """A batch without padding, and the positions that carry a label: which ones they are changes no byte."""

    batch: Batch
    labelled: tuple[Tensor, Tensor]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything of it that lies in memory."""
        return self.batch.input_ids, self.batch.labels, self.batch.position_ids, *self.labelled


def full_rows(setting: Setting) -> Rows:
    """The largest batch that a micro-batch of rows can make, (B, T) tokens."""
    count = max(1, round(setting.labelled * setting.micro_batch * (setting.block - 1)))
    ids, labels, positions = (torch.zeros(setting.micro_batch, setting.block, dtype=torch.int64) for _ in range(3))
    labelled = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    return Rows(Batch(ids, labels, positions), labelled)


def course_loss(model: nn.Module, rows: Rows) -> Tensor:
    """The loss of `lorahub_edu.training.losses`: logits where there is a label, a chunk at a time."""
    hidden = last_hidden_states(model, rows.batch)  # (B, T, d)
    return labelled_loss(model, hidden, rows.batch.labels[:, 1:], rows.labelled) / len(rows.labelled[0])


def library_loss(model: nn.Module, rows: Rows) -> Tensor:
    """transformers' own loss: the logits of every position at one time."""
    return model(input_ids=rows.batch.input_ids, labels=rows.batch.labels, use_cache=False).loss


LOSSES: dict[str, Callable[[nn.Module, Rows], Tensor]] = {"course": course_loss, "library": library_loss}


def layer_stacks(model: nn.Module, config: PreTrainedConfig) -> list[nn.ModuleList]:
    """The layers of a model, adapted or not: one list, or an encoder's and a decoder's."""
    counts = {config.num_hidden_layers, getattr(config, "num_decoder_layers", None)}
    return [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) in counts and len(m[0]._modules) > 1]


def stage_layers(stacks: Sequence[nn.ModuleList], tracker: StorageTracker) -> list[RemovableHandle]:
    """Name the tracker's stages "forward s.i" and "backward s.i" as layer i of stack s is entered, from either side.

    While the tracker is in a backward stage, layers that run again (checkpointing) name none.
    """
    handles = []
    for s, stack in enumerate(stacks):
        for i, layer in enumerate(stack):
            name = f"{s}.{i}"

            def before(_layer: nn.Module, _inputs: tuple, name: str = name) -> None:
                if not tracker.stage.startswith("backward"):
                    tracker.enter(f"forward {name}")

            def after(_layer: nn.Module, _inputs: tuple, out: object, name: str = name) -> None:
                hidden = out[0] if isinstance(out, tuple) else out
                if hidden.requires_grad and not tracker.stage.startswith("backward"):
                    hidden.register_hook(lambda _gradient: tracker.enter(f"backward {name}"))

            handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    return handles


def run_step(
    model: nn.Module, optimizer: Optimizer | None, rows: Rows, tracker: StorageTracker, setting: Setting
) -> None:
    """One optimizer step as `training.loop.train` does it, or inference, with its stages named.

    Args:
        model: in training mode and all but the trained parameters frozen, or in evaluation mode.
        optimizer: over the trained parameters, with its states; None for inference.
        rows: of every micro-batch.
        tracker: entered already.
    """
    dtype = None if setting.dtype == "float32" else setting.dtype
    loss = LOSSES["library" if model.config.is_encoder_decoder else setting.loss]
    if optimizer is None:
        with torch.no_grad(), autocast(CPU, dtype):
            tracker.enter("forward")
            if setting.task == "generation":
                _generate(model, rows, tracker)
            else:
                loss(model, rows)
        return
    with gradient_checkpointing(model, setting.checkpointing):
        for _ in range(min(setting.accumulation, 2)):  # from the second on, gradients are there in the forward pass
            tracker.enter("forward")
            with autocast(CPU, dtype):
                value = loss(model, rows)
            tracker.enter("backward")
            value.backward()
            del value
    tracker.enter("optimizer")
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with tracker.making(OPTIMIZER):
        torch.nn.utils.clip_grad_norm_(trained, TrainingConfig.clip_norm, foreach=setting.device == "cuda")
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _generate(model: nn.Module, rows: Rows, tracker: StorageTracker) -> None:
    """A prompt and the first new token, with the cache of keys and values."""
    ids = rows.batch.input_ids  # (B, T)
    if model.config.is_encoder_decoder:
        model(input_ids=ids, decoder_input_ids=ids[:, :1], use_cache=True)
        return
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    tracker.enter("next token")
    model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
