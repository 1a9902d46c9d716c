"""Recipes: one file that fixes a run on a GPU (model, data, method, schedule) with what it is predicted to take.

A recipe's small twin is the same run with the sizes of another profile: the same method and settings, a small base, a
few rows and steps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from lorahub_edu.data.alpaca import SETS
from lorahub_edu.data.rows import EXTENSIONS
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.files import course
from lorahub_edu.methods import kinds
from lorahub_edu.models.profiles import ENVIRONMENT_VARIABLE, PROFILES, Profile, get_base, get_profile

if TYPE_CHECKING:
    from lorahub_edu.memory.plan import Plan
    from lorahub_edu.runs.finetune import FinetuneResult

# What loads torch is imported by the functions that run or plan, so that a wrong recipe is answered at once.

BIG = PROFILES["gpu24"]  # a recipe runs where this profile does, and what it leaves out is as there
FOLDER = course.SHIPPED / "recipes"
IN_PROFILE = ("rank", "alpha", "dropout", "target_modules")  # settings of LoRA that a profile has too


def _no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


# Also a number that YAML takes for a word, as it does with 3e-4.
Number = Annotated[float, BeforeValidator(_no_flag), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[int, Field(ge=1, strict=True)]
Natural = Annotated[int, Field(ge=0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A group of keys; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class ModelSection(Section):
    name: Text
    revision: Text | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = BIG.dtype


class DataSection(Section):
    """Which rows, how many of them, and the tokens of the longest."""

    rows: Text
    train: Count = BIG.train_rows
    validation: Natural = BIG.validation_rows
    block: Count = BIG.block_size


class MethodSection(Section, extra="allow"):
    """The method's name and settings; `methods.kinds` checks those that are not named here."""

    name: Text
    alpha: Positive | None = None
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None
    target_modules: Text | tuple[Text, ...] | None = None


class ScheduleSection(Section):
    steps: Count = BIG.train_steps
    learning_rate: Positive = BIG.learning_rate
    warmup_steps: Natural = BIG.warmup_steps
    decay: Literal["linear", "cosine", "constant_with_warmup", "constant"] = "linear"
    batch_size: Count = BIG.batch_size
    micro_batch_size: Count = BIG.micro_batch_size
    gradient_checkpointing: Flag = BIG.gradient_checkpointing
    weight_decay: Annotated[Number, Field(ge=0)] = BIG.weight_decay


class RecipeFile(Section):
    about: Text
    card_gb: Positive = 24.0
    model: ModelSection
    data: DataSection
    method: MethodSection
    schedule: ScheduleSection = ScheduleSection()
    prediction: dict[str, Number] = {}


@dataclass(frozen=True)
class Recipe:
    """A training run that is fixed but for its seed.

    `card_gb` is the GPU's memory as it is sold. `rows` is one of `alpaca.SETS` or a file. `method` is a key of
    `methods.kinds.METHODS`. `prediction` has the file's figures of memory, in GB.
    """

    name: str
    card_gb: float
    profile: Profile
    rows: str
    method: str
    settings: Mapping[str, object]
    prediction: Mapping[str, float]


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(recipe: str | Path) -> Path:
    """The file of a recipe, given by its path or by a name of `names()`. Raises CourseError: there is none."""
    path, shipped = Path(recipe), FOLDER / f"{Path(recipe).stem}.yaml"
    if path.is_file():
        return path
    if path.parent == Path(".") and shipped.is_file():
        return shipped
    raise CourseError(f"There is no recipe {str(recipe)!r}: no such file. {near_matches(path.stem, names())}")


