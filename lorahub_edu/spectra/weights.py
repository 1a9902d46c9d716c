"""The weight matrices of a base model or of a tuned model: from memory, from a checkpoint in safetensors, by name."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorahub_edu.errors import CourseError
from lorahub_edu.lora.adapter_files import PICKLES, AdapterFile
from lorahub_edu.lora.layer import LoRALinear
from lorahub_edu.models import pretrained, tiny
from lorahub_edu.models.profiles import BASE_MODELS, get_profile

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
IN_A_LAYER = re.compile(r"\.\d+\.")  # embeddings and the output head lie outside the numbered layers
NO_MATRIX = re.compile(r"embed|relative_attention_bias|lora_[AB]|norm")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Weights:
    """The weight matrices of a base model or of a fine-tuned checkpoint, read one at a time.

    Attributes:
        shapes: (out, in) of every matrix, by module path; GPT-2's Conv1D, which keeps (in, out), is transposed.
        load: gives a matrix by its module path, in the dtype in which it is stored.
        sha256: the hash of the file that the base comes from, where it is known.
        unread: the parameters of layers that are neither matrices nor vectors, such as the experts of one layer in one.
    """

    label: str
    shapes: dict[str, tuple[int, ...]]
    load: Callable[[str], Tensor]
    sha256: str | None = None
    unread: tuple[str, ...] = ()

    def names(self) -> list[str]:
        return [name for name in self.shapes if IN_A_LAYER.search(name) and not NO_MATRIX.search(name)]

    def read(self, name: str) -> Tensor:
        """A matrix (out, in). Raises CourseError when it is quantised."""
        matrix = self.load(name)
        if matrix.dtype not in FLOATS or matrix.dim() != 2:
            kind = str(matrix.dtype).removeprefix("torch.")
            raise CourseError(
                f"{name} of {self.label} is kept as {kind} of shape {tuple(matrix.shape)}: a quantised base has no "
                f"singular vectors of its own. Give the base it was made from, in float32, bfloat16 or float16."
            )
        return matrix


def base_weights(base: nn.Module | Weights | str | Path, *, offline: bool = False) -> Weights:
    """The matrices of a model in memory, of a base of the course by name or hub name, or of a folder with safetensors.

    Raises CourseError: there is no such base, it can't be fetched, is cut short, a pickle, or quantised.
    """
    if isinstance(base, Weights):
        return base
    if isinstance(base, nn.Module):
        return _of_model(base)
    if Path(base).is_dir():
        return of_folder(Path(base))
    known = pretrained.get_base(str(base))
    if known.asset:
        folder = pretrained.prepare(known.name, offline=offline)
        return replace(of_folder(folder), label=known.name, sha256=pretrained.base_sha256(known.name))
    # Straight from the hub, in whatever format it lies there: transformers reads it, in the precision it is kept in.
    dtype = "float32" if known.name == tiny.NAME else "bfloat16"
    model, _ = pretrained.load("tiny", base=known.name, dtype=dtype, device="cpu", offline=offline)
    return _of_model(model)


def base_of(source: AdapterFile | Path, profile: str | None = None) -> str:
    """The name or folder of the base that a source was made from.

    Where an adapter names none, or a path that is not here, the log says which base is taken: the course's of the
    path's last part, else the profile's. Raises CourseError: it names another base that is no folder here.
    """
    if not isinstance(source, AdapterFile):
        return get_profile(profile).base_model
    named = source.base_model or ""
    last = Path(named).name
    try:
        return pretrained.get_base(named).name
    except CourseError as error:
        if source.base_name and last not in BASE_MODELS:
            raise CourseError(
                f"{source.path} was made for {named!r}, which is none of this course's base models and no folder here. "
                f"Give the folder that holds it with --base."
            ) from error
    base = last if last in BASE_MODELS else get_profile(profile).base_model
    logger.warning("%s was made for the base %r. %s is taken; --base takes another.", source.path, named, base)
    return base


def unread(source: AdapterFile | Path) -> list[str]:
    """Of each parameter of a tuned model that gives no update: its name and why."""
    names = () if isinstance(source, AdapterFile) else of_folder(source).unread
    return [f"{name}: this parameter is no matrix, so its singular vectors are not defined." for name in names]


def _of_model(model: nn.Module) -> Weights:
    """The linear layers of a model in memory; a layer with adapters of this course counts with its base weight."""
    known = pretrained.name_of(model) if hasattr(model, "config") else None
    matrices = {
        name: module.weight.detach().T if isinstance(module, Conv1D) else module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | LoRALinear | Conv1D) and not name.endswith(".base_layer")
    }
    label = known or getattr(getattr(model, "config", None), "_name_or_path", "") or "the given model"
    shapes = {name: tuple(matrix.shape) for name, matrix in matrices.items()}
    return Weights(label, shapes, matrices.__getitem__, pretrained.base_sha256(known) if known else None)


def of_folder(folder: Path) -> Weights:
    """The matrices of a checkpoint as transformers saves it, mapped into memory: one file, or shards and an index."""
    if (folder / INDEX_FILE).is_file():
        files = sorted(set(_read_json(folder / INDEX_FILE).get("weight_map", {}).values()))
    elif (folder / WEIGHTS_FILE).is_file():
        files = [WEIGHTS_FILE]
    else:
        pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
        reason = f"it holds {pickles[0]}, a pickle, which is never loaded here" if pickles else "it holds no such file"
        raise CourseError(
            f"{folder} is no checkpoint in safetensors: {reason}. Save the model with "
            f"save_pretrained(..., safe_serialization=True), or give an adapter's folder."
        )
    config = folder / "config.json"
    quantised = _read_json(config).get("quantization_config") if config.is_file() else None
    if quantised:
        raise CourseError(
            f"{folder} holds a quantised model ({quantised.get('quant_method', 'unknown method')}), whose matrices are "
            f"codes. Give the base it was made from, in float32, bfloat16 or float16."
        )
    file_of, of_key = {}, {}
    for file in files:
        try:
            opened = safe_open(folder / file, framework="pt")
            for key in opened.keys():  # noqa: SIM118 - not a dict
                file_of[key], of_key[key] = opened, tuple(opened.get_slice(key).get_shape())
        except (SafetensorError, OSError) as error:
            raise CourseError(
                f"{folder / file} can't be read as safetensors ({error}): it is cut short. Save it again."
            ) from error
    matrices = [key for key, shape in of_key.items() if key.endswith(".weight") and len(shape) == 2]
    shapes = {key.removesuffix(".weight"): of_key[key] for key in matrices}
    turned = _kept_transposed(shapes, of_key)
    shapes |= {name: shapes[name][::-1] for name in turned}

    def load(name: str) -> Tensor:
        matrix = file_of[f"{name}.weight"].get_tensor(f"{name}.weight")
        return matrix.T if name in turned else matrix

    others = tuple(key for key, shape in of_key.items() if len(shape) > 2 and IN_A_LAYER.search(key))
    return Weights(str(folder), shapes, load, unread=others)


def _kept_transposed(shapes: dict[str, tuple[int, ...]], of_key: dict[str, tuple[int, ...]]) -> set[str]:
    """The matrices that a checkpoint keeps as (in, out), as GPT-2's Conv1D does.

    A bias is as long as the output. Where a bias fits only a matrix's second side, this model's layers are Conv1D. A
    square matrix fits both ways, and is of the kind of the others.
    """
    biased = {name: of_key[f"{name}.bias"] for name in shapes if f"{name}.bias" in of_key and IN_A_LAYER.search(name)}
    if all(bias == shapes[name][:1] for name, bias in biased.items()):
        return set()
    return {name for name, bias in biased.items() if bias == shapes[name][1:]}


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CourseError(f"{file} is not readable JSON ({error}). Save the model again.") from error
