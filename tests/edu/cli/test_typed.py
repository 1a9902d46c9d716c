"""What was typed is answered before torch is loaded, and a place to write is looked at before any work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from lorahub_edu.cli import app, terminal
from lorahub_edu.errors import CourseError
from lorahub_edu.files.save import one_writer

CHECKOUT = Path(__file__).resolve().parents[3]
# Each line: what is typed, and what is said. What takes seconds to load are torch, transformers and Jupyter.
WRONG = """
run foo | no lesson 'foo'
plan --model nosuch | no model 'nosuch'
plan --model llama-7b --method nosuch | no method 'nosuch'
plan --model llama-7b --dtype nosuch | --dtype
plan --model llama-7b --rank 0 | --rank
plan --model llama-7b --targets , | names nothing
plan --model llama-7b --gpu nan | '--gpu'
train --profile nosuch | no profile 'nosuch'
train nosuch | no recipe 'nosuch'
train --data nosuch | neither a set of rows nor a file
train --batching nosuch | --batching
train --learning-rate inf | inf is no number
train --out FILE | FILE is a file
train llama_7b_lora_alpaca --out FILE/x | FILE is a file
export-llamafactory nosuch --out o | no recipe 'nosuch'
methods list --profile nosuch | no profile 'nosuch'
methods sweep --methods nosuch | no line 'nosuch'
methods sweep --tasks nosuch | no task 'nosuch'
fetch --from nosuch | 'nosuch' is not one of
zoo list --folder nosuch | no module in nosuch
zoo show nosuch | no module 'nosuch'
zoo verify --folder nosuch | no module in nosuch
zoo train --tasks nosuch | no task 'nosuch'
adapt --draw 0 | Adapt to what
adapt --task nosuch | no task 'nosuch'
adapt --task bbh/nosuch | no task of BIG-Bench Hard 'nosuch'
adapt --task nosuch.jsonl | nosuch.jsonl
adapt --task upper --modules nosuch | no module 'nosuch'
adapt --task upper --modules EMPTY | EMPTY holds no adapter
adapt --task upper --base nosuch | no base model 'nosuch'
adapt --task upper --profile nosuch | no profile 'nosuch'
adapt sweep --targets nosuch | no task 'nosuch'
adapt sweep --methods nosuch | no method 'nosuch'
adapt sweep --modules nosuch | no module 'nosuch'
adapt sweep --name ../x | no name of a file
intruders nosuch | no module 'nosuch'
intruders EMPTY | EMPTY holds no adapter
intruders past --epsilon x | between 0 and 1
intruders past --base nosuch | no base model 'nosuch'
intruders past --device nosuch | no device 'nosuch'
intruders past --out EMPTY | EMPTY is a folder
intruders scale nosuch --out o | no module 'nosuch'
intruders scale past --out o --part nosuch | --part
intruders sweep --study nosuch | no study 'nosuch'
chat nosuch | no module 'nosuch'
chat past=x | no weight of past
report nosuch | no module 'nosuch'
report past --task nosuch | no task 'nosuch'
bbh --tasks nosuch | no task of BIG-Bench Hard 'nosuch'
bbh --methods nosuch | no method 'nosuch'
bbh --base nosuch | no base model 'nosuch'
build nosuch --course COURSE | no assignment 'nosuch'
lint-exercises nosuch --course COURSE | no assignment 'nosuch'
grade nosuch --course COURSE | no nosuch
grade EMPTY --course COURSE --sandbox nosuch | --sandbox
grade EMPTY --course COURSE --assignment nosuch | no assignment 'nosuch'
feedback nosuch --course COURSE | no assignment 'nosuch'
export nosuch --merged | no module 'nosuch'
export past | Give one of --merged
export past --gguf --type nosuch | --type
push EMPTY owner/name | EMPTY holds no adapter
push past nosuch | owner/name
export-grades nosuch --course COURSE | no assignment 'nosuch'
export-grades 01_lora --to nosuch --course COURSE | --to
"""
# One process for all lines; a slow library that one of them loads shows in all that follow.
PROGRAM = """
import contextlib, io, sys
from lorahub_edu.cli import app
for line in sys.stdin.read().split("\\n"):
    if not line:
        continue
    words, _, says = line.partition(" | ")
    sys.argv, said, code = ["lorahub-edu", *words.split()], io.StringIO(), None
    app.errors.file = said
    with contextlib.redirect_stderr(said):
        try:
            app.main()
        except SystemExit as ended:
            code = ended.code
    slow = sorted({"torch", "transformers", "nbclient", "jupytext", "nbgrader", "pandas"} & sys.modules.keys())
    if code not in (1, 2) or says not in " ".join(said.getvalue().split()) or slow:
        print(words, code, slow, " ".join(said.getvalue().split())[:400])
