"""Attached methods on disk: PEFT's in PEFT's layout, the others as safetensors, and a small JSON with each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from lorahub_edu.errors import CourseError
from lorahub_edu.files.save import replacing
from lorahub_edu.lora.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from lorahub_edu.methods import bottleneck
from lorahub_edu.methods.attach import Attached
from lorahub_edu.methods.kinds import BOTTLENECK, WHOLE, get_method
from lorahub_edu.models import pretrained

DESCRIPTION_FILE = "method.json"
FULL_FILE = "model.safetensors"


def save(attached: Attached, folder: str | Path) -> Path:
    """Write what training changed to a folder, which then exists whole or not at all; an earlier save is replaced.

    A single method's files lie in the folder itself, those of a combination in a sub-folder each. PEFT loads what is
    PEFT's; of P-tuning it keeps the embeddings, not the network that made them. The others are a part of the model's
    state dict: attach the method again, then `model.load_state_dict(load_file(file), strict=False)`.
    Raises CourseError: the folder holds something else or can't be written.
    """
    folder = Path(folder)
    saved = any((folder / file).is_file() for file in (DESCRIPTION_FILE, CONFIG_FILE))  # by this function, or by PEFT
    if folder.exists() and not saved and (not folder.is_dir() or any(folder.iterdir())):
        raise CourseError(f"{folder} holds something else than a saved method: choose another folder.")
    name = pretrained.name_of(attached.base)
    described = {
        "methods": attached.parts,
        "base_model": name or attached.base.config._name_or_path,
        "base_model_sha256": pretrained.base_sha256(name) if name else None,
        "trainable": attached.trainable,
    }
    with replacing(folder, "the method") as unfinished:
        unfinished.mkdir()
        for part in attached.parts:
            _save_part(attached, part, unfinished if len(attached.parts) == 1 else unfinished / part)
        (unfinished / DESCRIPTION_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def _save_part(attached: Attached, name: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    kind = get_method(name).kind
    if kind in (WHOLE, BOTTLENECK):
        named = attached.base.named_parameters()
        own = {key: p.detach().cpu().contiguous() for key, p in named if kind == WHOLE or bottleneck.MARK in key}
        save_file(own, folder / (FULL_FILE if kind == WHOLE else WEIGHTS_FILE))
        return
    with bottleneck.set_aside(attached.base):  # layers are then called as PEFT will find them
        # With embedding layers PEFT would ask the hub whether the base's vocabulary has been changed.
        attached.wrappers[name].save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
