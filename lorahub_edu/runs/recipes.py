"""Recipes: one file that fixes a run on a GPU (model, data, method, schedule) with what it is predicted to take.

A recipe's small twin is the same run with the sizes of another profile: the same method and settings, a small base, a
few rows and steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from lorahub_edu.data.alpaca import EXTENSIONS
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.memory.plan import Plan, capacity, plan
from lorahub_edu.memory.setting import Setting
from lorahub_edu.memory.shapes import read_config
from lorahub_edu.methods import kinds
from lorahub_edu.models import base_models
from lorahub_edu.models.profiles import PROFILES, Profile, get_profile
from lorahub_edu.runs.finetune import memory_setting
from lorahub_edu.runs.recipe_values import above, at_least, flag, mapping, one_of, section, text

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
BIG = "gpu24"  # a recipe runs where this profile does, and what it leaves out is as there
LORAHUB = "lorahub"
ROWS = ("alpaca", "dolly")
DECAYS = ("linear", "cosine", "constant_with_warmup", "constant")
DTYPES = ("float32", "bfloat16", "float16")
PUBLISHED_RANK = 16  # of LoRAHub's published modules, on query and value
LORAHUB_SETTINGS = {"modules": 20, "draw": 0, "candidates": 40, "optimizer": "ngopt", "composition": "paper"}
IN_PROFILE = ("rank", "alpha", "dropout", "target_modules")  # settings of LoRA that a profile has too

SECTIONS = ("about", "card_gb", "model", "data", "method", "schedule", "twin", "prediction")
MODEL = {"name": text, "revision": text, "dtype": one_of(*DTYPES)}
DATA = {"rows": text, "train": at_least(1), "validation": at_least(0), "block": at_least(1)}
SCHEDULE = {
    "steps": at_least(1),
    "learning_rate": above(0),
    "warmup_steps": at_least(0),
    "decay": one_of(*DECAYS),
    "batch_size": at_least(1),
    "micro_batch_size": at_least(1),
    "gradient_checkpointing": flag,
    "weight_decay": at_least(0.0),
}
TWIN = {"rows": text, "learning_rate": above(0), "steps": at_least(1)}
PREDICTION = ("tensors_gb", "needed_gb", "room_gb")


@dataclass(frozen=True)
class Recipe:
    """A run that is fixed but for its seed.

    Attributes:
        name: the file's, without its ending.
        about: what it does, in a sentence.
        card_gb: the card that it is for, as it is sold.
        profile: base model, dtype, device, rows, block, batches, steps, rates and LoRA's settings.
        revision: of the base on the hub.
        rows: "alpaca", "dolly" or a file; for LoRAHub the task.
        method: a key of `methods.kinds.METHODS`, or "lorahub".
        settings: every setting of the method.
        decay: how the learning rate goes after the warm-up.
        twin: what its small twin has otherwise than the profile that it runs with.
        prediction: what is written in the file of its memory, in GB.
    """

    name: str
    about: str
    card_gb: float
    profile: Profile
    revision: str
    rows: str
    method: str
    settings: Mapping[str, object]
    decay: str
    twin: Mapping[str, object] = field(default_factory=dict)
    prediction: Mapping[str, float] = field(default_factory=dict)

    @property
    def composes(self) -> bool:
        """Whether it composes modules instead of training an adapter."""
        return self.method == LORAHUB


def names() -> list[str]:
    """The recipes that come with the course."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(recipe: str | Path) -> Path:
    """The file of a recipe.

    Args:
        recipe: a name of `names()`, or a path.

    Raises:
        CourseError: there is none.
    """
    path, shipped = Path(recipe), FOLDER / f"{Path(recipe).stem}.yaml"
    if path.is_file():
        return path
    if path.parent == Path(".") and shipped.is_file():
        return shipped
    raise CourseError(f"There is no recipe {str(recipe)!r}: no such file. {near_matches(path.stem, names())}")


def read(recipe: str | Path) -> Recipe:
    """Read and check a recipe.

    Args:
        recipe: as for `find`.

    Raises:
        CourseError: there is none, it is no YAML, or something in it is unknown, missing or out of range; the message
            names the key and what is known.
    """
    path = find(recipe)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CourseError(f"{path} is not readable YAML: {' '.join(str(error).split())[:300]}") from error
    except OSError as error:
        raise CourseError(f"Can't read {path}: {error.strerror}.") from error
    try:
        return _recipe(path.stem, content)
    except CourseError as error:
        raise CourseError(f"{path}: {error}") from error


def _recipe(name: str, content: object) -> Recipe:
    given = mapping("the recipe", content, SECTIONS)
    model = section(given, "model", MODEL, ("name",))
    data = section(given, "data", DATA, ("rows",))
    schedule = section(given, "schedule", SCHEDULE)
    decay = schedule.pop("decay", "linear")
    method = mapping("method", given.get("method"), None)
    method_name = text("method.name", method.pop("name", None)).replace("-", "_").lower()
    settings = _method_settings(method_name, method)
    base = base_models.get_base(model["name"])
    _check_base(base, method_name, data["rows"])
    big = PROFILES[BIG]
    profile = replace(
        big,
        base_model=base.name,
        dtype=model.get("dtype", big.dtype),
        train_rows=data.get("train", big.train_rows),
        validation_rows=data.get("validation", big.validation_rows),
        block_size=data.get("block", big.block_size),
        train_steps=schedule.pop("steps", big.train_steps),
        **schedule,
        **_lora_fields(settings, big),
    )
    return Recipe(
        name=name,
        about=text("about", given.get("about")),
        card_gb=above(0)("card_gb", given.get("card_gb", 24)),
        profile=profile,
        revision=model.get("revision", base.revision or ""),
        rows=data["rows"],
        method=method_name,
        settings=settings,
        decay=decay,
        twin=section(given, "twin", TWIN),
        prediction=mapping("prediction", given.get("prediction", {}), PREDICTION),
    )


