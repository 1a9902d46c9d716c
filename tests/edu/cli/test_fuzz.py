"""Every command with odd values: never a traceback, never success with nothing done, and no odd value reaches the work.

The commands and their options are read off the command line itself, so a new option is tried without a change here.
`LORAHUB_FUZZ=5000 pytest tests/edu/cli/test_fuzz.py` tries more of them.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import typer
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from lorahub_edu.cli import app
from lorahub_edu.files import assets

CHECKOUT = Path(__file__).resolve().parents[3]
TRIES = int(os.environ.get("LORAHUB_FUZZ", "400"))
# What each command calls for its work: (module, function). None: the command is quick, and is run as it is.
WORK = {
    "init": ("lorahub_edu.files.course", "lay_out"),
    "lab": ("os", "chdir"),
    "doctor": ("lorahub_edu.cli.doctor", "diagnose"),
    "fetch": ("lorahub_edu.models.pretrained", "prepare"),
    "run": ("lorahub_edu.show.lessons", "run"),
    "progress": None,
    "train": ("lorahub_edu.runs.finetune", "finetune"),
    "export-llamafactory": ("lorahub_edu.runs.llamafactory", "export"),
    "plan": ("lorahub_edu.memory.plan", "advise"),
    "methods list": ("lorahub_edu.methods.overview", "methods_table"),
    "methods sweep": ("lorahub_studies.comparison", "sweep"),
    "zoo list": None,
    "zoo show": None,
    "zoo verify": ("lorahub_edu.hub.zoo", "verify"),
    "zoo train": ("lorahub_studies.zoo_training", "train_zoo"),
    "adapt": ("lorahub_edu.hub.task_adapter", "adapt_to"),
    "adapt sweep": ("lorahub_studies.engine", "run"),
    "bbh": ("lorahub_studies.big_bench", "run"),
    "intruders show": ("lorahub_edu.spectra.intruders", "examine"),
    "intruders scale": ("lorahub_edu.spectra.interventions", "save_scaled"),
    "intruders sweep": ("lorahub_studies.forgetting_sweep", "run"),
    "chat": ("lorahub_edu.show.chat", "open_chat"),
    "report": ("lorahub_edu.show.adapter_report", "examine"),
    "build": ("lorahub_grader.assignments", "build"),
    "lint-exercises": ("lorahub_grader.lint", "judgements"),
    "grade": ("lorahub_grader.runner", "grade"),
    "feedback": ("lorahub_grader.feedback", "write"),
    "export": ("lorahub_edu.runs.export", "merged_model"),
    "push": ("lorahub_edu.runs.export", "push"),
    "export-grades": ("lorahub_grader.exports", "export"),
}
MORE_WORK = (
    ("lorahub_edu.runs.recipes", "run"),
    ("lorahub_edu.runs.export", "model_card"),
)
HUGE = "9" * 30
ODD = [
    *("", " ", ",", ",,a", "nosuch", "NaN", "inf", "-inf", "-1", "0", "1", "2", "0.5", "1e400", "1e-400", HUGE),
    *("-" + HUGE, "é", "日本", "\U0001f600", "a\nb", "--", "-", "[red]", "%s", "{0}", "null", "true", "x" * 300),
    *("x" * 5000, "\udcff", "..", ".", "/", "~", "../..", "a/b", "/dev/null", "/dev/null/x", "/proc/x", "/nosuch/x"),
    *("./file", "file", "file/x", "link", "folder", "folder/x", "rows.jsonl", "broken.jsonl", "upper,past_upper"),
    *("past", "past,", "cpu", "lora", "q_proj,v_proj", "all-linear", "owner/name", "bbh/nosuch", "bbh/navigate"),
    *("tiny", "alpaca", "auto"),
]  # fmt: skip
SENSIBLE = {  # so that some tries come as far as the work
    "model": "llama-7b", "lesson": "00", "recipe": "llama_7b_lora_alpaca", "task": "past_upper", "tasks": "upper",
    "adapter": "past", "name": "past", "assignment": "01_lora_layer", "submissions": "folder", "study": "settling",
    "to": "canvas", "out": "new/out", "profile": "tiny", "course": str(CHECKOUT), "targets": "upper",
    "data": "rows.jsonl", "repo": "owner/name",
}  # fmt: skip


class Worked(Exception):  # noqa: N818 - no error: the work was reached
    """The work would have begun, with these arguments."""


def commands(group: typer.core.TyperGroup, before: str = "") -> Iterator[tuple[str, object]]:
    """Every command by the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
            if command.invoke_without_command:
                yield f"{before}{name}", command
        else:
            yield f"{before}{name}", command


