"""The peak memory of a training or inference step before it runs, and what it is made of.

The real step runs on fake tensors while a tracker counts their bytes. The layers of a model are alike, so it is run
with a few of them, twice, and what one more layer adds is added for all the others.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedConfig

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.memory import fake, stand_ins, steps
from lorahub_edu.memory.preparing import Method, get_method, trained_parameters
from lorahub_edu.memory.tracker import ACTIVATIONS, OPTIMIZER, WEIGHTS, Moment, StorageTracker

CUDA_ROUNDING = 512  # bytes: torch's CUDA allocator hands out multiples of these
CPU_ROUNDING = 64  # bytes: torch aligns tensors on a CPU so
KNOWN = {
    "task": ("training", "generation", "scoring"),
    "optimizer": ("adamw", "adamw-8bit", "sgd"),
    "quantisation": ("none", "nf4", "nf4-dq"),
    "device": ("cuda", "cpu"),
    "dtype": ("float32", "bfloat16", "float16"),
    "trained_dtype": ("float32", "bfloat16", "float16"),
    "loss": tuple(steps.LOSSES),
}


@dataclass(frozen=True)
class Setting:
    """What decides how much memory a step needs, apart from the model.

    `micro_batch` rows of `block` tokens go through the model at one time, `accumulation` times for one optimizer step.
    `dtype` is that of frozen weights and, unless it is float32, of autocast; `trained_dtype` that of what is trained.
    `labelled` is the share of positions with a label. `task` is "training", "scoring" (the loss without a gradient) or
    "generation" (a prompt of `block` tokens and the first new one, with the cache of keys and values).
    `quantisation` is that of the frozen linear layers, "nf4-dq" with double quantisation.
    """

    method: Method = field(default_factory=lambda: get_method("lora"))
    micro_batch: int = 4
    block: int = 512
    accumulation: int = 1
    checkpointing: bool = False
    dtype: str = "bfloat16"
    trained_dtype: str = "float32"
    optimizer: str = "adamw"
    quantisation: str = "none"
    task: str = "training"
    loss: str = "course"
    labelled: float = 1.0
    device: str = "cuda"

    def __post_init__(self) -> None:
        for name in ("micro_batch", "block", "accumulation"):
            if getattr(self, name) < 1:
                raise CourseError(f"{name} must be at least 1, but it is {getattr(self, name)}.")
        if not 0 < self.labelled <= 1:
            raise CourseError(f"labelled is a share above 0 and at most 1, but it is {self.labelled}.")
        for name, known in KNOWN.items():
            given = getattr(self, name)
            if given not in known:
                raise CourseError(f"There is no {name.replace('_', ' ')} {given!r}. {near_matches(str(given), known)}")
        if self.quantisation != "none" and self.method.name == "full":
            raise CourseError(
                "A 4-bit base can't be trained in full: take a method that leaves it frozen, such as lora."
            )


@dataclass(frozen=True)
class Prediction:
    """The predicted peak in bytes by part, the stage that it falls into, and numbers of parameters."""

    parts: dict[str, int]
    stage: str
    trained: int
    parameters: int

    @property
    def peak(self) -> int:
        """All parts together, in bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class _Run:
    """The peaks of every stage of one fake step, and numbers of parameters."""

    peaks: dict[str, Moment]
    trained: int
    parameters: int


def predict(config: PreTrainedConfig, setting: Setting, *, every_layer: bool = False) -> Prediction:
    """Predict the peak memory of one step; nothing is allocated and no GPU is needed.

    Args:
        config: of a causal language model or an encoder-decoder, the model's whole configuration.
        setting: method, batch, dtypes and so on.
        every_layer: run the step with all layers instead of extrapolating from a few; the same figure, later.

    Returns:
        The peak and what it is made of.

    Raises:
        CourseError: the method does not fit the model, or the model can't be built from its configuration.
    """
    depth, layers = setting.method.depth, _layers(config)
    if every_layer or layers <= depth + 1 or not _alike(config):
        return _largest(_run(config, setting))
    small, large = (_run(with_layers(config, count), setting) for count in (depth, depth + 1))
    more = layers - depth
    wider = _from_both_ends(large.peaks, depth, depth + 1)
    peaks = {
        stage: Moment({part: size + more * (wider[stage].parts[part] - size) for part, size in moment.parts.items()})
        for stage, moment in _from_both_ends(small.peaks, depth, depth).items()
    }
    peaks = {_numbered(stage, layers): moment for stage, moment in peaks.items()}
    trained, parameters = (
        getattr(small, name) + more * (getattr(large, name) - getattr(small, name))
        for name in ("trained", "parameters")
    )
    return _largest(_Run(peaks, trained, parameters))


