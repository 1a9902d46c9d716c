"""The matrices of a base model or of a fine-tuned checkpoint, read one at a time."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lorahub_edu.errors import CourseError
from lorahub_edu.lora.adapter_files import PICKLES
from lorahub_edu.lora.layer import LoRALinear
from lorahub_edu.models import pretrained

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
IN_A_LAYER = re.compile(r"\.\d+\.")  # embeddings and the output head lie outside the numbered layers
NO_MATRIX = re.compile(r"embed|relative_attention_bias|lora_[AB]|norm")
FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class ModelWeights:
    """The linear layers of a model in memory; a layer with adapters counts with its base weight.

    `sha256` is the hash of the file that the base comes from, where it is known.
    """

    label: str
    matrices: dict[str, Tensor]
    sha256: str | None = None

    def names(self) -> list[str]:
        """Module paths of the matrices inside the model's layers."""
        return [name for name in self.matrices if _counts(name)]

    def shape(self, name: str) -> tuple[int, ...]:
        """(out, in) of a matrix."""
        return tuple(self.matrices[name].shape)

    def read(self, name: str) -> Tensor:
        """A matrix as it lies there, (out, in)."""
        return _checked_dtype(self.matrices[name].detach(), name, self.label)

    def __contains__(self, name: str) -> bool:
        return name in self.matrices


@dataclass(frozen=True)
class StoredWeights:
    """The matrices of a checkpoint on disk (safetensors, one file or several), mapped and read when asked for."""

    label: str
    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    sha256: str | None = None
    _open: dict[Path, object] = field(default_factory=dict, repr=False, compare=False)

    def names(self) -> list[str]:
        """Module paths of the matrices inside the model's layers."""
        return [name for name in self.files if _counts(name)]

    def shape(self, name: str) -> tuple[int, ...]:
        """(out, in) of a matrix."""
        return self.shapes[name]

    def read(self, name: str) -> Tensor:
        """A matrix as it lies on disk, (out, in)."""
        file = self.files[name]
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        return _checked_dtype(self._open[file].get_tensor(f"{name}.weight"), name, self.label)

    def __contains__(self, name: str) -> bool:
        return name in self.files


Weights = ModelWeights | StoredWeights


def of_model(model: nn.Module, sha256: str | None = None) -> ModelWeights:
    """The linear layers of a model in memory.

    Args:
        model: with or without adapters of this course.
        sha256: the hash of the base's file; None takes that of the course's base model of this name, if it is one.
    """
    known = pretrained.name_of(model) if hasattr(model, "config") else None
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | LoRALinear) and not name.endswith(".base_layer"):
            found[name] = module.weight
    label = known or getattr(getattr(model, "config", None), "_name_or_path", "") or "the given model"
    return ModelWeights(label, found, sha256 or (pretrained.base_sha256(known) if known else None))


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder holds a whole model in safetensors."""
    return any((Path(folder) / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE))


def of_folder(folder: str | Path, label: str = "", sha256: str | None = None) -> StoredWeights:
    """The matrices of a checkpoint in safetensors, as transformers saves it.

    Args:
        folder: holds model.safetensors, or shards and their index.
        label: what to call it in messages; default the folder.
        sha256: the hash of the base's file, where it is known.

    Raises:
        CourseError: there is no such file, it is cut short, a pickle, or quantised.
    """
    folder = Path(folder)
    if (folder / INDEX_FILE).is_file():
        index = _read_json(folder / INDEX_FILE).get("weight_map", {})
        files = sorted({folder / name for name in index.values()})
    elif (folder / WEIGHTS_FILE).is_file():
        files = [folder / WEIGHTS_FILE]
    else:
        pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
        reason = f"it holds {pickles[0]}, a pickle, which is never loaded here" if pickles else "it holds no such file"
        raise CourseError(
            f"{folder} is no checkpoint in safetensors: {reason}. Save the model with "
            f"save_pretrained(..., safe_serialization=True), or give an adapter's folder."
        )
    _refuse_quantised(folder)
    places, shapes = {}, {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a dict
                    shape = tuple(opened.get_slice(key).get_shape())
                    if key.endswith(".weight") and len(shape) == 2:
                        places[key.removesuffix(".weight")] = file
                        shapes[key.removesuffix(".weight")] = shape
        except (SafetensorError, OSError) as error:
            raise CourseError(
                f"{file} can't be read as safetensors ({error}): it is cut short. Save it again."
            ) from error
    return StoredWeights(label or str(folder), places, shapes, sha256)


def of_base(name: str, *, offline: bool = False) -> Weights:
    """The matrices of a base model of the course by name, or of a folder that holds a model.

    Args:
        name: a key of `models.BASE_MODELS`, one of their names on the hub, or a folder.
        offline: never open a connection.

    Raises:
        CourseError: there is no such base, or it can't be had.
    """
    if Path(name).is_dir():
        return of_folder(name)
    base = pretrained.get_base(next((base.name for base in pretrained.BASE_MODELS.values() if base.repo == name), name))
    if base.asset:
        where = pretrained.prepare(base.name, offline=offline)
        return of_folder(where, base.name, pretrained.base_sha256(base.name))
    # Straight from the hub, in whatever format it lies there: transformers reads it, in the precision it is kept in.
    dtype = "float32" if base.name in pretrained.TINY else "bfloat16"
    model, _ = pretrained.load("tiny", base=base.name, dtype=dtype, device="cpu", offline=offline)
    return of_model(model)


def _counts(name: str) -> bool:
    return bool(IN_A_LAYER.search(name)) and not NO_MATRIX.search(name)


def _checked_dtype(matrix: Tensor, name: str, label: str) -> Tensor:
    kind = str(matrix.dtype).removeprefix("torch.")
    if kind not in FLOATS or matrix.dim() != 2:
        raise CourseError(
            f"{name} of {label} is kept as {kind} of shape {tuple(matrix.shape)}: a quantised base has no singular "
            f"vectors of its own. Give the base it was made from, in float32, bfloat16 or float16."
        )
    return matrix


def _refuse_quantised(folder: Path) -> None:
    config = folder / "config.json"
    settings = _read_json(config).get("quantization_config") if config.is_file() else None
    if settings:
        method = settings.get("quant_method", "unknown method")
        raise CourseError(
            f"{folder} holds a quantised model ({method}), whose matrices are codes. Give the base it was made from, "
            f"in float32, bfloat16 or float16."
        )


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CourseError(f"{file} is not readable JSON ({error}). Save the model again.") from error
