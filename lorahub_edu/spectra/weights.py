"""The matrices of a base model or of a fine-tuned checkpoint, read one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
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
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Weights:
    """The weight matrices of a model, read one at a time.

    Attributes:
        label: the model's name in messages.
        shapes: (out, in) of every matrix, by module path.
        load: gives a matrix by its module path, in the dtype in which it is stored.
        sha256: the hash of the file that the base comes from, where it is known.
    """

    label: str
    shapes: dict[str, tuple[int, ...]]
    load: Callable[[str], Tensor]
    sha256: str | None = None

    def names(self) -> list[str]:
        """Module paths of the matrices inside the model's layers."""
        return [name for name in self.shapes if IN_A_LAYER.search(name) and not NO_MATRIX.search(name)]

    def read(self, name: str) -> Tensor:
        """A matrix (out, in).

        Raises:
            CourseError: it is quantised.
        """
        matrix = self.load(name)
        if matrix.dtype not in FLOATS or matrix.dim() != 2:
            kind = str(matrix.dtype).removeprefix("torch.")
            raise CourseError(
                f"{name} of {self.label} is kept as {kind} of shape {tuple(matrix.shape)}: a quantised base has no "
                f"singular vectors of its own. Give the base it was made from, in float32, bfloat16 or float16."
            )
        return matrix


def of_model(model: nn.Module, sha256: str | None = None) -> Weights:
    """The linear layers of a model in memory; a layer with adapters of this course counts with its base weight.

    `sha256` None takes the hash of the course's base model of this name, if it is one.
    """
    known = pretrained.name_of(model) if hasattr(model, "config") else None
    matrices = {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | LoRALinear) and not name.endswith(".base_layer")
    }
    label = known or getattr(getattr(model, "config", None), "_name_or_path", "") or "the given model"
    shapes = {name: tuple(matrix.shape) for name, matrix in matrices.items()}
    return Weights(label, shapes, matrices.__getitem__, sha256 or (pretrained.base_sha256(known) if known else None))


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder holds a whole model in safetensors."""
    return any((Path(folder) / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE))


def of_folder(folder: str | Path, label: str = "", sha256: str | None = None) -> Weights:
    """The matrices of a checkpoint as transformers saves it, mapped: one file in safetensors, or shards and an index.

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
    file_of, shapes = {}, {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a dict
                    shape = tuple(opened.get_slice(key).get_shape())
                    if key.endswith(".weight") and len(shape) == 2:
                        file_of[key.removesuffix(".weight")] = file
                        shapes[key.removesuffix(".weight")] = shape
        except (SafetensorError, OSError) as error:
            raise CourseError(
                f"{file} can't be read as safetensors ({error}): it is cut short. Save it again."
            ) from error
    opened_once = lru_cache(maxsize=None)(lambda file: safe_open(file, framework="pt"))
    return Weights(
        label or str(folder), shapes, lambda name: opened_once(file_of[name]).get_tensor(f"{name}.weight"), sha256
    )


def of_base(name: str, *, offline: bool = False) -> Weights:
    """The matrices of a base model of the course by name, or of a folder that holds a model.

    `name` is a key of `models.pretrained.BASE_MODELS`, one of their names on the hub, or a folder.

    Raises:
        CourseError: there is no such base, or it can't be fetched.
    """
    if Path(name).is_dir():
        return of_folder(name)
    base = pretrained.get_base(next((base.name for base in pretrained.BASE_MODELS.values() if base.repo == name), name))
    if base.asset:
        folder = pretrained.prepare(base.name, offline=offline)
        return of_folder(folder, base.name, pretrained.base_sha256(base.name))
    # Straight from the hub, in whatever format it lies there: transformers reads it, in the precision it is kept in.
    dtype = "float32" if base.name in pretrained.TINY else "bfloat16"
    model, _ = pretrained.load("tiny", base=base.name, dtype=dtype, device="cpu", offline=offline)
    return of_model(model)


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