def read(recipe: str | Path) -> Recipe:
    """Read and check a recipe, given as for `find`.

    Raises CourseError: there is none, it is no YAML, or something in it is unknown, missing or out of range; the
        message names the key.
    """
    import yaml

    path = find(recipe)
    try:
        return _recipe(path.stem, RecipeFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except ValidationError as error:
        raise CourseError(f"{path}: {_in_words(error.errors()[0])}") from error
    except CourseError as error:
        raise CourseError(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CourseError(f"{path} is not readable YAML: {' '.join(str(error).split())[:300]}") from error


def _recipe(name: str, file: RecipeFile) -> Recipe:
    method, base, rows = file.method.name.replace("-", "_").lower(), get_base(file.model.name), file.data.rows
    if base.kind != "causal":
        raise CourseError(f"model.name is {base.name!r}, an {base.kind}, which `train` does not train.")
    if rows not in SETS and Path(rows).suffix.lower() not in EXTENSIONS:
        raise CourseError(
            f"data.rows is {rows!r}, which is neither a set of rows nor a file that ends in {', '.join(EXTENSIONS)}. "
            f"{near_matches(rows, SETS)}"
        )
    given = file.method.model_dump(exclude={"name"}, exclude_unset=True)
    settings = {key: value for key, value in kinds.parts_of(method, given)[method].items() if key != "keep_base"}
    lora = {key: settings[key] for key in IN_PROFILE if settings.get(key) is not None}
    if "rank" in lora:
        lora.setdefault("alpha", 2.0 * lora["rank"])
    profile = replace(
        BIG,
        base_model=base.name,
        dtype=file.model.dtype,
        train_rows=file.data.train,
        validation_rows=file.data.validation,
        block_size=file.data.block,
        train_steps=file.schedule.steps,
        schedule=file.schedule.decay,
        revision=file.model.revision or base.revision or "",
        **file.schedule.model_dump(exclude={"steps", "decay"}),
        **lora,
    )
    return Recipe(name, file.card_gb, profile, rows, method, settings, file.prediction)


def _in_words(error: ErrorDetails) -> str:
    """What pydantic found, with its place in the file."""
    parts = list(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        section = RecipeFile
        for part in parts[:-1]:
            section = section.model_fields[part].annotation
        group = ".".join(parts[:-1]) or "the recipe"
        return f"{group} has an unknown key {parts[-1]!r}. {near_matches(parts[-1], section.model_fields)}"
    place = ".".join(parts) or "the recipe"
    if error["type"] == "missing":
        return f"{place} is missing."
    return f"{place} {re.sub('^.*? should', 'must', error['msg'])}, but it is {error['input']!r:.80}."


def twin(recipe: Recipe, profile: str | None = None) -> Recipe:
    """The same recipe with the sizes of a profile: base model, rows, block, batches, steps; "gpu24" gives itself.

    Without a profile it is the environment's, else that of the recipe's own GPU.
    Method, its settings, weight decay, checkpointing and decay stay. LoRA takes the profile's learning rate too;
    another method keeps its own.
    """
    small, big = get_profile(profile or os.environ.get(ENVIRONMENT_VARIABLE) or BIG.name), recipe.profile
    if small == BIG:
        return recipe
    stays = [*IN_PROFILE, "weight_decay", "gradient_checkpointing", "schedule"]
    if kinds.METHODS[recipe.method].config != "LoraConfig":
        stays.append("learning_rate")
    rows = small.rows if small.name == "tiny" or recipe.rows == BIG.rows else recipe.rows
    return replace(recipe, profile=replace(small, **{key: getattr(big, key) for key in stays}), rows=rows)


def planned(recipe: Recipe) -> Plan:
    """The memory that a recipe is predicted to take on its card."""
    from lorahub_edu.memory.plan import capacity, plan
    from lorahub_edu.memory.shapes import read_config
    from lorahub_edu.runs.finetune import memory_setting

    setting = memory_setting(recipe.profile, recipe.method, recipe.settings)
    return plan(read_config(recipe.profile.base_model), setting, capacity(recipe.card_gb))


def run(
    recipe: str | Path,
    profile: str | None = None,
    changes: Mapping[str, object] = MappingProxyType({}),
    *,
    out: str | Path,
    data: str | Path | None = None,
    report: Callable[[str], None] = lambda _line: None,
    **options: object,
) -> FinetuneResult:
    """Carry out a recipe; `options` and the other arguments are those of `finetune`.

    `profile` "tiny" or "cpu" runs its small twin; None takes the environment's, else the machine it is for. `report`
    gets what the planner says before a run on the recipe's own card.
    Raises CourseError: the recipe is wrong, it does not fit, or whatever the run refuses.
    """
    from lorahub_edu.models import pretrained
    from lorahub_edu.runs import finetune

    recipe = twin(read(recipe), profile)
    if recipe.profile.name == BIG.name:
        pretrained.check_device(recipe.profile)
        card = planned(recipe)
        room = f"{card.room / 1e9:.1f} GB to spare" if card.fits else f"{-card.room / 1e9:.1f} GB too much"
        report(f"{recipe.name}: about {card.needed / 1e9:.1f} GB, {room} on a {recipe.card_gb:g} GB card.")
    options |= {"method": recipe.method, "settings": recipe.settings, "data": data or recipe.rows}
    return finetune.finetune(recipe.profile, changes, out=out, **options)
