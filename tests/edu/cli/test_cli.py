"""The command line as a user types it: output, exit codes, and no traceback for anything they can act on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorahub_edu import __version__
from lorahub_edu.files import assets
from lorahub_edu.lora.adapter_files import read_adapter

COMMAND = [sys.executable, "-m", "lorahub_edu"]


def lorahub_edu(*arguments: str, home: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    extra = {assets.HOME_VARIABLE: str(home)} if home else {}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=240, env=os.environ | extra | environment
    )


def test_version_and_help() -> None:
    assert lorahub_edu("--version").stdout.strip() == __version__
    words = lorahub_edu("--help").stdout
    for command in ("doctor", "fetch", "run", "train"):
        assert command in words


def test_train_resumes_and_saves_an_adapter_that_loads(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = lorahub_edu("train", "--profile", "tiny", "--steps", "2", "--rank", "2", "--out", str(out))
    assert first.returncode == 0, first.stderr
    assert "after 2 steps" in first.stdout
    adapter = read_adapter(out / "adapter")
    assert adapter.base_model == "tiny-random-llama"
    assert {config.rank for config in adapter.configs.values()} == {2}
    again = lorahub_edu("train", "--profile", "tiny", "--steps", "2", "--rank", "2", "--out", str(out))
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    other = lorahub_edu("train", "--profile", "tiny", "--steps", "2", "--rank", "4", "--out", str(out))
    assert other.returncode == 1 and "holds another run" in other.stderr and "Traceback" not in other.stderr


def test_train_on_ones_own_rows(tmp_path: Path) -> None:
    rows = tmp_path / "mine.jsonl"
    line = '{"instruction": "Say %d.", "context": "", "response": "%d"}'
    rows.write_text("\n".join(line % (i, i) for i in range(30)))
    done = lorahub_edu(
        "train", "--profile", "tiny", "--steps", "1", "--data", str(rows), "--out", str(tmp_path / "run")
    )
    assert done.returncode == 0 and "30 rows" in done.stdout
    rows.write_text('{"instruction": "Say it.", "input": ""}\n')
    done = lorahub_edu("train", "--profile", "tiny", "--data", str(rows), "--out", str(tmp_path / "bad"))
    assert done.returncode == 1 and "row 1" in done.stderr and "output" in done.stderr
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--profile", "tinny"), "Did you mean 'tiny'"),
        (("train", "--profile", "tiny", "--data", "absent.json"), "absent.json"),
        (("train", "--profile", "tiny", "--rank", "0"), "greater than or equal to 1"),
        (("train", "--profile", "tiny", "--rank", "500"), "above the size of"),
        (("train", "--profile", "tiny", "--batching", "paked"), "'paked'"),
        (("train", "--profile", "tiny", "--steps", "0"), "greater than or equal to 1"),
        (("run", "--profile", "tiny"), "Which lesson?"),
        (("run", "99"), "no lesson '99'"),
        (("fetch", "--from", "moon"), "'moon' is not one of"),
        (("fetch", "--from", "moon", "--profile", "tiny"), "'moon' is not one of"),
    ],
)
def test_what_a_user_gets_wrong(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    if arguments[0] == "train":
        arguments = (*arguments, "--out", str(tmp_path / "run"))
    done = lorahub_edu(*arguments, home=tmp_path / "home")
    assert done.returncode in (1, 2)
    assert words in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_fetch_offline_with_an_empty_cache_lists_every_place(tmp_path: Path) -> None:
    done = lorahub_edu("fetch", "--offline", home=tmp_path / "home")
    assert done.returncode == 1
    for words in ("local folder", "cache", "offline", "SHA-256 b179c9523d0e", "LORAHUB_EDU_LOCAL"):
        assert words in done.stderr
    assert lorahub_edu("fetch", "--profile", "tiny", home=tmp_path / "home").returncode == 0


def test_doctor_exit_codes(tmp_path: Path) -> None:
    ready = lorahub_edu("doctor", "--profile", "tiny", home=tmp_path / "home")
    assert ready.returncode == 0, ready.stdout
    missing = lorahub_edu("doctor", "--profile", "cpu", home=tmp_path / "home")
    assert missing.returncode == 1
    line = next(line for line in missing.stdout.splitlines() if line.strip().lower().find("model") >= 0)
    assert "lorahub-edu fetch" in missing.stdout and line
