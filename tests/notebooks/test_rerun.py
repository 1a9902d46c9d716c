"""A learner runs cells again, stops them and changes numbers: no lesson breaks, or goes on with what was left over."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from lorahub_edu import results
from lorahub_edu.files import assets
from lorahub_edu.show import lessons

# A cell that runs other cells' sources in one of two ways. An interrupt comes at the second step of an optimizer or at
# the second scoring of candidates in a cell, and the learner runs the cell again where it did not end by itself.
WALKER = """
import signal

from IPython import get_ipython
from torch.optim.optimizer import register_optimizer_step_post_hook

from lorahub_edu.hub.population import Population

_steps = {"left": 0, "stopped": 0}


def _count(*_arguments):
    _steps["left"] -= 1
    if _steps["left"] == 0:
        _steps["stopped"] += 1
        signal.raise_signal(signal.SIGINT)  # as the stop button does


def _score(self, *arguments, _plain=Population.score, **named):
    _count()
    return _plain(self, *arguments, **named)


Population.score = _score
register_optimizer_step_post_hook(_count)


def _walk(source, way):
    run = lambda: get_ipython().run_cell(source)
    if way == "interrupt":
        _steps["left"] = 2
        first = run()
        _steps["left"] = 0
        if not isinstance(first.error_in_exec, KeyboardInterrupt):
            return first.raise_error()
    elif way == "twice":
        run().raise_error()
    run().raise_error()
"""


def walked(name: str, way: str, folder: Path, changes: tuple[tuple[str, str], ...] = ()) -> dict[str, results.Finding]:
    """A lesson's findings after each of its cells was run in some way in the tiny profile, with changed source."""
    notebook = lessons.build(name)
    for old, _ in changes:
        assert any(old in cell.source for cell in notebook.cells), f"{name} has no longer {old!r}"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        for old, new in changes:
            cell.source = cell.source.replace(old, new)
        cell.source = f"_walk({cell.source!r}, {way!r})"
    code[0].source = f"{WALKER}\n{code[0].source}"
    told = nbformat.v4.new_code_cell("print(_steps['stopped'])", id="stopped")
    notebook.cells.append(told)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(assets.HOME_VARIABLE, str(folder / "home"))
        patch.setattr(lessons, "build", lambda _: notebook)
        lessons.run(name, "tiny", folder / "results")
    stopped = int(told.outputs[0].text)
    assert (stopped > 0) == (way == "interrupt" and name[:2] in TRAINING)
    found = [] if name[:2] == "00" else results.read(f"lesson_{name[:2]}", folder / "results")
    return {finding.name: finding for finding in found}


OTHER_VALUES = ("profile = get_profile()", "profile = get_profile().changed(rank=3, train_steps=4)")
OTHERS = {  # a lesson's own settings, by its number
    "01": [("8, (0, 1, 2)", "3, (0, 1)")],
    "04": [('STEPS, TASK = 5, "antonym"', 'STEPS, TASK = 2, "plural"')],
    "06": [('"third_person", "plural_upper", "first_word"', '"superlative", "gerund_upper"')],
    "07": [('"past_upper", 0', '"plural_upper", 1')],
    "08": [('TASK, STEPS = "reverse"', 'TASK, STEPS = "sort"')],
    "09": [('TASK, STEPS = "reverse"', 'TASK, STEPS = "sort"')],
    "10": [('TASK = "past_upper"', 'TASK = ""')],
}

TRAINING = {"01", "03", "04", "05", "06", "07", "08", "09"}
ON_THE_CLOCK = re.compile("time|seconds|speed|per_second|race|memory|gradient_step|cost_of")


@pytest.mark.parametrize("name", lessons.names())
def test_cells_run_twice_and_stopped_cells_give_the_same(name: str, tmp_path: Path) -> None:
    twice = walked(name, "twice", tmp_path / "twice")
    if name[:2] in TRAINING:
        stopped = walked(name, "interrupt", tmp_path / "stopped")
        assert stopped.keys() == twice.keys()
        # 03 goes on with the steps that it has, so its values are others.
        steady = [key for key in twice if not ON_THE_CLOCK.search(key) and name[:2] != "03"]
        assert {key: stopped[key].values for key in steady} == {key: twice[key].values for key in steady}


@pytest.mark.parametrize("name", lessons.names())
def test_other_values_give_other_findings_and_no_error(name: str, tmp_path: Path) -> None:
    found = walked(name, "once", tmp_path, (OTHER_VALUES, *OTHERS.get(name[:2], ())))
    assert bool(found) == (not name.startswith("00")), "every lesson but the first ends with its findings"