def _lora_fields(settings: Mapping[str, object], big: Profile) -> dict:
    """LoRA's settings as a profile has them."""
    found = {key: settings[key] for key in IN_PROFILE if settings.get(key) is not None}
    if "rank" in found:
        found.setdefault("alpha", 2.0 * found["rank"])
        places = found.get("target_modules", big.target_modules)
        found["target_modules"] = places if isinstance(places, str) else tuple(places)
    return found


def _method_settings(name: str, given: dict) -> dict[str, object]:
    """Every setting of a method, those that are given checked."""
    if name == LORAHUB:
        for key, value in mapping("method", given, LORAHUB_SETTINGS).items():
            given[key] = (at_least(0) if isinstance(LORAHUB_SETTINGS[key], int) else text)(f"method.{key}", value)
        if given.get("modules", 1) < 1 or given.get("candidates", 1) < 1:
            raise CourseError("method.modules and method.candidates must be at least 1.")
        return LORAHUB_SETTINGS | given
    if name not in kinds.METHODS:
        raise CourseError(f"method.name: there is no method {name!r}. {near_matches(name, [*kinds.METHODS, LORAHUB])}")
    for key, check in (("alpha", above(0)), ("dropout", at_least(0.0))):
        if given.get(key) is not None:
            given[key] = check(f"method.{key}", given[key])
    if (given.get("dropout") or 0) >= 1:
        raise CourseError(f"method.dropout is a share below 1, but it is {given['dropout']}.")
    places = given.get("target_modules", "all-linear")
    if not isinstance(places, str) and not (isinstance(places, list) and all(isinstance(one, str) for one in places)):
        raise CourseError(f"method.target_modules must be a list of layers' names, but it is {places!r:.80}.")
    settings = kinds.parts_of(name, given)[name]
    return {key: value for key, value in settings.items() if key != "keep_base"}


def _check_base(base: base_models.BaseModel, method: str, rows: str) -> None:
    if (base.kind == "encoder-decoder") != (method == LORAHUB):
        known = [other.name for other in base_models.BASE_MODELS.values() if other.kind != base.kind]
        raise CourseError(
            f"model.name is {base.name!r}, a model of the kind {base.kind}, with which {method!r} does not run here: "
            f"take one of {', '.join(known)}."
        )
    if method != LORAHUB and rows not in ROWS and Path(rows).suffix.lower() not in EXTENSIONS:
        raise CourseError(
            f"data.rows is {rows!r}, which is neither a set of rows nor a file that ends in {', '.join(EXTENSIONS)}. "
            f"{near_matches(rows, ROWS)}"
        )


def twin(recipe: Recipe, profile: str) -> Recipe:
    """The same recipe with the sizes of a profile: base model, rows, block, batches, steps.

    Method, its settings, weight decay, checkpointing and decay stay. The learning rate stays too unless the recipe
    gives its twin another one.

    Args:
        recipe: of a run on a GPU.
        profile: "tiny" or "cpu"; "gpu24" gives the recipe itself.

    Raises:
        CourseError: no such profile.
    """
    small = get_profile(profile)
    if small.name == BIG:
        return recipe
    big = recipe.profile
    kept = {key: getattr(big, key) for key in (*IN_PROFILE, "weight_decay", "gradient_checkpointing")}
    changed = replace(
        small,
        **kept,
        learning_rate=recipe.twin.get("learning_rate", big.learning_rate),
        train_steps=recipe.twin.get("steps", small.train_steps) if small.name != "tiny" else small.train_steps,
    )
    rows = "tiny" if small.name == "tiny" and not recipe.composes else recipe.twin.get("rows", recipe.rows)
    return replace(recipe, profile=changed, revision="", rows=rows)


def setting(recipe: Recipe) -> Setting:
    """What the memory planner must know of a recipe."""
    profile = recipe.profile
    if not recipe.composes:
        return memory_setting(profile, method=recipe.method, settings=recipe.settings)
    module = LoRAConfig(rank=PUBLISHED_RANK, alpha=PUBLISHED_RANK, target_modules=("q", "v"))
    return Setting(
        lora=module, micro_batch=profile.micro_batch_size, block=profile.block_size, dtype=profile.dtype,
        task="scoring", loss="library",
    )  # fmt: skip


def planned(recipe: Recipe) -> Plan:
    """The memory that a recipe is predicted to take on its card."""
    return plan(read_config(recipe.profile.base_model), setting(recipe), capacity(recipe.card_gb))


def prediction(found: Plan) -> dict[str, float]:
    """A plan as it stands in a recipe's file, in GB: tensors, with all allowances, and what stays free of the card."""
    figures = (found.prediction.peak, found.needed, found.room)
    return {name: round(size / 1e9, 2) for name, size in zip(PREDICTION, figures, strict=True)}


def write_prediction(recipe: str | Path) -> Path:
    """Bring the prediction in a recipe's file up to date; the rest of the file stays as it is.

    Returns:
        The file.
    """
    path = find(recipe)
    before = path.read_text(encoding="utf-8").partition("\nprediction:")[0].rstrip("\n")
    block = yaml.safe_dump({"prediction": prediction(planned(read(path)))}, sort_keys=False)
    path.write_text(f"{before}\n{block}", encoding="utf-8")
    return path
