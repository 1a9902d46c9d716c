"""Lessons run whole in the tiny profile, and survive a learner who runs cells again, stops them and changes numbers."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from lorahub_edu import results
from lorahub_edu.files import assets
from lorahub_edu.show import findings, lessons

HUNG = 600  # seconds: a lesson takes a few in the tiny profile; only one that hangs takes so long

# Runs another cell's source twice. An interrupt comes before, at the second step of an optimizer or at the second
# scoring of candidates in a cell.
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


def _walk(source):
    _steps["left"] = 2
    first = get_ipython().run_cell(source)
    _steps["left"] = 0
    if isinstance(first.error_in_exec, KeyboardInterrupt):
        get_ipython().run_cell(source).raise_error()
    else:
        first.raise_error()
    get_ipython().run_cell(source).raise_error()
"""


def run(notebook: nbformat.NotebookNode, name: str, folder: Path) -> lessons.Run:
    """A run of the lesson with these cells in the tiny profile; `folder` gets its home and results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(assets.HOME_VARIABLE, str(folder / "home"))
        patch.setattr(lessons, "build", lambda _: notebook)
        return lessons.run(name, "tiny", folder / "results")


def found_in(folder: Path, name: str) -> dict[str, results.Finding]:
    found = [] if name[:2] == "00" else results.read(f"lesson_{name[:2]}", folder / "results")
    return {finding.name: finding for finding in found}


@pytest.fixture(scope="module", params=lessons.names())
def tiny_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[lessons.Run, Path]:
    """A lesson's plain run, and the folder with its home and results."""
    folder = tmp_path_factory.mktemp(f"lesson-{request.param[:2]}")
    return run(lessons.build(request.param), request.param, folder), folder


def test_runs_whole_in_the_tiny_profile(tiny_run: tuple[lessons.Run, Path]) -> None:
    done, folder = tiny_run
    assert done.seconds < HUNG
    assert done.peak_bytes < 4e9
    home = folder / "home"
    written = {path.relative_to(home).parts[0] for path in home.rglob("*")}
    assert written <= {"spectra"}, "computed here, nothing fetched"
    found = found_in(folder, done.lesson)
    assert bool(found) == (done.lesson[:2] != "00"), "every lesson but the first ends with its findings"
    assert all(not finding.claim or finding.claim in findings.CLAIMS for finding in found.values())


def test_every_picture_of_a_run_has_a_text(tiny_run: tuple[lessons.Run, Path]) -> None:
    cells = [cell for cell in tiny_run[0].notebook.cells if cell.cell_type == "code"]
    pictures = [o for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})]
    assert all(o.metadata.get("image/png", {}).get("alt") for o in pictures)


TRAINING = {"01", "03", "04", "05", "06", "07", "08", "09"}
ON_THE_CLOCK = re.compile("time|seconds|speed|per_second|race|memory|gradient_step|cost_of")


def test_cells_stopped_and_run_twice_give_the_same(tiny_run: tuple[lessons.Run, Path], tmp_path: Path) -> None:
    name = tiny_run[0].lesson
    notebook = lessons.build(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        cell.source = f"_walk({cell.source!r})"
    code[0].source = f"{WALKER}\n{code[0].source}"
    told = nbformat.v4.new_code_cell("print(_steps['stopped'])", id="stopped")
    notebook.cells.append(told)
    run(notebook, name, tmp_path)
    assert (int(told.outputs[0].text) > 0) == (name[:2] in TRAINING)
    plain, walked = found_in(tiny_run[1], name), found_in(tmp_path, name)
    assert plain.keys() == walked.keys()
    # 03 goes on with the steps that it has, so its values are others.
    steady = [key for key in plain if not ON_THE_CLOCK.search(key) and name[:2] != "03"]
    assert {key: walked[key].values for key in steady} == {key: plain[key].values for key in steady}


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


@pytest.mark.parametrize("name", lessons.names())
def test_other_values_give_findings_and_no_error(name: str, tmp_path: Path) -> None:
    notebook = lessons.build(name)
    for old, new in (OTHER_VALUES, *OTHERS.get(name[:2], ())):
        assert any(old in cell.source for cell in notebook.cells), f"{name} has no longer {old!r}"
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new) if cell.cell_type == "code" else cell.source
    run(notebook, name, tmp_path)
    assert bool(found_in(tmp_path, name)) == (not name.startswith("00"))
