"""Adapters on disk in PEFT's layout: adapter_config.json beside adapter_model.safetensors.

What is saved here loads in PEFT, LLaMA-Factory or vLLM, and what those save loads here.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lorahub_edu.errors import CourseError
from lorahub_edu.files import save
from lorahub_edu.lora import CONFIG_FILE, WEIGHTS_FILE, adapters
from lorahub_edu.lora.layer import LoRAConfig, LoRALinear

logger = logging.getLogger(__name__)

PEFT_PREFIX = "base_model.model."
BASE_HASH = "base_model_sha256"
# Settings of PEFT's LoraConfig that say where A and B came from or where they go; the tensors' names say the latter.
HARMLESS = {
    *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "runtime_config"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size"),
    *("eva_config", "loftq_config", "corda_config", "lora_ga_config"),  # read by the initialisation of that name only
}
OFF = (None, False, "none", [], {})
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
APART = "The two files don't belong together."
LOCAL = re.compile(r"[./~]|[A-Za-z]:|.*\\|.*/.+/")  # a path, not "name" or "owner/name"


class PeftSettings(BaseModel):
    """The settings of PEFT's LoraConfig that are read here, with PEFT's defaults."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    peft_type: Literal["LORA"]
    r: PositiveInt = 8
    lora_alpha: int | float = 8
    lora_dropout: int | float = 0.0
    use_rslora: bool | None = False
    target_modules: re.Pattern | list[str] | None = None
    rank_pattern: dict[re.Pattern, PositiveInt] | None = None
    alpha_pattern: dict[re.Pattern, int | float] | None = None
    base_model_name_or_path: str | None = None
    # The other initialisations (PiSSA, OLoRA, LoftQ …) also change the base weights, or the forward pass.
    init_lora_weights: Literal[True, False, "gaussian", "orthogonal", "eva"] | None = True


@dataclass(frozen=True)
class AdapterFile:
    """An adapter read from disk: per layer its A (rank, in), its B (out, rank) and its config."""

    path: Path
    weights: dict[str, tuple[Tensor, Tensor]]
    configs: dict[str, LoRAConfig]
    base_model: str | None
    base_model_sha256: str | None

    @property
    def base_name(self) -> str:
        """The base's name without its owner; "" where it has none or only a path of another machine."""
        name = (self.base_model or "").rstrip("/")
        return "" if LOCAL.match(name) else name.rpartition("/")[2]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of each adapted layer."""
        return {name: (B.shape[0], A.shape[1]) for name, (A, B) in self.weights.items()}

    def check_base(self, sha256: str | None, label: str, advice: str) -> None:
        """Raise CourseError if the file of a base, with this hash, is known to be another than the adapter's."""
        if sha256 and self.base_model_sha256 and sha256 != self.base_model_sha256:
            raise CourseError(
                f"{self.path} was trained on another base model ({self.base_model}, SHA-256 "
                f"{self.base_model_sha256[:12]}…), not on {label} ({sha256[:12]}…). {advice}"
            )


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    adapter: str = "default",
    *,
    base_model: str | None = None,
    base_model_sha256: str | None = None,
) -> Path:
    """Write one adapter of a model in PEFT's layout to a folder, which is returned; it appears whole or not at all.

    An adapter that lies there is replaced, other files stay. `base_model`, the base's name for adapter_config.json, is
    the model's own by default. The base file's hash is kept in the safetensors header so that loading can compare it.
    Raises CourseError: the model has no such adapter, or the folder can't be written.
    """
    layers = dict(adapters.layers_with(model, adapter, " to save"))
    weights = {name: (layer.lora_A[adapter].detach(), layer.lora_B[adapter].detach()) for name, layer in layers.items()}
    configs = {name: layer.configs[adapter] for name, layer in layers.items()}
    base_model = base_model or getattr(getattr(model, "config", None), "_name_or_path", None)
    file = AdapterFile(Path(folder), weights, configs, base_model, base_model_sha256)
    return write_adapter(file, folder, _short_targets(model, configs))


