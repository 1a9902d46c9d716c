"""Training state on disk: written whole or not at all, read without a pickle, the newest intact one wins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorahub_edu.files import save as files

TENSORS_FILE = "state.safetensors"
META_FILE = "state.json"
KEEP = 2  # the newest, and the one before in case the disk lost the newest


def save(folder: Path, step: int, tensors: dict[str, Tensor], meta: dict) -> None:
    """Write a checkpoint to the sub-folder step-00000012, and remove all but the last two.

    Raises CourseError: the disk is full or the folder can't be written; earlier checkpoints stay.
    """
    target = folder / f"step-{step:08d}"
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    what = f"the checkpoint of step {step} (earlier ones are intact, and the same command continues from there)"
    with files.replacing(target, what, durable=True) as unfinished:
        unfinished.mkdir()
        save_file(contents, unfinished / TENSORS_FILE)
        (unfinished / META_FILE).write_text(json.dumps({"step": step} | meta), encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
    for old in _steps(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-????????"))


def load_latest(folder: Path) -> tuple[int, dict[str, Tensor], dict] | None:
    """The newest checkpoint that can be read whole: its step, its tensors, and what JSON held of it.

    None when there is none. Leftovers of a killed save are removed.
    """
    files.remove_unfinished(folder / "step")  # of every step
    for path in reversed(_steps(folder)):
        try:
            meta = json.loads((path / META_FILE).read_text(encoding="utf-8"))
            return meta.pop("step"), load_file(path / TENSORS_FILE), meta
        except (OSError, ValueError, KeyError, SafetensorError):
            continue
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """An optimizer's state as flat tensors named after its parameters, for `save`."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{names[index]}.{key}": torch.as_tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Put what `optimizer_tensors` gave back into a fresh optimizer over the same parameters."""
    numbers = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            name, _, entry = key.removeprefix("optimizer.").rpartition(".")
            state.setdefault(numbers[name], {})[entry] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
