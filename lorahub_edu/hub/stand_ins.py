"""The modules of a profile: the shipped zoo for the base it was trained on, small random ones for any other base.

A lesson asks for modules by name and runs on every profile; with stand-ins it shows that the code runs, nothing more.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from lorahub_edu.data import tasks
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.hub import zoo
from lorahub_edu.hub.zoo import Card
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import Profile

COUNT = 20  # as many as LoRAHub takes
B_SIZE = 0.02  # standard deviation of B: an update that moves a random model's loss by a few percent


def has_zoo(profile: Profile, folder: str | Path = zoo.SHIPPED) -> bool:
    """Whether the modules in a folder belong to this profile's base model."""
    known = zoo.names(folder)
    return bool(known) and zoo.card(known[0], folder).base_model == profile.base_model


def names_for(profile: Profile, folder: str | Path = zoo.SHIPPED) -> list[str]:
    """The names of the modules that `modules_for` has, in alphabetical order."""
    return zoo.names(folder) if has_zoo(profile, folder) else sorted(tasks.names("module")[:COUNT])


def modules_for(
    profile: Profile, names: Sequence[str] | None = None, folder: str | Path = zoo.SHIPPED
) -> list[AdapterFile]:
    """Modules of the profile's base model: those of the zoo if it is of this base, else stand-ins of the same names.

    A stand-in is LoRA on the query and value projections, in half precision like a shipped module. Its B is random. Its
    A is near an A that all share, as in a zoo trained from one seed. The same name gives the same module. `names` None
    takes all of `names_for`.
    Raises CourseError: there is no module of that name, or its file can't be read.
    """
    wanted = names_for(profile, folder) if names is None else names
    if has_zoo(profile, folder):
        return zoo.load(wanted, folder)
    return [_stand_in(name, profile) for name in wanted]


def cards_for(profile: Profile) -> dict[str, Card]:
    """The cards of a profile's modules, by name; a stand-in's has its task and NaN for every score."""
    card = zoo.card if has_zoo(profile) else partial(_stand_in_card, profile=profile)
    return {name: card(name) for name in names_for(profile)}


def _stand_in(name: str, profile: Profile) -> AdapterFile:
    if name not in tasks.names("module"):
        raise CourseError(f"There is no module {name!r}. {near_matches(name, tasks.names('module'))}")
    settings = pretrained.load_config(profile.base_model)
    width, head = settings.hidden_size, settings.hidden_size // settings.num_attention_heads
    outputs = {"q_proj": width, "v_proj": head * settings.num_key_value_heads}
    config = LoRAConfig(profile.rank, profile.alpha, target_modules=tuple(outputs), dtype=torch.float16)
    shared = torch.Generator().manual_seed(0)
    own = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    weights = {}
    for layer in range(settings.num_hidden_layers):
        for kind, rows in outputs.items():
            start = torch.randn(profile.rank, width, generator=shared)  # (r, in)
            moved = torch.randn(profile.rank, width, generator=own)
            A = (start + 0.5 * moved) / width**0.5  # (r, in)
            B = B_SIZE * torch.randn(rows, profile.rank, generator=own)  # (out, r)
            weights[f"model.layers.{layer}.self_attn.{kind}"] = (A.half(), B.half())
    sha256 = pretrained.base_sha256(profile.base_model)
    return AdapterFile(Path(name), weights, dict.fromkeys(weights, config), profile.base_model, sha256)


def _stand_in_card(name: str, profile: Profile) -> Card:
    scores = [f"{score}_{when}" for score in ("loss", "strict", "answer_only") for when in ("before", "after")]
    counts = ("training_items", "test_items", "init_seed", "data_seed", "steps", "batch_size")
    return Card(
        task=name,
        instruction=tasks.get(name).instructions[0],
        base_model=profile.base_model,
        base_model_sha256=pretrained.base_sha256(profile.base_model),
        rank=profile.rank,
        alpha=profile.alpha,
        learning_rate=0.0,
        seconds=0.0,
        weights_sha256="",
        device="made, not trained",
        versions={},
        date="",
        **dict.fromkeys(counts, 0),
        **dict.fromkeys(scores, math.nan),
    )
