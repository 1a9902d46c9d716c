"""The house keeps its floors, its doors agree, and nothing in it depends on one machine."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lorahub_edu"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# A room may import only rooms on lower floors, or those listed before it on its own floor.
FLOORS = [
    ["errors"],
    ["profiles", "claims"],
    ["downloads", "package_index", "catalogue", "assets", "results", "lora", "progress"],
    ["data.alpaca", "data.batching", "data.fewshot", "adapters", "tiny"],
    ["hub.space", "hub.cmaes", "hub.nevergrads", "hub.searches"],
    ["data.word_pools", "data.task_rows", "data.task_recipes", "data.tasks", "data.sequence_tasks", "data.bbh"],
    ["adapter_files", "processes", "base_models", "models", "checkpoints", "contexts", "losses", "scoring"],
    ["training", "evaluation", "doctor"],
    [
        "methods.bottleneck",
        "methods.quantised",
        "methods.kinds",
        "methods.attached",
        "methods.budget",
        "methods.attach",
    ],
    ["methods.files"],
    ["spectra.measures", "spectra.weights", "spectra.updates", "spectra.bases", "spectra.subspace", "spectra.margins"],
    ["spectra.secular", "spectra.dense", "spectra.intruders", "spectra.interventions"],
    [
        "memory.tracker",
        "memory.fake",
        "memory.stand_ins",
        "memory.preparing",
        "memory.steps",
        "memory.predict",
        "memory.allowance",
        "memory.advice",
        "memory.shapes",
    ],
    ["findings", "memory.report", "memory.guard", "finetune", "recipe_values", "recipes", "llamafactory"],
    ["methods.overview", "methods.runs", "methods.sweep", "methods.reading"],
    ["forgetting.hidden", "forgetting.tails", "forgetting.texts", "forgetting.sweep", "forgetting.study"],
    ["forgetting.continual", "forgetting.interventions"],
    ["forgetting.correlation", "forgetting.reading", "forgetting.effects", "forgetting.plans", "forgetting.studies"],
    ["hub.gradient", "hub.compose", "hub.population", "hub.candidates", "hub.zoo", "hub.stand_ins"],
    ["hub.zoo_training", "hub.workers", "hub.history", "hub.adapt", "hub.baselines"],
    ["hub.cells", "hub.sweep", "hub.reading", "hub.recipe", "hub.bbh_study"],
    ["spectra.examine", "hub.composed_spectra", "adapter_report", "recipe_runs"],
    [
        "plots",
        "checks",
        "checks.objects",
        "checks.graded",
        "checks.predictions",
        "checks.draws",
        "checks.lesson00",
        "checks.lesson01",
        "checks.lesson02",
        "checks.lesson02_models",
        "checks.lesson02_serving",
        "checks.lesson03",
        "checks.lesson03_rows",
        "checks.lesson03_training",
        "checks.lesson03_loop",
        "checks.lesson04",
        "checks.lesson04_methods",
        "checks.lesson04_sizes",
        "checks.lesson05",
        "checks.lesson06",
        "checks.lesson06_modules",
        "checks.lesson07",
        "checks.lesson07_cmaes",
        "checks.lesson07_search",
        "checks.lesson08",
        "checks.lesson08_updates",
        "checks.lesson09",
        "checks.lesson09_studies",
        "checks.lesson10",
    ],
    ["grading.protocol", "grading.platforms", "grading.namespaces", "grading.answers", "grading.zygote"],
    [
        "grading.sandbox.no_checks",
        "grading.sandbox.process",
        "grading.sandbox.bubblewrap",
        "grading.sandbox.bare",
        "grading.sandbox.containers",
        "grading.sandbox.choose",
    ],
    ["grading.assignments", "grading.lint", "grading.overview", "grading.repair", "grading.collect"],
    ["grading.remote", "grading.split", "grading.journal", "grading.worker"],
    ["grading.gradebook", "grading.feedback", "grading.runner"],
    ["grading.gradescope", "grading.exports"],
    ["widgets", "lessons", "progress_overview"],
    [
        "terminal",
        "cli_grading",
        "cli_hub",
        "cli_memory",
        "cli_methods",
        "cli_report",
        "cli_forgetting",
        "cli_spectra",
        "cli",
    ],
]
PACKAGES = {
    "",
    "data",
    "forgetting",
    "grading",
    "grading.sandbox",
    "hub",
    "memory",
    "methods",
    "spectra",
}  # folders whose __init__ holds nothing
ORDER = {room: index for index, room in enumerate(room for floor in FLOORS for room in floor)}


def rooms() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name not in PACKAGES:
            found[name] = path
    return found


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lorahub_edu":
            base = node.module.removeprefix("lorahub_edu").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                names.add(full if full in ORDER else base)
    return names - PACKAGES


def test_every_room_is_on_a_floor() -> None:
    assert set(rooms()) == set(ORDER)


@pytest.mark.parametrize("room", sorted(ORDER))
def test_imports_point_down(room: str) -> None:
    upward = {name for name in imported(rooms()[room]) if ORDER[name] >= ORDER[room] and name != room}
    # checks/__init__ loads a lesson's file by name when it is asked for; nothing may import one from below
    assert not upward


def test_rooms_stay_readable_in_one_sitting() -> None:
    long = {name: lines for name, path in rooms().items() if (lines := len(path.read_text().splitlines())) > 330}
    assert not long


def test_the_conda_door_leads_to_the_same_project() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python"))
    assert python == "python" + PROJECT["requires-python"]
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    editable = next(line for line in pip if line.startswith("-e"))
    extras = re.fullmatch(r"-e \.\[(.*)\]", editable).group(1).split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f'-e ".[{",".join(extras)}]"' in makefile  # both doors install the same extras
    assert "--constraint constraints.txt" in pip


def test_constraints_are_portable_and_within_the_tested_ranges() -> None:
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert "torch==2.13.0" in lines
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in lines), "no paths, no +cpu"
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.split("==") for line in lines)}
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        version = pinned[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(version), f"{requirement} does not admit the tested {version}"


def test_extras_are_those_the_readme_promises() -> None:
    assert set(PROJECT["optional-dependencies"]) == {"gpu", "teach", "cluster", "docs", "dev"}


def test_profiles_have_the_sources_settings() -> None:
    from lorahub_edu.profiles import PROFILES

    assert set(PROFILES) == {"tiny", "cpu", "gpu24"}
    big = PROFILES["gpu24"]
    # Raschka 2023, the LoRA listing: lr 3e-4, batch 128 in micro-batches of 4, block 512, r 8, alpha 16, dropout 0.05
    assert (big.learning_rate, big.batch_size, big.micro_batch_size, big.block_size) == (3e-4, 128, 4, 512)
    assert (big.rank, big.alpha, big.dropout, big.warmup_steps, big.weight_decay) == (8, 16.0, 0.05, 100, 0.0)
    assert big.train_steps * big.batch_size // big.micro_batch_size == 62_400  # the source's iterations
    assert (big.train_rows, big.validation_rows) == (49_759, 2_000)
