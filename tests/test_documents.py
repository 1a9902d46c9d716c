"""What README and docs tell a reader to type exists, parses, and runs offline with the tiny model."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from lorahub_edu.cli import app
from lorahub_edu.files import assets

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELLS = ("sh", "powershell")
UsageError = typer.BadParameter.__base__  # of the click that typer uses
# Programs that another project documents.
OTHERS = ("conda", "dask", "docker", "nbgrader", "pip", "podman", "py", "pytest", "python", "sudo")


def fenced(page: Path) -> list[str]:
    """The commands of a page's fenced blocks, without their comments and the settings before them."""
    blocks = re.findall(r"^ *```(\w+)\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for kind, block in blocks if kind in SHELLS for line in block.splitlines()]
    return [line for line in (re.sub(r"^(?:\w+=\S+ )+|\s*(?<!\S)#.*", "", line).strip() for line in lines) if line]


def inline(page: Path) -> list[str]:
    """The whole commands of lorahub-edu in a page's running text."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(found.split()) for found in re.findall(r"`(lorahub-edu [^`]+)`", text)]


def parses(command: str, named: bool = False) -> None:
    """Raise UsageError if a command of lorahub-edu does not exist, or if an option or an argument is wrong.

    In running text a command may be only `named`, without what it needs.
    """
    known, words = typer.main.get_command(app.app), shlex.split(command)[1:]
    if "--help" in words:
        return
    assert words[0] in known.commands, f"there is no command {command!r}"
    while words and words[0] in getattr(known, "commands", {}):
        known = known.commands[words.pop(0)]
    if not words and named:
        return
    known.make_context(known.name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists_and_parses(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"\S+\.jsonl?\b", page.read_text(encoding="utf-8")):
        if "/" not in name:
            Path(name).touch()  # a reader's own rows
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        Path("slurm.yaml").write_text(block, encoding="utf-8")
    for command in inline(page):
        parses(command, named=True)
    for command in fenced(page):
        first, *rest = shlex.split(command, posix="\\" not in command)
        program = re.split(r"[\\/]", first)[-1]
        if program == "lorahub-edu":
            parses(" ".join([program, *map(shlex.quote, rest)]))
        elif program == "make":
            assert rest[0] in targets, command
        else:
            assert program in OTHERS, f"{page.name}: no rule says what {command!r} is"


@pytest.mark.parametrize("command", ["lorahub-edu nosuch", "lorahub-edu run 01 --nosuch", "lorahub-edu init"])
def test_a_wrong_command_would_be_found(command: str) -> None:
    with pytest.raises((AssertionError, UsageError)):
        parses(command)


# Commands that do not run here, by how they begin, and why.
NOT_RUN = {
    "make": "installs everything; .ci/run is the same",
    "pip": "installs from the package index",
    "python": "makes an environment",
    "py": "is of Windows",
    ".venv": "needs the environment that the lines above it make",
    "conda": "is not installed everywhere",
    "sudo": "changes the system",
    "docker": "needs Docker",
    "dask": "starts a server: tests/studies/test_cluster_kills.py",
    "lorahub-edu doctor": "asks servers: tests/edu/cli/test_doctor.py",
    "lorahub-edu lab": "starts a server: tests/edu/files/test_course.py",
    "lorahub-edu fetch": "needs the network: tests/edu/files",
    "lorahub-edu run": "takes a kernel: tests/notebooks runs every lesson",
    "lorahub-edu train llama_7b_lora_alpaca --profile cpu": "takes minutes with the real model: tests/edu/runs",
    "lorahub-edu export-llamafactory": "needs Alpaca's 52,002 rows: tests/edu/runs/test_llamafactory.py",
    "lorahub-edu adapt sweep": "takes hours: tests/studies",
    "lorahub-edu methods sweep": "takes hours: tests/studies",
    "lorahub-edu bbh": "needs FLAN-T5-large: tests/studies",
    "lorahub-edu train --report-to": "needs TensorBoard: tests/edu/runs/test_reporting.py",
    "lorahub-edu export runs/mine/adapter": "needs the real model: tests/edu/runs/test_export.py",
    "lorahub-edu chat": "talks to a person: tests/edu/show/test_chat.py",
    "lorahub-edu report": "needs the real model: tests/edu/cli/test_cli_report.py",
    "lorahub-edu intruders": "needs the real model: tests/edu/cli/test_cli_spectra.py",
    "lorahub-edu adapt": "needs modules of a base: tests/edu/cli/test_cli_hub.py",
}
COMMANDS = list(dict.fromkeys(command for page in PAGES for command in fenced(page)))
RUN = [command for command in COMMANDS if not any(command.startswith(start) for start in NOT_RUN)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder with own rows; the commands of a page follow one another in it."""
    folder = tmp_path_factory.mktemp("reader")
    rows = [{"instruction": "Say it.", "input": str(i), "output": str(i)} for i in range(30)]
    (folder / "my.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", RUN)
def test_it_runs(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv(assets.HOME_VARIABLE, str(folder / "home"))
    monkeypatch.setenv("LORAHUB_EDU_PROFILE", "tiny")
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    try:
        app.main()
    except SystemExit as ended:
        assert not ended.code, capsys.readouterr().err


def test_every_reason_is_needed() -> None:
    assert {start for start in NOT_RUN if any(command.startswith(start) for command in COMMANDS)} >= {
        start for start in NOT_RUN if start.startswith("lorahub-edu")
    }
    assert len(RUN) >= 7


def test_what_a_page_links_to_is_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#|\.\./\.\./actions)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_picture_is_drawn_from_the_results(tmp_path: Path) -> None:
    import picture

    panels = picture.bars()
    picture.draw(tmp_path / "course.png")
    assert [len(panel) for panel in panels] == [6, 6, 6] and picture.PICTURE.is_file()
    ranks = json.loads((ROOT / "results" / "intruders_ranks.json").read_text(encoding="utf-8"))["summary"]["arms"]
    assert panels[2]["LoRA, rank 64"] in {tuple(arm["intruders"]) for arm in ranks}


def test_ci_runs_the_same_everywhere() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert [step["run"] for step in jobs["linux"]["steps"] if "run" in step] == [".ci/run"]
    elsewhere = jobs["elsewhere"]
    assert {name.partition("-")[0] for name in elsewhere["strategy"]["matrix"]["os"]} == {"macos", "windows"}
    for command in (step["run"] for step in elsewhere["steps"] if "run" in step):
        if command.startswith("lorahub-edu"):
            parses(command)
        for path in re.findall(r"tests/\S+", command):
            assert (ROOT / path).exists()


def test_doors_in_the_browser_install_what_the_project_says() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert container["postCreateCommand"] == "make setup" and container["hostRequirements"]["cpus"] == 2
    assert all((ROOT / name).is_file() for name in container["customizations"]["codespaces"]["openFiles"])
    python = re.search(r"python:(3\.\d+)$", container["image"]).group(1)
    binder = ROOT / "binder"
    assert (binder / "runtime.txt").read_text(encoding="utf-8").strip() == f"python-{python}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={python}"
    constraint, editable = (binder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert (binder / constraint.removeprefix("--constraint ")).is_file() and editable == "--editable ."
    for command in (binder / "postBuild").read_text(encoding="utf-8").splitlines():
        if command.startswith("lorahub-edu"):
            parses(command)
