"""A recipe carried out: an adapter trained, or modules composed, on the machine it is for or as its small twin."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lorahub_edu.errors import CourseError
from lorahub_edu.hub import stand_ins, zoo
from lorahub_edu.hub.candidates import random_candidates
from lorahub_edu.hub.task_adapter import Done, adapt_to
from lorahub_edu.lora import adapter_files
from lorahub_edu.memory.guard import memory_watched
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import ENVIRONMENT_VARIABLE
from lorahub_edu.runs.finetune import FinetuneResult, finetune
from lorahub_edu.runs.recipes import BIG, Recipe, planned, read, setting, twin
from lorahub_edu.training import processes


def machine(profile: str | None = None) -> str:
    """The profile that a recipe runs with: the one that is named, the environment's, else that of its own GPU."""
    return profile or os.environ.get(ENVIRONMENT_VARIABLE) or BIG


def run(
    recipe: str | Path | Recipe,
    profile: str | None = None,
    *,
    out: str | Path | None = None,
    seed: int = 0,
    anyway: bool = False,
    offline: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = lambda _line: None,
    **changes: object,
) -> FinetuneResult | Done:
    """Carry out a recipe.

    Args:
        recipe: what `recipes.find` takes, or a recipe that was read.
        profile: "tiny" or "cpu" runs its small twin; None takes the environment's, else the machine it is for.
        out: a folder for checkpoints, log and adapter; None is runs/ and the recipe's name. A run that lies there is
            continued.
        seed: of everything that is drawn.
        anyway: run even if the planner says that it does not fit the GPU.
        offline: never open a connection.
        progress: show bars.
        report: called with what the planner says before a run on the recipe's own card.
        changes: any other of `finetune`'s arguments that is not None, such as `steps` or `data`.

    Returns:
        What `finetune` or `adapt_to` returns.

    Raises:
        CourseError: the recipe is wrong, it does not fit, a change does not apply to it, or whatever the run refuses.
    """
    found = recipe if isinstance(recipe, Recipe) else read(recipe)
    found = twin(found, machine(profile))
    big = found.profile.name == BIG
    folder = Path(out) if out else Path("runs") / (found.name if big else f"{found.name}-{found.profile.name}")
    if big and processes.is_first():
        report(_plan_in_words(found))
    changes = {name: value for name, value in changes.items() if value is not None}
    if found.composes:
        if changes:
            raise CourseError(
                f"{found.name} trains nothing, so {', '.join(changes)} can't be changed: edit a copy of it."
            )
        return _compose(found, folder, seed, anyway, progress)
    data = None if found.rows in ("alpaca", "tiny") else found.rows
    return finetune(
        found.profile,
        **{
            "data": data, "out": folder, "seed": seed, "method": found.method, "settings": found.settings,
            "schedule": found.decay, "revision": found.revision, "anyway": anyway, "offline": offline,
            "progress": progress,
        } | changes,
    )  # fmt: skip


def _plan_in_words(recipe: Recipe) -> str:
    """What the planner says of a recipe on the card that it is for."""
    found = planned(recipe)
    room = f"{found.room / 1e9:.1f} GB to spare" if found.fits else f"{-found.room / 1e9:.1f} GB too much"
    return f"{recipe.name}: about {found.needed / 1e9:.1f} GB, {room} on a {recipe.card_gb:g} GB card."


def _compose(recipe: Recipe, folder: Path, seed: int, anyway: bool, progress: bool) -> Done:
    """LoRAHub: the recipe's modules composed for its task."""
    profile, settings = recipe.profile, recipe.settings
    pretrained.check_device(profile)
    with memory_watched(
        profile.base_model, setting(recipe), profile.device, anyway=anyway, override="--anyway", only=("micro-batch",)
    ):
        return adapt_to(
            recipe.rows,
            modules=_modules(recipe, folder),
            optimizer=settings["optimizer"],
            composition=settings["composition"],
            budget=settings["candidates"],
            draw=settings["draw"],
            seed=seed,
            profile=profile.name,
            base_model=profile.base_model,
            out=folder,
            progress=progress,
        )


def _modules(recipe: Recipe, folder: Path) -> list[str]:
    """The modules that the recipe draws: of the published ones, of the zoo, or random ones for another base."""
    profile, count, draw = recipe.profile, recipe.settings["modules"], recipe.settings["draw"]
    if profile.name == BIG:
        return random_candidates(zoo.published_modules(), count, seed=draw)
    known = stand_ins.names_for(profile)
    chosen = random_candidates(known, min(count, len(known)), seed=draw)
    if stand_ins.has_zoo(profile):
        return list(chosen)
    made = [
        adapter_files.write_adapter(file, folder / "modules" / file.path.name)
        for file in stand_ins.modules_for(profile, chosen)
    ]
    return [str(path) for path in made]