"""


def test_a_mistyped_value_is_answered_without_torch(tmp_path: Path) -> None:
    (tmp_path / "FILE").touch()
    (tmp_path / "EMPTY").mkdir()
    lines = WRONG.replace("COURSE", str(CHECKOUT))
    environment = os.environ | {"LORAHUB_EDU_PROFILE": "tiny", "COLUMNS": "300", "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=lines, capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["EMPTY", "FILE"]


def test_what_is_no_text_is_refused() -> None:
    terminal.check_text(["lorahub-edu", "é", "日本"])
    with pytest.raises(CourseError, match="no text in UTF-8"):
        terminal.check_text(["lorahub-edu", "a\udcff"])


def test_the_studies_that_can_be_typed_are_those_that_there_are() -> None:
    from lorahub_studies import cli, forgetting_sweep

    assert list(cli.STUDIES) == list(forgetting_sweep.STUDIES)


@pytest.mark.parametrize("check", [terminal.writable_folder, terminal.writable_file])
def test_a_place_that_can_not_be_written_is_named(check: Callable, tmp_path: Path, monkeypatch) -> None:
    assert check(None) is None and check(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()  # looking makes nothing
    (tmp_path / "file").touch()
    with pytest.raises(CourseError, match="can't be made: .*file is a file"):
        check(tmp_path / "file" / "x")
    with monkeypatch.context() as patch, pytest.raises(CourseError, match="is read-only for you"):
        patch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
        check(tmp_path / "x")
    full = shutil._ntuple_diskusage(1 << 30, 1 << 30, 100)
    with monkeypatch.context() as patch, pytest.raises(CourseError, match="the disk is full"):
        patch.setattr(shutil, "disk_usage", lambda path: full)
        check(tmp_path / "x")


def test_a_second_run_into_a_folder_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    """The first run is a process that is killed, so it can't give the folder back itself."""
    program = f"""
import sys, time
from pathlib import Path
from lorahub_edu.files.save import one_writer
with one_writer(Path({str(tmp_path / "out")!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    first = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(CourseError, match="Another run writes to"), one_writer(tmp_path / "out"):
            pass
    finally:
        first.kill()
        first.wait(60)
    with one_writer(tmp_path / "out"), one_writer(tmp_path / "other"):
        pass


@pytest.mark.parametrize(
    "line",
    [
        "train --out OUT",
        "train llama_7b_lora_alpaca",
        "adapt --task past_upper --out OUT",
        "adapt sweep --out OUT",
        "bbh --out OUT",
        "methods sweep --out OUT",
        "intruders sweep --study settling --out OUT",
        "zoo train --folder OUT",
    ],
)
def test_every_long_run_holds_its_folder(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAHUB_EDU_PROFILE", "tiny")
    folder = tmp_path / "out" if "OUT" in line else Path("runs") / "llama_7b_lora_alpaca-tiny"
    with one_writer(folder), pytest.raises(CourseError, match=f"Another run writes to {folder}"):
        typer.main.get_command(app.app)(line.replace("OUT", str(folder)).split(), standalone_mode=False)
    assert not folder.exists(), "nothing was written into it"


def test_quiet_work_says_what_it_does_once_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    said, printed = [], threading.Event()

    def note(text: str, **_: object) -> None:
        said.append(text)
        printed.set()

    monkeypatch.setattr(terminal.errors, "print", note)
    with terminal.quiet_work("short"):
        pass
    monkeypatch.setattr(terminal, "PATIENCE", 0.0)
    with terminal.quiet_work("counting"):
        assert printed.wait(60)
    assert said == ["counting …"]
