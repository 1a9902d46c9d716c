"""The step whose memory is counted: the course's own training step, or inference, one stage after another."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lorahub_edu.data.batching import Batch
from lorahub_edu.lora import adapters
from lorahub_edu.memory.setting import FULL, NONE, OWN, Setting
from lorahub_edu.memory.tracker import OPTIMIZER, StorageTracker
from lorahub_edu.training.descent import autocast, gradient_checkpointing
from lorahub_edu.training.loop import TrainingConfig
from lorahub_edu.training.losses import labelled_loss, last_hidden_states

CPU = torch.device("cpu")


def put_method(model: PreTrainedModel, setting: Setting) -> nn.Module:
    """The model with the setting's method on it, in the dtype that is trained; what is not trained is frozen."""
    if setting.method == NONE:
        model.requires_grad_(False)
    elif setting.method in (*OWN, "qlora"):
        adapters.inject(model, setting.lora, seed=0)
    else:
        from lorahub_edu.methods.attach import attach  # PEFT takes longer to import than a plan of LoRA to count

        options = {**setting.options, "keep_base": False} if setting.method == FULL else setting.options
        model = attach(model, setting.method, **options).model
    # Trained in full and then only used, a model has the base's dtype; an adapter keeps its own.
    if setting.task == "training" or setting.method != FULL:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(getattr(torch, setting.trained_dtype))
    return model


def name_stages(model: nn.Module, tracker: StorageTracker) -> None:
    """Name the tracker's stages "forward s.i" and "backward s.i" as layer i of stack s is entered, from either side.

    A model has one stack of layers, or an encoder's and a decoder's. While the tracker is in a backward stage, layers
    that run again (checkpointing) name none.
    """
    counts = {model.config.num_hidden_layers, getattr(model.config, "num_decoder_layers", None)}
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) in counts]
    for s, stack in enumerate(layers for layers in lists if len(layers[0]._modules) > 1):
        for i, layer in enumerate(stack):

            def before(_layer: nn.Module, _inputs: tuple, name: str = f"{s}.{i}") -> None:
                if not tracker.stage.startswith("backward"):
                    tracker.enter(f"forward {name}")

            def after(_layer: nn.Module, _inputs: tuple, out: object, name: str = f"{s}.{i}") -> None:
                hidden = out[0] if isinstance(out, tuple) else out
                if hidden.requires_grad and not tracker.stage.startswith("backward"):
                    hidden.register_hook(lambda _gradient: tracker.enter(f"backward {name}"))

            layer.register_forward_pre_hook(before)
            layer.register_forward_hook(after)


def run_step(model: nn.Module, optimizer: Optimizer | None, tracker: StorageTracker, setting: Setting) -> None:
    """One optimizer step as `training.loop.train` does it, or inference without an optimizer, with its stages named.

    The optimizer has its states, and all but the trained parameters are frozen. The tracker is entered already.
    """
    dtype = None if setting.dtype == "float32" else setting.dtype
    # The largest batch that a micro-batch can make, without padding. Which positions have labels changes no byte.
    ids, labels, positions = (torch.zeros(setting.micro_batch, setting.block, dtype=torch.int64) for _ in range(3))
    count = max(1, round(setting.labelled * setting.micro_batch * (setting.block - 1)))
    labelled = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)

    def loss() -> Tensor:
        if model.config.is_encoder_decoder or setting.loss == "library":
            return model(input_ids=ids, labels=labels, use_cache=False).loss
        hidden = last_hidden_states(model, Batch(ids, labels, positions))  # (B, T, d)
        return labelled_loss(model, hidden, labels[:, 1:], labelled) / count

    if optimizer is None:
        with torch.no_grad(), autocast(CPU, dtype):
            tracker.enter("forward")
            if setting.task == "generation":
                _generate(model, ids, tracker)
            else:
                loss()
        return
    with gradient_checkpointing(model, setting.checkpointing):
        for _ in range(min(setting.accumulation, 2)):  # from the second on, gradients are there in the forward pass
            tracker.enter("forward")
            with autocast(CPU, dtype):
                value = loss()
            tracker.enter("backward")
            value.backward()
            del value
    tracker.enter("optimizer")
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with tracker.making(OPTIMIZER):
        torch.nn.utils.clip_grad_norm_(trained, TrainingConfig.clip_norm, foreach=setting.device == "cuda")
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _generate(model: nn.Module, ids: Tensor, tracker: StorageTracker) -> None:
    """A prompt, (B, T), and the first new token, with the cache of keys and values."""
    if model.config.is_encoder_decoder:
        model(input_ids=ids, decoder_input_ids=ids[:, :1], use_cache=True)
        return
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    tracker.enter("next token")
    model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
