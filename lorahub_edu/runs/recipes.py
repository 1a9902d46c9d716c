"""Recipes: one file that fixes a run on a GPU (model, data, method, schedule) with what it is predicted to take.

A recipe's small twin is the same run with the sizes of another profile: the same method and settings, a small base, a
few rows and steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from lorahub_edu.data.alpaca import SETS
from lorahub_edu.data.rows import EXTENSIONS
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.hub import stand_ins, zoo
from lorahub_edu.hub.adapt import SearchConfig
from lorahub_edu.hub.candidates import random_candidates
from lorahub_edu.hub.task_adapter import TaskAdapter, adapt_to
from lorahub_edu.lora import adapter_files
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.memory.plan import Plan, capacity, plan
from lorahub_edu.memory.setting import Setting, memory_watched
from lorahub_edu.memory.shapes import read_config
from lorahub_edu.methods import kinds
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import BASE_MODELS, BaseModel, Profile, get_base, get_profile
from lorahub_edu.runs.finetune import NO_CHANGES, FinetuneResult, finetune, memory_setting
from lorahub_edu.runs.recipe_file import (
    BIG,
    LoRAHubSettings,
    RecipeFile,
    TrainedSettings,
    checked,
    find,
    machine,
    out_folder,
)

LORAHUB = "lorahub"
PUBLISHED_RANK = 16  # of LoRAHub's published modules, on query and value
IN_PROFILE = ("rank", "alpha", "dropout", "target_modules")  # settings of LoRA that a profile has too


@dataclass(frozen=True)
class Recipe:
    """A run that is fixed but for its seed.

    `card_gb` is the GPU's memory as it is sold. `rows` is one of `alpaca.SETS` or a file; for LoRAHub a task. `method`
    is a key of `methods.kinds.METHODS` or "lorahub". `twin` is what the small twin has otherwise than its profile, and
    `prediction` the file's figures of memory, in GB.
    """

    name: str
    card_gb: float
    profile: Profile
    rows: str
    method: str
    settings: Mapping[str, object]
    twin: Mapping[str, object] = field(default_factory=dict)
    prediction: Mapping[str, float] = field(default_factory=dict)

    @property
    def composes(self) -> bool:
        return self.method == LORAHUB


def read(recipe: str | Path) -> Recipe:
    """Read and check a recipe, given as for `find`.

    Raises CourseError: there is none, it is no YAML, or something in it is unknown, missing or out of range; the
        message names the key and what is known.
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
    file = checked(RecipeFile, content)
    method = file.method.name.replace("-", "_").lower()
    settings = _method_settings(method, file.method.model_dump(exclude={"name"}))
    base = get_base(file.model.name)
    _check_base(base, method, file.data.rows)
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
        **_lora_fields(settings),
    )
    return Recipe(
        name=name,
        card_gb=file.card_gb,
        profile=profile,
        rows=file.data.rows,
        method=method,
        settings=settings,
        twin=file.twin.model_dump(exclude_none=True),
        prediction=file.prediction,
    )


def _lora_fields(settings: Mapping[str, object]) -> dict:
    lora = {key: settings[key] for key in IN_PROFILE if settings.get(key) is not None}
    if "rank" in lora:
        lora.setdefault("alpha", 2.0 * lora["rank"])
        targets = lora.get("target_modules", BIG.target_modules)
        lora["target_modules"] = targets if isinstance(targets, str) else tuple(targets)
    return lora


def _method_settings(name: str, given: dict) -> dict[str, object]:
    """Every setting of a method, those that are given checked."""
    if name == LORAHUB:
        return checked(LoRAHubSettings, given, "method").model_dump()
    if name not in kinds.METHODS:
        raise CourseError(f"method.name: there is no method {name!r}. {near_matches(name, [*kinds.METHODS, LORAHUB])}")
    given = checked(TrainedSettings, given, "method").model_dump(exclude_unset=True)
    settings = kinds.parts_of(name, given)[name]
    return {key: value for key, value in settings.items() if key != "keep_base"}


def _check_base(base: BaseModel, method: str, rows: str) -> None:
    if (base.kind == "encoder-decoder") != (method == LORAHUB):
        known = [other.name for other in BASE_MODELS.values() if other.kind != base.kind]
        raise CourseError(
            f"model.name is {base.name!r}, a model of the kind {base.kind}, with which {method!r} does not run here: "
            f"take one of {', '.join(known)}."
        )
    if method != LORAHUB and rows not in SETS and Path(rows).suffix.lower() not in EXTENSIONS:
        raise CourseError(
            f"data.rows is {rows!r}, which is neither a set of rows nor a file that ends in {', '.join(EXTENSIONS)}. "
            f"{near_matches(rows, SETS)}"
        )


