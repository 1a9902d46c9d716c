"""The peak memory of a training or inference step before it runs, and what it is made of.

The real step runs on fake tensors while a tracker counts their bytes. The layers of a model are alike: the step runs
twice with a few of them, and what one more layer adds is added for all the others.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedConfig, PreTrainedModel

from lorahub_edu.data.batching import Batch
from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapters
from lorahub_edu.memory import fake
from lorahub_edu.memory.setting import FULL, NONE, OWN, Setting
from lorahub_edu.memory.tracker import OPTIMIZER, WEIGHTS, Moment, StorageTracker
from lorahub_edu.training.descent import autocast, gradient_checkpointing
from lorahub_edu.training.loop import TrainingConfig
from lorahub_edu.training.losses import labelled_loss, last_hidden_states

CUDA_ROUNDING = 512  # bytes: torch's CUDA allocator hands out multiples of these
CPU = torch.device("cpu")
CPU_ROUNDING = 64  # bytes: torch aligns tensors on a CPU so
# Layers at which a model shows all that a method does to one. LLaMA-Adapter leaves the first two alone.
DEPTH, DEPTHS = 4, {"llama_adapter": 6}


@dataclass(frozen=True)
class Prediction:
    """The predicted peak in bytes by part, the stage that it falls into, and numbers of parameters."""

    parts: dict[str, int]
    stage: str
    trained: int
    parameters: int

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


def predict(config: PreTrainedConfig, setting: Setting, *, every_layer: bool = False) -> Prediction:
    """Predict the peak memory of one step of a language model; nothing is allocated and no GPU is needed.

    With `every_layer` the step runs with all layers instead of a few: the same figure, later.
    Raises CourseError: the method does not fit the model, or the model can't be built from its configuration.
    """
    depth, layers = DEPTHS.get(setting.method, DEPTH), _layers(config)
    unlike = getattr(config, "num_decoder_layers", None) not in (None, layers)  # as far as the configuration says
    unlike |= len(set(getattr(config, "layer_types", None) or ())) > 1
    if every_layer or layers <= depth + 1 or unlike:
        return _at_the_peak(*_run(config, setting))
    small, *small_counts = _run(with_layers(config, depth), setting)
    large, *large_counts = _run(with_layers(config, depth + 1), setting)

    def grown(size: int, larger: int) -> int:
        return size + (layers - depth) * (larger - size)

    wider = _from_both_ends(large, depth, depth + 1)
    peaks = {
        _numbered(stage, layers): Moment(
            {part: grown(size, wider[stage].parts[part]) for part, size in moment.parts.items()}
        )
        for stage, moment in _from_both_ends(small, depth, depth).items()
    }
    return _at_the_peak(peaks, *map(grown, small_counts, large_counts))


def _at_the_peak(peaks: dict[str, Moment], trained: int, parameters: int) -> Prediction:
    stage = max(peaks, key=lambda name: peaks[name].total)
    return Prediction(peaks[stage].parts, stage, trained, parameters)


def _from_both_ends(peaks: dict[str, Moment], depth: int, layers: int) -> dict[str, Moment]:
    """Stages of the first depth - 2 layers by their number, of the last two by their number from the end.

    Between them peaks rise or fall evenly from layer to layer, so the largest lies at one of the ends.
    """
    kept = {}
    for stage, moment in peaks.items():
        before, dot, layer = stage.partition(".")
        if dot and int(layer) >= layers - 2:
            kept[f"{before}.{int(layer) - layers}"] = moment
        elif not dot or int(layer) < depth - 2:
            kept[stage] = moment
    return kept


def _numbered(stage: str, layers: int) -> str:
    """A stage's name with the layer counted from the start: "forward 0.-1" of 32 layers is "forward 0.31"."""
    before, minus, from_end = stage.partition(".-")
    return f"{before}.{layers - int(from_end)}" if minus else stage


def _layers(config: PreTrainedConfig) -> int:
    try:
        return config.num_hidden_layers
    except AttributeError as error:
        raise CourseError(
            f"The configuration of a {config.model_type} model does not say how many layers it has (num_hidden_layers)."
        ) from error


def with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The configuration of the same model with another number of layers, in the decoder too if it has one."""
    changed, before = copy.deepcopy(config), _layers(config)
    for name, value in vars(changed).items():
        if isinstance(value, list) and len(value) == before and name != "architectures":
            setattr(changed, name, value[:layers])  # one entry a layer
    changed.num_hidden_layers = layers
    if getattr(changed, "num_decoder_layers", None) is not None:
        changed.num_decoder_layers = layers
    return changed


def _run(config: PreTrainedConfig, setting: Setting) -> tuple[dict[str, Moment], int, int]:
    """The peaks of every stage of one step on fake tensors, and numbers of parameters: trained, and all."""
    dtype, cuda = getattr(torch, setting.dtype), setting.device == "cuda"
    model = fake.meta_model(config, dtype)
    if setting.quantisation != "none":
        fake.quantise(model, setting.quantisation == "nf4-dq", dtype)
    model = put_method(model, setting)
    with fake.fake_tensors(cuda):
        fake.make_fake(model)
        training = setting.task == "training"
        trained = [p for p in model.parameters() if p.requires_grad] if training else []
        model.train(training)
        optimizer = _optimizer(trained, setting) if training else None
        tracker = StorageTracker(CUDA_ROUNDING if cuda else CPU_ROUNDING, config.vocab_size)
        tracker.watch_gradients(trained)
        tracker.add([*model.parameters(), *model.buffers()], WEIGHTS)
        states = [value for state in optimizer.state.values() for value in state.values()] if training else []
        # The counters of steps, single numbers, stay in the computer's memory.
        tracker.add([value for value in states if value.dim() > 0], OPTIMIZER)
        _name_stages(model, tracker)
        with tracker:
            _run_step(model, optimizer, tracker, setting)
    packed = [layer for layer in model.modules() if isinstance(layer, fake.FourBitLinear)]
    unpacked = sum(layer.in_features * layer.out_features - layer.weight.numel() for layer in packed)
    parameters = sum(parameter.numel() for parameter in model.parameters()) + unpacked
    return tracker.peaks, sum(parameter.numel() for parameter in trained), parameters


def _optimizer(trained: list[nn.Parameter], setting: Setting) -> Optimizer:
    """The optimizer with its states, as after a first step."""
    foreach = setting.device == "cuda"
    optimizer = {
        "adamw": lambda: torch.optim.AdamW(trained, foreach=foreach),
        "adamw-8bit": lambda: fake.EightBitAdamW(trained),
        "sgd": lambda: torch.optim.SGD(trained, foreach=foreach),
    }[setting.optimizer]()
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


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


def _name_stages(model: nn.Module, tracker: StorageTracker) -> None:
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


def _run_step(model: nn.Module, optimizer: Optimizer | None, tracker: StorageTracker, setting: Setting) -> None:
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
