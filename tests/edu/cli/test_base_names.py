"""One vocabulary of base models: a name, a name on the hub, or a folder; and what an adapter says of its base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import hub_modules
import pytest
from typer.testing import CliRunner

from lorahub_edu.cli.app import app
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.lora.adapter_files import CONFIG_FILE, read_adapter
from lorahub_edu.models import profiles, tiny
from lorahub_edu.spectra.updates import base_of

COMMANDS = {
    "report": ("--sequences", "2"),
    "intruders": (),
    "adapt": ("--task", "mine.jsonl", "--budget", "6", "--out", "run", "--modules"),
}
MEASURED = {"report": "plain text: loss", "intruders": "ε = 0.5:", "adapt": "loss"}


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text('{"input": "cold", "output": "hot"}\n')
    return hub_modules.write(hub_modules.random_module(tiny.model(), 0), tmp_path)


def name_base(adapter: Path, name: str | None) -> Path:
    file = adapter / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": name}))
    return adapter


def run(command: str, adapter: Path, *options: str) -> str:
    done = CliRunner().invoke(app, [command, *COMMANDS[command], str(adapter), "--profile", "tiny", *options])
    if done.exception:
        raise done.exception
    return done.output


def measured(shown: str, command: str) -> str:
    """The line that depends on the base."""
    (line,) = (line for line in shown.splitlines() if line.strip(" │").startswith(MEASURED[command]))
    return line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.model().save_pretrained(tmp_path / "my-base")
    tiny.tokenizer().save_pretrained(tmp_path / "my-base")
    return tmp_path / "my-base"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_folder_for_the_base_of_an_unknown_one(adapter: Path, folder: Path, command: str) -> None:
    name_base(adapter, "someone/a-llama")
    if command != "adapt":  # whose base is the profile's
        with pytest.raises(CourseError, match=r"someone/a-llama.*none of this course's base models.*--base"):
            run(command, adapter)
    expected = run(command, adapter, "--base", tiny.NAME)
    for base in (str(folder), f"{folder}/", "my-base"):
        shutil.rmtree("run", ignore_errors=True)  # the search of another base would not go on
        shown = run(command, adapter, "--base", base)
        assert measured(shown, command) == measured(expected, command)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_base(adapter: Path, command: str) -> None:
    with pytest.raises(CourseError, match="no base model 'tiny-random-lama', nor a folder.*'tiny-random-llama'"):
        run(command, adapter, "--base", "tiny-random-lama")


def test_modules_of_two_names_have_the_base_that_is_given(adapter: Path, tmp_path: Path) -> None:
    other = hub_modules.write(hub_modules.random_module(tiny.model(), 1, base=("other", None)), tmp_path)
    both = Path(f"{adapter},{other}")
    with pytest.raises(CourseError, match="different base models.*If it is one base, --base names it"):
        run("adapt", both)
    run("adapt", both, "--base", tiny.NAME)
    assert read_adapter(tmp_path / "run" / "adapter").base_model == tiny.NAME


@pytest.mark.parametrize(
    ("name", "base", "said"),
    [
        (None, "tiny-random-llama", True),
        ("", "tiny-random-llama", True),
        ("./", "tiny-random-llama", True),
        ("/data/checkpoint-500", "tiny-random-llama", True),
        ("tiny-random-llama/", "tiny-random-llama", False),
        ("/data/open_llama_7b_v2", "open_llama_7b_v2", True),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct", True),
        ("meta-llama/Llama-2-7b-hf", "Llama-2-7b", False),
    ],
)
def test_the_base_that_an_adapter_names(adapter: Path, caplog, name: str | None, base: str, said: bool) -> None:
    assert base_of(read_adapter(name_base(adapter, name)), "tiny") == base
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == said and all(f"{base} is taken" in message for message in messages)


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CourseError, match="no model's configuration"):
        profiles.get_base(str(tmp_path))