def twin(recipe: Recipe, profile: str) -> Recipe:
    """The same recipe with the sizes of a profile: base model, rows, block, batches, steps; "gpu24" gives itself.

    Method, its settings, weight decay, checkpointing and decay stay. The learning rate stays too unless the recipe
    gives its twin another one.
    """
    small = get_profile(profile)
    if small == BIG:
        return recipe
    big = recipe.profile
    kept = {key: getattr(big, key) for key in (*IN_PROFILE, "weight_decay", "gradient_checkpointing", "schedule")}
    changed = replace(
        small,
        **kept,
        learning_rate=recipe.twin.get("learning_rate", big.learning_rate),
        train_steps=recipe.twin.get("steps", small.train_steps) if small.name != "tiny" else small.train_steps,
    )
    rows = recipe.twin.get("rows", recipe.rows)
    if not recipe.composes and (small.name == "tiny" or rows == BIG.rows):
        rows = small.rows
    return replace(recipe, profile=changed, rows=rows)


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


def run(
    recipe: str | Path,
    profile: str | None = None,
    changes: Mapping[str, object] = NO_CHANGES,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    report: Callable[[str], None] = lambda _line: None,
    **options: object,
) -> FinetuneResult | TaskAdapter:
    """Carry out a recipe; `options` and the other arguments are those of `finetune`.

    `profile` "tiny" or "cpu" runs its small twin; None takes the environment's, else the machine it is for. `out` None
    is runs/ and the recipe's name. `report` gets what the planner says before a run on the recipe's own card.
    Raises CourseError: the recipe is wrong, it does not fit, a change does not apply to it, or whatever the run
        refuses.
    """
    recipe = twin(read(recipe), machine(profile))
    big = recipe.profile.name == BIG.name
    folder = Path(out) if out else out_folder(recipe.name, recipe.profile.name)
    if big:
        pretrained.check_device(recipe.profile)
        card = planned(recipe)
        room = f"{card.room / 1e9:.1f} GB to spare" if card.fits else f"{-card.room / 1e9:.1f} GB too much"
        report(f"{recipe.name}: about {card.needed / 1e9:.1f} GB, {room} on a {recipe.card_gb:g} GB card.")
    if recipe.composes:
        asked = {**changes, "data": data, "report_to": options.pop("report_to", None) or None}
        given = [name for name, value in asked.items() if value is not None]
        if given:
            raise CourseError(
                f"{recipe.name} trains nothing, so {', '.join(given)} can't be changed: edit a copy of it."
            )
        return _compose(recipe, folder, **options)
    method = {"method": recipe.method, "settings": recipe.settings}
    return finetune(recipe.profile, changes, **method, data=data or recipe.rows, out=folder, **options)


def _compose(recipe: Recipe, folder: Path, seed: int = 0, anyway: bool = False, progress: bool = True) -> TaskAdapter:
    profile, settings = recipe.profile, recipe.settings
    pretrained.check_device(profile)
    with memory_watched(
        profile.base_model, setting(recipe), profile.device, anyway=anyway, override="--anyway", only=("micro-batch",)
    ):
        return adapt_to(
            recipe.rows,
            SearchConfig(settings["optimizer"], settings["candidates"], seed, settings["composition"]),
            modules=_modules(recipe, folder),
            draw=settings["draw"],
            profile=profile,
            out=folder,
            progress=progress,
        )


def _modules(recipe: Recipe, folder: Path) -> list[str]:
    """The modules that the recipe draws: of the published ones, of the zoo, or random ones for another base."""
    profile, count, draw = recipe.profile, recipe.settings["modules"], recipe.settings["draw"]
    if profile.name == BIG.name:
        return random_candidates(zoo.published_modules(), count, seed=draw)
    known = stand_ins.names_for(profile)
    drawn = random_candidates(known, min(count, len(known)), seed=draw)
    if stand_ins.has_zoo(profile):
        return list(drawn)
    modules = stand_ins.modules_for(profile, drawn)
    return [str(adapter_files.write_adapter(file, folder / "modules" / file.path.name)) for file in modules]
