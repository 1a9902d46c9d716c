"""Attached methods on disk: PEFT's in PEFT's layout, the others as safetensors, and a small JSON with each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.files.save import replacing
from lorahub_edu.lora.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from lorahub_edu.methods import bottleneck
from lorahub_edu.methods.attach import Attached, attach_parts, detach
from lorahub_edu.methods.kinds import BOTTLENECK, WHOLE, get_method, parts_of
from lorahub_edu.models import pretrained

DESCRIPTION_FILE = "method.json"
FULL_FILE = "model.safetensors"
# PEFT's own names of what this course calls otherwise, for folders that PEFT wrote.
PEFT_NAMES = {
    "LORA": "lora", "IA3": "ia3", "BEFT": "bitfit", "LN_TUNING": "ln_tuning", "PROMPT_TUNING": "prompt",
    "P_TUNING": "p_tuning", "PREFIX_TUNING": "prefix", "ADAPTION_PROMPT": "llama_adapter",
}  # fmt: skip


def save(attached: Attached, folder: str | Path) -> Path:
    """Write what training changed to a folder, which then exists whole or not at all; an earlier save is replaced.

    A single method's files lie in the folder itself, those of a combination in a sub-folder each. PEFT loads what is
    PEFT's. Of P-tuning PEFT keeps the embeddings, not the network that made them.
    Raises CourseError: the folder holds something else or can't be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not is_saved(folder))):
        raise CourseError(f"{folder} holds something else than a saved method: choose another folder.")
    name = pretrained.name_of(attached.base)
    described = {
        "methods": attached.parts,
        "base_model": name or attached.base.config._name_or_path,
        "base_model_sha256": pretrained.base_sha256(name) if name else None,
        "trainable": attached.trainable,
    }
    try:
        with replacing(folder) as unfinished:
            unfinished.mkdir()
            for part in attached.parts:
                _save_part(attached, part, unfinished if len(attached.parts) == 1 else unfinished / part)
            (unfinished / DESCRIPTION_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CourseError(f"Can't write to {folder}: {error}. Free some space or choose another folder.") from error
    return folder


def is_saved(folder: Path) -> bool:
    """Whether a folder holds what `save` or PEFT writes."""
    return (folder / DESCRIPTION_FILE).is_file() or (folder / CONFIG_FILE).is_file()


def weight_bytes(folder: str | Path) -> int:
    """Bytes of a saved method's weights, without its base."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))


def _save_part(attached: Attached, name: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    kind = get_method(name).kind
    if kind == WHOLE:
        save_file(_on_disk(dict(attached.base.named_parameters())), folder / FULL_FILE)
    elif kind == BOTTLENECK:
        save_file(_on_disk(bottleneck.adapter_parameters(attached.base)), folder / WEIGHTS_FILE)
    else:
        with bottleneck.set_aside(attached.base):  # layers are then called as PEFT will find them
            # With embedding layers PEFT would ask the hub whether the base's vocabulary has been changed.
            attached.wrappers[name].save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def _on_disk(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}


def load(model: PreTrainedModel, folder: str | Path) -> Attached:
    """Attach what `save` or PEFT's `save_pretrained` wrote to its base, for use: nothing is trainable afterwards.

    Raises CourseError: the folder holds no method or a damaged one, or it belongs to another base (the model is then as
        before).
    """
    folder = Path(folder)
    parts = _read_parts(model, folder)
    folders = {name: folder if len(parts) == 1 else folder / name for name in parts}
    for name, part in folders.items():
        if get_method(name).kind != WHOLE and not (part / WEIGHTS_FILE).is_file():  # PEFT would take a pickle instead
            raise CourseError(f"{part} has no {WEIGHTS_FILE}; pickles are not opened. Save the method again.")
    attached = attach_parts(model, parts, saved={name: str(part) for name, part in folders.items()})
    try:
        for name, part in folders.items():
            if get_method(name).kind == WHOLE:
                _fill(dict(model.named_parameters()), part / FULL_FILE)
            elif get_method(name).kind == BOTTLENECK:
                _fill(bottleneck.adapter_parameters(model), part / WEIGHTS_FILE)
            else:  # PEFT has filled it, and says nothing of tensors that have no place
                with bottleneck.set_aside(model):
                    held = get_peft_model_state_dict(attached.wrappers[name], save_embedding_layers=False)
                _check_same_shapes(held, load_file(part / WEIGHTS_FILE), part / WEIGHTS_FILE)
    except CourseError:
        detach(attached)
        raise
    attached.model.requires_grad_(False)
    return attached


def _fill(parameters: Mapping[str, nn.Parameter], file: Path) -> None:
    """Give parameters the values of a file that holds exactly them."""
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CourseError(
            f"{file} can't be read ({error}): it is missing or damaged. Save the method again."
        ) from error
    _check_same_shapes(parameters, tensors, file)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _check_same_shapes(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], file: Path) -> None:
    shapes = [{(name, tuple(tensor.shape)) for name, tensor in tensors.items()} for tensors in (ours, theirs)]
    if different := shapes[0] ^ shapes[1]:
        name, shape = min(different)
        raise CourseError(f"{file} does not belong to this model: they differ in {name} {shape}.")


def _read_parts(model: PreTrainedModel, folder: Path) -> dict[str, dict]:
    """The methods that a folder holds, with their settings."""
    if not is_saved(folder):
        raise CourseError(f"{folder} holds no saved method: neither {DESCRIPTION_FILE} nor {CONFIG_FILE} is there.")
    file = folder / DESCRIPTION_FILE
    try:
        if not file.is_file():
            return parts_of(_peft_name(folder / CONFIG_FILE), {})
        described = json.loads(file.read_text(encoding="utf-8"))
        parts, theirs = parts_of(described["methods"], {}), described["base_model_sha256"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CourseError(f"{file} is damaged ({error!r}). Save the method again.") from error
    name = pretrained.name_of(model)
    mine = pretrained.base_sha256(name) if name else None
    if mine and theirs and mine != theirs:
        raise CourseError(f"{folder} was trained on another base, {described['base_model']}: load that one.")
    return parts


def _peft_name(file: Path) -> str:
    config = json.loads(file.read_text(encoding="utf-8"))
    kind = str(config.get("peft_type"))
    if kind not in PEFT_NAMES:
        raise CourseError(f"{file} describes a {kind!r} adapter. {near_matches(kind, PEFT_NAMES)}")
    if kind == "LORA" and (config.get("use_dora") or config.get("use_rslora")):
        return "dora" if config.get("use_dora") else "rslora"
    return PEFT_NAMES[kind]