COMMANDS = dict(commands(typer.main.get_command(app.app)))


def typed_values(option: object) -> st.SearchStrategy[str]:
    usual = [SENSIBLE[option.name]] * 40 if option.name in SENSIBLE else ["1"] * 15
    choices = [choice for choice in get_args(option.type_descriptor.annotation) if isinstance(choice, str)]
    usual = choices * 10 or usual  # plan's --task is no word task
    return st.sampled_from(ODD + usual) | st.text(max_size=8) | st.floats().map(str)


@st.composite
def lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A command and what is typed after it."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    words = []
    options = COMMANDS[name].params
    given_ = draw(st.sets(st.sampled_from([option.name for option in options]), max_size=3)) if options else set()
    for option in options:
        if option.name in given_ or option.required or (option.name in SENSIBLE and draw(st.integers(0, 3))):
            if option.param_type_name == "argument":
                words.append(draw(typed_values(option)))
            elif option.is_flag:
                words.append(draw(st.sampled_from([*option.opts, *option.secondary_opts])))
            else:
                words += [option.opts[0], draw(typed_values(option))]
    return name, [word.replace("\0", "") for word in words if "--help" not in word and "--version" not in word]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home and a folder with a few odd files; the work of every command is replaced by a note of it."""
    import importlib

    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "folder").mkdir()
    (folder / "file").write_text("{")
    (folder / "link").symlink_to("nowhere")
    (folder / "rows.jsonl").write_text('{"instruction": "Say it.", "input": "a", "output": "b"}\n' * 5)
    (folder / "broken.jsonl").write_bytes(b'{"input": "\xff')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv(assets.HOME_VARIABLE, str(folder / "home"))
        patch.setenv("LORAHUB_EDU_PROFILE", "cpu")
        patch.setenv("LORAHUB_EDU_RESULTS", str(folder / "results"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        built = typer.main.get_command(app.app)  # once: it takes ten times as long as an answer
        patch.setattr(typer.main, "get_command", lambda _: built)
        for module, function in [*filter(None, WORK.values()), *MORE_WORK]:

            def reached(*values: object, _of: str = f"{module}.{function}", **named: object) -> None:
                raise Worked(_of, values, named)

            patch.setattr(importlib.import_module(module), function, reached)
        yield folder


def numbers(values: object) -> Iterator[float]:
    """The numbers among arguments, however deep."""
    if isinstance(values, float | int):
        yield values
    elif isinstance(values, dict):
        yield from numbers(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from numbers(value)
    elif hasattr(values, "__dataclass_fields__"):
        yield from numbers([getattr(values, name) for name in values.__dataclass_fields__])


def typed(name: str, words: list[str]) -> tuple[int | None, Worked | None]:
    """The exit code, or the work that was reached."""
    sys.argv = ["lorahub-edu", *name.split(), *words]
    try:
        app.main()
    except SystemExit as ended:
        return ended.code or 0, None
    except Worked as work:
        return None, work
    return 0, None


def problem(name: str, words: list[str], code: int | None, work: Worked | None, out: str, err: str) -> str:
    """What is wrong with an answer; "" if it is right."""
    if work is not None:
        odd = [n for n in numbers(work.args[1:]) if not math.isfinite(n) or n < 0 or n == int(HUGE)]
        return f"{odd} reached the work" if odd else ""
    if code == 0:
        done = WORK[name] is None or {"--plan", "--check"} & {*words} or "needs no file" in out
        return "" if done and out.strip() else f"success with nothing done: {out}"
    if code not in (1, 2) or not err.strip() or "Traceback" in err:
        return f"code {code}, said {out} {err}"
    return ""


def test_every_command_is_known_here() -> None:
    assert set(COMMANDS) == set(WORK)


@seed(15)
@settings(max_examples=TRIES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(line=lines())
def test_odd_values_are_answered(line: tuple[str, list[str]], place: Path, capsys: pytest.CaptureFixture) -> None:
    code, work = typed(*line)
    assert problem(*line, code, work, *capsys.readouterr()) == ""
