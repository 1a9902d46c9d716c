"""The command line as a user types it: output, exit codes, and no traceback for anything they can act on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lorahub_edu import __version__
from lorahub_edu.lora.adapter_files import read_adapter


def in_a_process(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "lorahub_edu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout, done.stderr


def test_version_and_help() -> None:
    assert in_a_process("--version")[1].strip() == __version__
    words = in_a_process("--help")[1]
    for command in ("doctor", "fetch", "run", "train"):
        assert command in words


def test_train_resumes_and_saves_an_adapter_that_loads(tmp_path: Path, lorahub_edu) -> None:
    out = tmp_path / "run"
    words = ("train", "--profile", "tiny", "--steps", "2", "--out", str(out), "--rank")
    code, first, problems = in_a_process(*words, "2")
    assert code == 0 and "Traceback" not in problems, problems
    assert "after 2 steps" in first
    adapter = read_adapter(out / "adapter")
    assert adapter.base_model == "tiny-random-llama"
    assert {config.rank for config in adapter.configs.values()} == {2}
    assert lorahub_edu(*words, "2")[1].splitlines()[-1] == first.splitlines()[-1]
    code, _, problems = lorahub_edu(*words, "4")
    assert code == 1 and "holds another run" in problems


def test_train_on_ones_own_rows(tmp_path: Path, lorahub_edu) -> None:
    rows = tmp_path / "mine.jsonl"
    line = '{"instruction": "Say %d.", "context": "", "response": "%d"}'
    rows.write_text("\n".join(line % (i, i) for i in range(30)))
    code, out, _ = lorahub_edu(
        "train", "--profile", "tiny", "--steps", "1", "--data", str(rows), "--out", str(tmp_path / "run")
    )
    assert code == 0 and "30 rows" in out
    rows.write_text('{"instruction": "Say it.", "input": ""}\n')
    code, _, err = lorahub_edu("train", "--profile", "tiny", "--data", str(rows), "--out", str(tmp_path / "bad"))
    assert code == 1 and "row 1" in err and "output" in err
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
def test_what_a_user_gets_wrong(tmp_path: Path, lorahub_edu, arguments: tuple[str, ...], words: str) -> None:
    if arguments[0] == "train":
        arguments = (*arguments, "--out", str(tmp_path / "run"))
    code, _, err = lorahub_edu(*arguments)
    assert code in (1, 2)
    assert words in err.replace("\n", " ")
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_process_of_its_own_says_the_same(tmp_path: Path, lorahub_edu) -> None:
    words = ("train", "--profile", "tinny", "--out", str(tmp_path / "run"))
    code, out, err = in_a_process(*words)
    assert (code, out, err) == lorahub_edu(*words) and code == 1 and "Traceback" not in err


def test_fetch_offline_with_an_empty_cache_lists_every_place(lorahub_edu) -> None:
    code, _, err = lorahub_edu("fetch", "--offline")
    assert code == 1
    for words in ("local folder", "cache", "offline", "SHA-256 b179c9523d0e", "LORAHUB_EDU_LOCAL"):
        assert words in err
    assert lorahub_edu("fetch", "--profile", "tiny")[0] == 0


def test_doctor_exit_codes(lorahub_edu) -> None:
    code, out, _ = lorahub_edu("doctor", "--profile", "tiny")
    assert code == 0, out
    code, out, _ = lorahub_edu("doctor", "--profile", "cpu")
    assert code == 1
    line = next(line for line in out.splitlines() if line.strip().lower().find("model") >= 0)
    assert "lorahub-edu fetch" in out and line
