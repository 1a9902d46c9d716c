"""The house keeps its floors, its doors agree, and nothing in it depends on one machine."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import house  # noqa: E402

PACKAGE = ROOT / "lorahub_edu"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# The floors of `lorahub_edu`. A room imports only rooms on lower floors, or those before it on its own floor.
FLOORS = {
    "ground": ["errors", "files", "results"],
    "things": ["lora", "data", "models"],
    "work": ["training", "scoring", "evaluation"],
    "subjects": ["methods", "memory", "spectra", "forgetting", "hub"],
    "showing": ["runs", "show"],
    "face": ["cli"],
}
# Which of the other packages each package may import.
MAY_IMPORT = {
    "lorahub_edu": set(),
    "lorahub_checks": {"lorahub_edu"},
    "lorahub_studies": {"lorahub_edu"},
    "lorahub_grader": {"lorahub_edu", "lorahub_checks"},
}
# Grading a class is many jobs, too: what hands jobs to workers is all that the grader knows of the studies.
SHARED = {"lorahub_grader": {("lorahub_studies", "jobs"), ("lorahub_studies", "cluster")}}
ORDER = {room: index for index, room in enumerate(room for floor in FLOORS.values() for room in floor)}
FILES = {str(path.relative_to(ROOT)): path for name in MAY_IMPORT for path in sorted((ROOT / name).rglob("*.py"))}


def imported(path: Path) -> set[tuple[str, ...]]:
    """The modules of the four packages that a file imports, as their dotted names' parts."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MAY_IMPORT:
            names |= {(*node.module.split("."), alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {tuple(a.name.split(".")) for a in node.names if a.name.partition(".")[0] in MAY_IMPORT}
    return names


def test_every_room_is_on_a_floor() -> None:
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms - {"__init__", "__main__"} == set(ORDER)


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file: str) -> None:
    package, room = Path(file).parts[0], Path(file).with_suffix("").parts[1]
    for other, *rest in imported(FILES[file]):
        if other != package:
            shared = (other, *rest[:1]) in SHARED.get(package, ())
            assert other in MAY_IMPORT[package] or shared, f"{package} may not import {other}"
        elif package == "lorahub_edu" and rest[0] in ORDER and room in ORDER:
            assert ORDER[rest[0]] <= ORDER[room], f"{room} may not import {rest[0]}, which stands above it"


def test_no_import_hides_a_circle() -> None:
    """A module is imported by its name only where the house says so: the checks, and what an answer asks for."""
    named = {f for f, path in FILES.items() if "import_module(" in path.read_text(encoding="utf-8")}
    assert named == {"lorahub_edu/show/check.py", "lorahub_checks/problems.py", "lorahub_grader/inside/answers.py"}


def test_the_page_of_the_house_is_what_the_tool_writes() -> None:
    page = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    assert house.with_floors(page, house.floors(ROOT)) == page, "run python tools/house.py --write"


def test_a_room_says_in_which_order_to_read_its_files() -> None:
    for room in PACKAGE.glob("*/__init__.py"):
        text = ast.get_docstring(ast.parse(room.read_text(encoding="utf-8"))) or ""
        missing = {path.stem for path in room.parent.glob("[!_]*.py") if f"`{path.stem}`" not in text}
        assert not missing, f"{room.parent.name}/__init__.py does not name {missing}"


def test_rooms_stay_readable_in_one_sitting() -> None:
    long = {name: lines for name, path in FILES.items() if (lines := len(path.read_text().splitlines())) > 330}
    assert not long


def test_a_lesson_imports_few_modules() -> None:
    many = {name: row["modules"] for name, row in house.lessons(ROOT).items() if row["modules"] > 12}
    assert not many


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


# Installed for another program or library, which starts or imports them by itself.
NOT_IMPORTED = {
    "accelerate": "transformers' Trainer, a peer of the benchmarks",
    "bokeh": "Dask draws its dashboard with it",
    "gguf": "transformers reads the model's file with it",
    "ipykernel": "Jupyter starts it",
    "jupyterlab": "make lab starts it",
    "playwright": "the browser test asks for it by name",
    "pytest-xdist": "make test hands it options",
    "ruff": "make lint starts it",
    "Sphinx": "make book starts it",
    "myst-nb": "Sphinx reads notebooks with it",
    "sphinx-book-theme": "Sphinx draws pages with it",
    "tensorboard": "torch.utils.tensorboard writes for it",
    "sentencepiece": "transformers reads tokenizers of LLaMA and T5 with it",
}


def test_nothing_is_installed_that_is_not_used() -> None:
    everywhere = [path for folder in ("tests", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    for name, requirements in {**PROJECT["optional-dependencies"], "dependencies": PROJECT["dependencies"]}.items():
        files = [*FILES.values(), *([] if name == "dependencies" else everywhere)]
        used = {line.partition(".")[0] for path in files for line in every_import(path)}
        for requirement in requirements:
            package = re.match(r"[\w.-]+", requirement).group()
            module = {"pyyaml": "yaml"}.get(package, package.replace("-", "_"))
            assert module in used or package in NOT_IMPORTED, f"{name} names {package}, which nothing imports"


def every_import(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_extras_are_those_the_readme_promises() -> None:
    assert set(PROJECT["optional-dependencies"]) == {"gpu", "teach", "cluster", "book", "bench", "dev"}


def test_profiles_have_the_sources_settings() -> None:
    from lorahub_edu.models.profiles import PROFILES

    assert set(PROFILES) == {"tiny", "cpu", "gpu24"}
    big = PROFILES["gpu24"]
    # Raschka 2023, the LoRA listing: lr 3e-4, batch 128 in micro-batches of 4, block 512, r 8, alpha 16, dropout 0.05
    assert (big.learning_rate, big.batch_size, big.micro_batch_size, big.block_size) == (3e-4, 128, 4, 512)
    assert (big.rank, big.alpha, big.dropout, big.warmup_steps, big.weight_decay) == (8, 16.0, 0.05, 100, 0.0)
    assert big.train_steps == -(-(50_000 * 3 // 4) // 32)  # lit-llama's iterations of 4 rows
    assert (big.train_rows, big.validation_rows) == (49_759, 2_000)
