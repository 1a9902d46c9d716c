"""A recipe carried out: an adapter trained, or modules composed, on the machine it is for or as its small twin."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lorahub_edu.errors import CourseError
from lorahub_edu.hub import stand_ins, zoo
from lorahub_edu.hub.adapt import SearchConfig
from lorahub_edu.hub.candidates import random_candidates
from lorahub_edu.hub.task_adapter import TaskAdapter, adapt_to
from lorahub_edu.lora import adapter_files
from lorahub_edu.memory.setting import memory_watched
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import ENVIRONMENT_VARIABLE
from lorahub_edu.runs.finetune import Changes, FinetuneResult, finetune
from lorahub_edu.runs.recipe_file import BIG
from lorahub_edu.runs.recipes import Recipe, planned, read, setting, twin
from lorahub_edu.training import processes


def machine(profile: str | None = None) -> str:
    """The profile that a recipe runs with: the one that is named, the environment's, else that of its own GPU."""
    return profile or os.environ.get(ENVIRONMENT_VARIABLE) or BIG.name


def run(
    recipe: str | Path,
    profile: str | None = None,
    changes: Changes = Changes(),  # noqa: B008 - frozen
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    anyway: bool = False,
    offline: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = lambda _line: None,
) -> FinetuneResult | TaskAdapter:
    """Carry out a recipe; the arguments are those of `finetune`, with the recipe in the profile's place.

    Args:
        profile: "tiny" or "cpu" runs its small twin; None takes the environment's, else the machine it is for.
        out: None is runs/ and the recipe's name.
        report: called with what the planner says before a run on the recipe's own card.

    Raises:
        CourseError: the recipe is wrong, it does not fit, a change does not apply to it, or whatever the run refuses.
    """
    chosen = twin(read(recipe), machine(profile))
    big = chosen.profile.name == BIG.name
    folder = Path(out) if out else Path("runs") / (chosen.name if big else f"{chosen.name}-{chosen.profile.name}")
    if big and processes.is_first():
        plan = planned(chosen)
        room = f"{plan.room / 1e9:.1f} GB to spare" if plan.fits else f"{-plan.room / 1e9:.1f} GB too much"
        report(f"{chosen.name}: about {plan.needed / 1e9:.1f} GB, {room} on a {chosen.card_gb:g} GB card.")
    if chosen.composes:
        given = [*changes.given(), *(["data"] if data else [])]
        if given:
            raise CourseError(
                f"{chosen.name} trains nothing, so {', '.join(given)} can't be changed: edit a copy of it."
            )
        return _compose(chosen, folder, seed, anyway, progress)
    changes = replace(changes, schedule=changes.schedule or chosen.decay, revision=changes.revision or chosen.revision)
    return finetune(
        chosen.profile,
        changes,
        method=chosen.method,
        settings=chosen.settings,
        data=data or chosen.data,
        out=folder,
        seed=seed,
        anyway=anyway,
        offline=offline,
        progress=progress,
    )


def _compose(recipe: Recipe, folder: Path, seed: int, anyway: bool, progress: bool) -> TaskAdapter:
    """LoRAHub: the recipe's modules composed for its task."""
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
    chosen = random_candidates(known, min(count, len(known)), seed=draw)
    if stand_ins.has_zoo(profile):
        return list(chosen)
    modules = stand_ins.modules_for(profile, chosen)
    return [str(adapter_files.write_adapter(file, folder / "modules" / file.path.name)) for file in modules]
