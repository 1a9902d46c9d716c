"""Where recipes are, what may stand in a recipe's file, by pydantic, and its complaints in the course's words."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticKnownError

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.files import course
from lorahub_edu.models.profiles import ENVIRONMENT_VARIABLE, PROFILES

BIG = PROFILES["gpu24"]  # a recipe runs where this profile does, and what it leaves out is as there
FOLDER = course.SHIPPED / "recipes"


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


def machine(profile: str | None = None) -> str:
    """The profile that a recipe runs with: the one that is named, the environment's, else that of its own GPU."""
    return profile or os.environ.get(ENVIRONMENT_VARIABLE) or BIG.name


def out_folder(recipe: str, profile: str) -> Path:
    """Where a run of a recipe is written if no other folder is named."""
    return Path("runs") / (recipe if profile == BIG.name else f"{recipe}-{profile}")


def _not_a_flag(value: object) -> object:
    if isinstance(value, bool):  # for Python, true is the number 1
        raise PydanticKnownError("float_type")
    return value


def _targets(value: object) -> object:
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise CourseError(f"method.target_modules must be a list of layers' names, but it is {value!r:.80}.")
    return value


# Also a number that YAML takes for a word, as it does with 3e-4.
Number = Annotated[float, BeforeValidator(_not_a_flag), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[int, Field(ge=1, strict=True)]
Natural = Annotated[int, Field(ge=0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A group of keys; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True, validate_default=True)


class Model(Section):
    name: Text
    revision: Text | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = BIG.dtype


class Data(Section):
    """Which rows, how many of them, and the tokens of the longest."""

    rows: Text
    train: Count = BIG.train_rows
    validation: Natural = BIG.validation_rows
    block: Count = BIG.block_size


class MethodSection(Section, extra="allow"):
    """The method's name; its settings are checked when it is known."""

    name: Text


class Schedule(Section):
    steps: Count = BIG.train_steps
    learning_rate: Positive = BIG.learning_rate
    warmup_steps: Natural = BIG.warmup_steps
    decay: Literal["linear", "cosine", "constant_with_warmup", "constant"] = "linear"
    batch_size: Count = BIG.batch_size
    micro_batch_size: Count = BIG.micro_batch_size
    gradient_checkpointing: Flag = BIG.gradient_checkpointing
    weight_decay: Annotated[Number, Field(ge=0)] = BIG.weight_decay


class Twin(Section):
    """What the small twin has otherwise than the profile that it runs with."""

    rows: Text | None = None
    learning_rate: Positive | None = None
    steps: Count | None = None


class RecipeFile(Section):
    """A whole file. A default of the wrong type is checked like a value: what is missing is named, with its place."""

    about: Text = None
    card_gb: Positive = 24.0
    model: Model = {}
    data: Data = {}
    method: MethodSection = None
    schedule: Schedule = {}
    twin: Twin = {}
    prediction: dict[Literal["tensors_gb", "needed_gb", "room_gb"], object] = {}


class LoRAHubSettings(Section):
    modules: Count = 20
    draw: Natural = 0
    candidates: Count = 40
    optimizer: Text = "ngopt"
    composition: Text = "paper"


class TrainedSettings(Section, extra="allow"):
    """What is checked here of a trained method's settings; `methods.kinds` checks the others."""

    alpha: Positive | None = None
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None
    target_modules: Annotated[object, BeforeValidator(_targets)] = "all-linear"


Checked = TypeVar("Checked", bound=Section)


def checked(section: type[Checked], content: object, where: str = "") -> Checked:
    """The content as a section that stands at `where` in the file. CourseError for the first thing that is wrong."""
    try:
        return section.model_validate(content)
    except ValidationError as error:
        raise CourseError(_in_words(section, error.errors()[0], where)) from error


def _in_words(section: type[Section], error: ErrorDetails, where: str) -> str:
    parts = [where] * bool(where) + [str(part) for part in error["loc"] if part != "[key]"]
    place, value = ".".join(parts) or "the recipe", error["input"]
    kind, limits = error["type"], error.get("ctx", {})
    if kind in ("extra_forbidden", "invalid_key"):
        for part in error["loc"][:-1]:
            section = section.model_fields[part].annotation
        group = ".".join(parts[:-1]) or "the recipe"
        return f"{group} has an unknown key {parts[-1]!r}. {near_matches(parts[-1], section.model_fields)}"
    if kind == "missing":
        return f"{place} is missing."
    if kind == "literal_error":
        known = re.findall(r"'(\w+)'", limits["expected"])
        return f"{place} is {value!r:.80}. {near_matches(str(value), known)}"
    if kind == "less_than":
        return f"{place} is a share below {limits['lt']:g}, but it is {value!r:.80}."
    needed = {
        "greater_than": f"above {limits.get('gt', 0):g}",
        "greater_than_equal": f"at least {limits.get('ge', 0):g}",
        "int_type": "a whole number",
        "bool_type": "true or false",
        "string_type": "a word or a sentence",
        "string_too_short": "a word or a sentence",
        "model_type": "a list of keys with their values",
        "dict_type": "a list of keys with their values",
    }
    return f"{place} must be {needed.get(kind, 'a number')}, but it is {value!r:.80}."