def _largest(run: _Run) -> Prediction:
    stage = max(run.peaks, key=lambda name: run.peaks[name].total)
    return Prediction(run.peaks[stage].parts, stage, run.trained, run.parameters)


def _from_both_ends(peaks: dict[str, Moment], depth: int, layers: int) -> dict[str, Moment]:
    """Stages of the first depth - 2 layers by their place, of the last two by their place from the end.

    Between them peaks rise or fall evenly from layer to layer, so the largest lies at one of the ends.
    """
    kept = {}
    for stage, moment in peaks.items():
        kind, _, place = stage.partition(" ")
        stack, _, layer = place.partition(".")
        if layer and int(layer) >= layers - 2:
            kept[f"{kind} {stack}.{int(layer) - layers}"] = moment
        elif not layer or int(layer) < depth - 2:
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


def _alike(config: PreTrainedConfig) -> bool:
    """Whether all layers are of one kind, as far as the configuration says."""
    same_stacks = getattr(config, "num_decoder_layers", None) in (None, _layers(config))
    kinds = getattr(config, "layer_types", None)
    return same_stacks and (kinds is None or len(set(kinds)) == 1)


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


def _run(config: PreTrainedConfig, setting: Setting) -> _Run:
    """One step on fake tensors."""
    model = _prepared(config, setting)
    cuda = setting.device == "cuda"
    with fake.fake_tensors(), fake.like_cuda() if cuda else nullcontext():
        fake.make_fake(model)
        trained = trained_parameters(model) if setting.task == "training" else []
        model.train(bool(trained))
        rows = steps.full_rows(setting.micro_batch, setting.block, setting.labelled)
        optimizer = _optimizer(trained, setting) if trained else None
        tracker = StorageTracker(CUDA_ROUNDING if cuda else CPU_ROUNDING, config.vocab_size)
        tracker.watch_gradients(trained)
        tracker.add([*model.parameters(), *model.buffers()], WEIGHTS)
        tracker.add(rows.tensors, ACTIVATIONS)
        if optimizer is not None:
            tracker.add(_states(optimizer), OPTIMIZER)
        steps.stage_layers(steps.layer_stacks(model, config), tracker)
        dtype = None if setting.dtype == "float32" else setting.dtype
        loss = "library" if config.is_encoder_decoder else setting.loss
        with tracker:
            if optimizer is None:
                steps.INFERENCE[setting.task](model, rows, tracker, loss, dtype)
            else:
                steps.train_step(
                    model, optimizer, rows, tracker, loss=loss, micro_batches=min(setting.accumulation, 2),
                    dtype=dtype, checkpointing=setting.checkpointing, foreach=cuda,
                )  # fmt: skip
    return _Run(tracker.peaks, sum(p.numel() for p in trained), _parameter_count(model))


def _prepared(config: PreTrainedConfig, setting: Setting) -> nn.Module:
    """The model with its method, on the meta device, in the dtypes that the setting asks for."""
    dtype = getattr(torch, setting.dtype)
    try:
        model = fake.meta_model(config, dtype)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CourseError(
            f"No language model can be built from this {config.model_type} configuration: {error}"
        ) from error
    if setting.quantisation != "none":
        stand_ins.quantise(model, setting.quantisation == "nf4-dq", dtype)
    model = setting.method.prepare(model)
    # Trained in full and then only used, a model has the base's dtype; an adapter keeps its own.
    if setting.task == "training" or setting.method.name != "full":
        for parameter in trained_parameters(model):
            parameter.data = parameter.data.to(getattr(torch, setting.trained_dtype))
    return model


def _optimizer(trained: list[nn.Parameter], setting: Setting) -> torch.optim.Optimizer:
    """The optimizer with its states made, as after a first step."""
    foreach = setting.device == "cuda"
    made = {
        "adamw": lambda: torch.optim.AdamW(trained, foreach=foreach),
        "adamw-8bit": lambda: stand_ins.EightBitAdamW(trained),
        "sgd": lambda: torch.optim.SGD(trained, foreach=foreach),
    }[setting.optimizer]()
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    made.step()
    made.zero_grad(set_to_none=True)
    return made


def _states(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The states that lie with the parameters; the counters of steps, single numbers, stay in the computer's memory."""
    values = (value for state in optimizer.state.values() for value in state.values())
    return [value for value in values if isinstance(value, torch.Tensor) and value.dim() > 0]


def _parameter_count(model: nn.Module) -> int:
    """Weights of the model; a 4-bit layer counts those that it packs."""
    packed = [layer for layer in model.modules() if isinstance(layer, stand_ins.FourBitLinear)]
    held = sum(parameter.numel() for parameter in model.parameters())
    return held + sum(layer.in_features * layer.out_features - layer.weight.numel() for layer in packed)