def write_adapter(file: AdapterFile, folder: str | Path, targets: str | tuple[str, ...] | None = None) -> Path:
    """Write an adapter that was read, composed or changed; folder, result and errors are those of `save_adapter`.

    PEFT finds the adapter's layers by `targets`; None names each.
    """
    tensors = {}
    for name, (A, B) in file.weights.items():
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = A.cpu().contiguous()
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = B.cpu().contiguous()
    described = _peft_config(file, targets or tuple(file.weights))
    metadata = {"format": "pt"} | ({BASE_HASH: file.base_model_sha256} if file.base_model_sha256 else {})

    folder = Path(folder)
    with save.replacing(folder, "the adapter") as unfinished:
        unfinished.mkdir()
        save_file(tensors, unfinished / WEIGHTS_FILE, metadata=metadata)
        (unfinished / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return folder


def _short_targets(model: nn.Module, configs: dict[str, LoRAConfig]) -> str | tuple[str, ...] | None:
    """The targets that the adapter was made with, where they find its layers and no others in this model."""
    targets = next(iter(configs.values())).target_modules
    try:
        return targets if adapters.find_targets(model, targets) == list(configs) else None
    except CourseError:
        return None


def _peft_config(file: AdapterFile, targets: str | tuple[str, ...]) -> dict:
    """The settings that PEFT's LoraConfig reads, for the file's layers and no others."""
    config = next(iter(file.configs.values()))
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": file.base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rank_stabilised,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "rank_pattern": {name: c.rank for name, c in file.configs.items() if c.rank != config.rank},
        "alpha_pattern": {name: c.alpha for name, c in file.configs.items() if c.alpha != config.alpha},
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def read_adapter(folder: str | Path) -> AdapterFile:
    """Read the adapter in a folder, or the one that a file belongs to; its tensors are on the CPU.

    Raises CourseError: a file is missing, cut short, not LoRA or more than tensors, or has a setting unknown here.
    """
    given = Path(folder)
    folder = given.parent if given.is_file() else given
    config_file, weights_file = folder / CONFIG_FILE, find_weights(folder)
    if given.suffix in PICKLES and given.is_file():
        weights_file = given
    for file in (config_file, weights_file):
        if not file.is_file():
            raise CourseError(f"{folder} holds no adapter: {file.name} is missing. Give the folder of both files.")
    settings = _read_settings(config_file)
    weights, metadata = _read_weights(weights_file)
    targets = getattr(settings.target_modules, "pattern", settings.target_modules) or ()
    configs = {}
    for name, (A, B) in weights.items():
        rank = _by_pattern(settings.rank_pattern, name, settings.r)
        if A.dim() != 2 or B.dim() != 2 or A.shape[0] != rank or B.shape[1] != rank:
            raise CourseError(
                f"{weights_file}: {name} has A {tuple(A.shape)} and B {tuple(B.shape)}, but {CONFIG_FILE} says rank "
                f"{rank}: A must be ({rank}, in) and B (out, {rank}). {APART}"
            )
        if targets and not adapters.selects(targets, name):
            raise CourseError(f"{weights_file} has {name}, which target_modules in {CONFIG_FILE} leaves out. {APART}")
        alpha = _by_pattern(settings.alpha_pattern, name, settings.lora_alpha)
        named = targets if isinstance(targets, str) else tuple(sorted(targets))
        configs[name] = LoRAConfig(rank, alpha, settings.lora_dropout, named, bool(settings.use_rslora), A.dtype)
    return AdapterFile(folder, weights, configs, settings.base_model_name_or_path, metadata.get(BASE_HASH))


def _read_settings(file: Path) -> PeftSettings:
    try:
        settings = PeftSettings.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise CourseError(f"{file} is not readable JSON ({first['msg']}). Save the adapter again.") from error
        setting = ".".join(str(part) for part in first["loc"] if "[" not in str(part)) or "the whole file"
        value = None if first["type"] == "missing" else first["input"]
        if setting == "peft_type":
            raise CourseError(f"{file} describes a {value!r} adapter; only 'LORA' can be loaded here.") from error
        advice = "Correct the file, or save the adapter again."
        if setting == "init_lora_weights":
            advice = (
                "Such a training changes more than A and B. Save the adapter again with PEFT's save_pretrained(..., "
                "path_initial_model_for_weight_conversion=...), which converts PiSSA, OLoRA, CorDA and LoRA-GA to LoRA."
            )
        raise CourseError(f"{file} says {setting} = {value!r}, but: {first['msg']}. {advice}") from error
    used = [f"{key} = {v!r}" for key, v in settings.model_extra.items() if key not in HARMLESS and v not in OFF]
    if used:
        raise CourseError(
            f"{file} says {', '.join(used)}, which this course does not know or which changes more than A and B: load "
            "the adapter with PEFT instead."
        )
    return settings


def find_weights(folder: Path) -> Path:
    """The adapter's tensors in a folder: old ones lie there as a pickle only."""
    pickled = folder / "adapter_model.bin"
    return pickled if pickled.is_file() and not (folder / WEIGHTS_FILE).is_file() else folder / WEIGHTS_FILE


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and its metadata. Of a pickle nothing but tensors is built, and no code runs.

    Raises CourseError: it can't be read, or a pickle holds anything else.
    """
    try:
        if file.suffix not in PICKLES:
            with safe_open(file, framework="pt") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
        tensors = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(tensors, dict) and all(map(torch.is_tensor, tensors.values())):
            return {str(key): tensor for key, tensor in tensors.items()}, {}
        reason = "it holds something else than named tensors"
    except (SafetensorError, OSError) as error:
        reason = f"{error}: it is cut short or another format"
    except Exception:  # torch raises many kinds, and advises to run the pickle's code
        reason = "it is cut short, or a pickle of more than tensors, which could run any code"
    raise CourseError(f"{file} can't be read as {file.suffix.removeprefix('.')} ({reason}). Save it as {WEIGHTS_FILE}.")


def _read_weights(file: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, str]]:
    tensors, metadata = read_tensors(file)
    weights: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, separator, which = key.removeprefix(PEFT_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if not separator or which not in ("A", "B"):
            raise CourseError(f"{file} holds {key!r}, which is not a LoRA A or B: load it with PEFT instead.")
        weights.setdefault(name, {})[which] = tensor
    for name, pair in weights.items():
        if len(pair) != 2:
            raise CourseError(f"{file}: {name} has only {next(iter(pair))} of A and B. Save the adapter again.")
    if not weights:
        raise CourseError(f"{file} holds no tensors. Save the adapter again.")
    return {name: (pair["A"], pair["B"]) for name, pair in weights.items()}, metadata


def _by_pattern(pattern: dict[re.Pattern, float] | None, name: str, default: float) -> float:
    """PEFT's rank_pattern and alpha_pattern: the first key that matches the end of the layer's name decides."""
    matches = (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key.pattern})$", name))
    return next(matches, default)


def put_adapter(
    model: nn.Module, file: AdapterFile, adapter: str = "default", *, base_model_sha256: str | None = None
) -> None:
    """Put an adapter that was read or composed on a model, as the active one; hashes are compared where both are known.

    Raises CourseError: the adapter names a layer that the model does not have, has another shape, or was trained on
        another base (the model is not changed then).
    """
    file.check_base(base_model_sha256, "this one", "Load that base, or train the adapter again on this one.")
    layers = adapters.fitting_layers(model, file.shapes, f"{file.path} adapts", file.base_model)
    adapters.check_free(layers, adapter)
    oversized = []
    for name, (A, B) in file.weights.items():
        layer, config = layers[name], file.configs[name]
        if A.itemsize < 4:  # as PEFT does: A and B of 16 bits become float32 on any base
            config = replace(config, dtype=torch.float32)
        if isinstance(layer, LoRALinear):
            layer.add_adapter(adapter, config)
        else:
            layer = LoRALinear(layer, config, adapter)
            model.set_submodule(name, layer)
        if config.rank > min(layer.in_features, layer.out_features):
            oversized.append(f"{name} ({layer.out_features}, {layer.in_features})")
        with torch.no_grad():
            layer.lora_A[adapter].copy_(A)
            layer.lora_B[adapter].copy_(B)
    if oversized:
        logger.warning(
            f"{file.path}: the rank is above the size of {len(oversized)} matrices, such as {oversized[0]}. Their "
            f"update can't have a rank above the matrix's smaller side: a smaller rank would give the same."
        )
    adapters.freeze(model)
    adapters.set_adapter(model, adapter)
