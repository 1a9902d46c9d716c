"""Three sizes of the course (`tiny` for tests, `cpu` for a laptop, `gpu24` for one 24 GB GPU), and its base models."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from lorahub_edu.errors import CourseError, near_matches

ENVIRONMENT_VARIABLE = "LORAHUB_EDU_PROFILE"
DEFAULT = "cpu"


@dataclass(frozen=True)
class Profile:
    """Every number that differs between machines; a lesson reads these and never asks which profile it runs.

    Lengths are in tokens, batch sizes in rows. `batch_size` rows make one optimizer step and are processed in
    micro-batches of `micro_batch_size`: memory follows the second, the optimizer sees the first. `rows` is a set of
    rows of `data.alpaca`. `revision` is the base model's on the hub. `batching` and `schedule` are as in
    `TrainingConfig`.
    """

    name: str
    base_model: str
    train_rows: int
    validation_rows: int
    block_size: int
    batch_size: int
    train_steps: int
    learning_rate: float
    warmup_steps: int
    max_new_tokens: int
    evaluation_rows: int
    rows: str = "alpaca"
    dtype: str = "float32"
    device: str = "cpu"
    micro_batch_size: int = 4
    weight_decay: float = 0.0
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    gradient_checkpointing: bool = False
    revision: str = ""
    batching: str = "packed"
    schedule: str = "linear"

    def changed(self, **changes: object) -> Profile:
        """The same with other values of some fields; None keeps the profile's. A new rank keeps alpha's ratio to it."""
        given = {name: value for name, value in changes.items() if value is not None}
        if "rank" in given:
            given.setdefault("alpha", self.alpha / self.rank * given["rank"])
        return replace(self, **given)


@dataclass(frozen=True)
class BaseModel:
    """A base model: from one pinned file (`asset`), or straight from the hub or a folder (`repo`, `revision`).

    `kind` is "causal" or "encoder-decoder". Its tokenizer puts `start` before a text; `end` closes an answer. The
    makers of a `gated` model give access on request.
    """

    name: str
    licence: str
    kind: str = "causal"
    asset: str | None = None
    repo: str | None = None
    revision: str | None = None
    start: str = ""
    end: str = "</s>"
    gated: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether it is the user's own model in a folder, which is its name."""
        return self.name == self.repo


def _table(name: str) -> dict[str, dict]:
    return tomllib.loads((resources.files(__package__) / name).read_text(encoding="utf-8"))


PROFILES = {name: Profile(name, **fields) for name, fields in _table("profiles.toml").items()}
BASE_MODELS = {name: BaseModel(name, **fields) for name, fields in _table("base_models.toml").items()}


def get_profile(name: str | None = None) -> Profile:
    """The profile "tiny", "cpu" or "gpu24"; without a name, the one in LORAHUB_EDU_PROFILE, else "cpu"."""
    name = name or os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT
    if name not in PROFILES:
        raise CourseError(
            f"There is no profile {name!r}. {near_matches(name, PROFILES)} "
            f"Set it with --profile or the environment variable {ENVIRONMENT_VARIABLE}."
        )
    return PROFILES[name]


def get_base(name: str) -> BaseModel:
    """The course's base model of that name or of that name on the hub, or the model in a folder."""
    names = {base.repo: base.name for base in BASE_MODELS.values() if base.repo} | {name: name for name in BASE_MODELS}
    known, config = names.get(name.rstrip("/")), Path(name) / "config.json"
    if known:
        return BASE_MODELS[known]
    if not (name and config.is_file()):
        raise CourseError(f"There is no base model {name!r}, nor a folder that holds it. {near_matches(name, names)}")
    try:
        encoder = json.loads(config.read_text(encoding="utf-8")).get("is_encoder_decoder")
    except (OSError, ValueError, AttributeError) as error:
        raise CourseError(f"{config} is no model's configuration ({error}). Save the model again.") from error
    return BaseModel(name, licence="", kind="encoder-decoder" if encoder else "causal", repo=name)


def access(base: BaseModel) -> str:
    if not base.gated:
        return ""
    return (
        f"{base.repo} is given on request ({base.licence}): accept the licence on its page of the hub, wait until "
        f"access is granted, and log in here with `hf auth login`."
    )
