"""What fine-tuning changed, one matrix at a time: a LoRA adapter or a tuned checkpoint beside its base model.

The weight matrices of either model are read by name, from memory or from a checkpoint in safetensors.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.lora.adapter_files import CONFIG_FILE, PICKLES, AdapterFile, read_adapter
from lorahub_edu.lora.layer import LoRALinear
from lorahub_edu.models import pretrained, tiny
from lorahub_edu.models.profiles import BASE_MODELS, get_profile
from lorahub_edu.spectra.bases import SLICE, short_gram
from lorahub_edu.spectra.measures import factored_singular_values

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
IN_A_LAYER = re.compile(r"\.\d+\.")  # embeddings and the output head lie outside the numbered layers
NO_MATRIX = re.compile(r"embed|relative_attention_bias|lora_[AB]|norm")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOATS_NEEDED = "Its matrices are codes: give the base it was made from, in float32, bfloat16 or float16."


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
            kept = f"{str(matrix.dtype).removeprefix('torch.')} of shape {tuple(matrix.shape)}"
            raise CourseError(f"{name} of {self.label} is quantised: it is kept as {kept}. {FLOATS_NEEDED}")
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
            f"{folder} holds a quantised model ({quantised.get('quant_method', 'unknown method')}). {FLOATS_NEEDED}"
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
    except ValueError as error:
        raise CourseError(f"{file} is not readable JSON ({error}). Save the model again.") from error


@dataclass(frozen=True)
class Update:
    """One matrix and its change: either `down` A (r, in) and `up` B (out, r) with `scaling`, or `delta` (out, in).

    `name` is the matrix's module path in the base, `base` is W₀ (out, in) in any float dtype. W = W₀ + scaling · B A.
    """

    name: str
    base: Tensor
    down: Tensor | None = None
    up: Tensor | None = None
    scaling: float = 1.0
    delta: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.down is None) != (self.up is None) or (self.down is None) == self.factored:
            raise CourseError(f"{self.name}: an update is either A and B, or one whole matrix; give one of the two.")
        parts = (self.up, self.down) if self.factored else (self.delta,)
        out, *ranks, inputs = [size for part in parts for size in part.shape]
        if (out, inputs) != tuple(self.base.shape) or len(set(ranks)) > 1:
            sizes = " and ".join(str(tuple(part.shape)) for part in parts)
            raise CourseError(
                f"{self.name} is {tuple(self.base.shape)} in the base, which an update of {sizes} does not fit."
            )

    @property
    def factored(self) -> bool:
        return self.delta is None

    @property
    def wide(self) -> bool:
        """Whether out ≤ in, so that the short side's singular vectors are the left ones."""
        return self.base.shape[0] <= self.base.shape[1]

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        if not self.factored:
            return self.delta.to(dtype)
        return self.scaling * (self.up.to(dtype) @ self.down.to(dtype))

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tuned matrix W = W₀ + ΔW, (out, in)."""
        return self.base.to(dtype) + self.dense(dtype)

    def slices(self, width: int = SLICE) -> Iterator[tuple[Tensor, Tensor]]:
        """W₀ and W, short side first and cut along the long side: pairs of (min(out, in), up to width) float64."""
        base = self.base if self.wide else self.base.T
        if self.factored:
            near, far = (self.up, self.down) if self.wide else (self.down.T, self.up.T)
            near = self.scaling * near.double()
        else:
            far = self.delta if self.wide else self.delta.T
        for before, part in zip(base.split(width, dim=1), far.split(width, dim=1), strict=True):
            before, part = before.double(), part.double()
            yield before, before + (near @ part if self.factored else part)

    def singular_values(self) -> Tensor:
        """The singular values of the change, (min(r, out, in),) float64, largest first."""
        if self.factored:
            return factored_singular_values(self.up, self.down, self.scaling)
        return torch.linalg.eigvalsh(short_gram(self.delta)).clamp_min(0).sqrt().flip(0)

    def most(self) -> float:
        """A bound of ‖ΔW‖, which also bounds what the products of its factors round: |scaling| ‖A‖ ‖B‖."""
        parts = (self.up, self.down) if self.factored else (self.delta,)
        norms = (float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in parts)
        return math.prod(norms, start=abs(self.scaling))

    def to(self, device: torch.device | str) -> Update:
        moved = {part: getattr(self, part) for part in ("base", "down", "up", "delta")}
        return replace(self, **{part: t.to(device) for part, t in moved.items() if t is not None})

    def is_zero(self) -> bool:
        parts = (self.up, self.down) if self.factored else (self.delta,)
        return self.scaling == 0 or any(not part.any() for part in parts)

    def check_finite(self) -> None:
        """Raise a CourseError that names the tensor which holds NaN or infinite values."""
        for what, tensor in (("base", self.base), ("A", self.down), ("B", self.up), ("change", self.delta)):
            # A NaN or an infinity in a tensor makes its sum NaN or infinite; so may an overflow, which is none.
            if tensor is None or torch.isfinite(tensor.sum()):
                continue
            if bad := int((~torch.isfinite(tensor)).sum()):
                raise CourseError(
                    f"{self.name}: its {what} holds {bad} NaN or infinite values: the training diverged or the file is "
                    f"damaged. Train again with a lower learning rate, or take an earlier checkpoint."
                )


def iter_updates(source: AdapterFile | str | Path, base: nn.Module | Weights | str | Path) -> Iterator[Update]:
    """The changes of an adapter or of a fine-tuned checkpoint, in its order, one matrix in memory at a time.

    `source` is an adapter, or the folder of an adapter in PEFT's layout or of a tuned model in safetensors. `base` is
    as for `base_weights`.
    Raises CourseError: source or base can't be read, or they don't belong together (checked before the first update).
    """
    base = base_weights(base)
    if not isinstance(source, AdapterFile):
        folder = Path(source)
        if not folder.exists():
            raise CourseError(f"There is no folder {folder}. Give an adapter's folder or that of a fine-tuned model.")
        if folder.is_dir() and not (folder / CONFIG_FILE).is_file():
            return _from_checkpoint(of_folder(folder), base)
        source = read_adapter(folder)
    return _from_adapter(source, base)


def _from_adapter(file: AdapterFile, base: Weights) -> Iterator[Update]:
    file.check_base(base.sha256, base.label, "Give that base with --base.")
    made_for = f"The adapter was made for {file.base_model or 'a base that it does not name'}; give it with --base."
    _check_shapes(file.shapes, base, str(file.path), made_for)
    return (Update(name, base.read(name), A, B, file.configs[name].scaling) for name, (A, B) in file.weights.items())


def _from_checkpoint(tuned: Weights, base: Weights) -> Iterator[Update]:
    names = tuned.names()
    if not names:
        raise CourseError(f"{tuned.label} holds no matrix of a numbered layer: it is no transformer's checkpoint.")
    advice = "Give the base that it was trained from with --base."
    _check_shapes({name: tuned.shapes[name] for name in names}, base, tuned.label, advice)
    pairs = ((name, base.read(name), tuned.read(name)) for name in names)
    return (Update(name, before, delta=after.double() - before.double()) for name, before, after in pairs)


def _check_shapes(shapes: dict[str, tuple[int, ...]], base: Weights, label: str, advice: str) -> None:
    for name, shape in shapes.items():
        if name not in base.shapes:
            hint = near_matches(name, base.names())
            raise CourseError(f"{label} changes {name!r}, which {base.label} does not have. {hint} {advice}")
        if shape != base.shapes[name]:
            raise CourseError(
                f"{label}: {name} is {base.shapes[name]} in {base.label}, but {shape} here: another base model. "
                f"{advice}"
            )
