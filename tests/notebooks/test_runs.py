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


TRAINING = {"01", "03", "04", "05", "06", "07", "08", "09"}
ON_THE_CLOCK = re.compile("time|seconds|speed|per_second|race|memory|gradient_step|cost_of")
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


def walked(source: str, _name: str) -> str:
    return f"_walk({source!r})"


def with_other_values(source: str, name: str) -> str:
    for old, new in (OTHER_VALUES, *OTHERS.get(name[:2], ())):
        source = source.replace(old, new)
    return source


# What is done to each cell, and the code before them. A learner does all of it in one kernel.
PASSES = {
    "plain": (lambda source, _name: source, ""),
    "walked": (walked, WALKER),
    "others": (with_other_values, "print(_steps['stopped'])"),
}


def notebook_of(name: str, folder: Path) -> nbformat.NotebookNode:
    """A lesson's cells once for each pass; a pass has its own home and findings, so that none continues another's."""
    notebook, cells = lessons.build(name), []
    for kind, (change, before) in PASSES.items():
        own = {
            assets.HOME_VARIABLE: f"{folder / kind / 'home'}",
            results.FOLDER_VARIABLE: f"{folder / kind / 'results'}",
        }
        cells.append(nbformat.v4.new_code_cell(f"import os\n\nos.environ.update({own!r})\n{before}", id=kind))
        for number, cell in enumerate(lessons.build(name).cells):
            cell.id = f"{kind}-{number}"
            cell.source = change(cell.source, name) if cell.cell_type == "code" else cell.source
            cells.append(cell)
    notebook.cells = cells
    return notebook


def found_in(folder: Path, name: str) -> dict[str, results.Finding]:
    found = [] if name[:2] == "00" else results.read(f"lesson_{name[:2]}", folder / "results")
    return {finding.name: finding for finding in found}


@pytest.fixture(scope="module", params=lessons.names())
def tiny_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[lessons.Run, Path]:
    """A lesson's run in the tiny profile, and the folder of its passes."""
    folder = tmp_path_factory.mktemp(f"lesson-{request.param[:2]}")
    notebook = notebook_of(request.param, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(assets.HOME_VARIABLE, str(folder / "plain" / "home"))
        patch.setattr(lessons, "build", lambda _: notebook)
        return lessons.run(request.param, "tiny", folder / "plain" / "results"), folder


def test_runs_whole_in_the_tiny_profile(tiny_run: tuple[lessons.Run, Path]) -> None:
    done, folder = tiny_run
    assert done.seconds < HUNG
    assert done.peak_bytes < 4e9
    home = folder / "plain" / "home"
    written = {path.relative_to(home).parts[0] for path in home.rglob("*")}
    assert written <= {"spectra"}, "computed here, nothing fetched"
    found = found_in(folder / "plain", done.lesson)
    assert bool(found) == (done.lesson[:2] != "00"), "every lesson but the first ends with its findings"
    assert all(not finding.claim or finding.claim in findings.CLAIMS for finding in found.values())


def test_every_picture_of_a_run_has_a_text(tiny_run: tuple[lessons.Run, Path]) -> None:
    cells = [cell for cell in tiny_run[0].notebook.cells if cell.cell_type == "code"]
    pictures = [o for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})]
    assert all(o.metadata.get("image/png", {}).get("alt") for o in pictures)


def test_cells_stopped_and_run_twice_give_the_same(tiny_run: tuple[lessons.Run, Path]) -> None:
    name, folder = tiny_run[0].lesson, tiny_run[1]
    told = next(cell for cell in tiny_run[0].notebook.cells if cell.id == "others").outputs[0].text
    assert (int(told) > 0) == (name[:2] in TRAINING)
    plain, again = found_in(folder / "plain", name), found_in(folder / "walked", name)
    assert plain.keys() == again.keys()
    # 03 goes on with the steps that it has, so its values are others.
    steady = [key for key in plain if not ON_THE_CLOCK.search(key) and name[:2] != "03"]
    assert {key: again[key].values for key in steady} == {key: plain[key].values for key in steady}


def test_other_values_give_findings_and_no_error(tiny_run: tuple[lessons.Run, Path]) -> None:
    done, folder = tiny_run
    sources = [cell.source for cell in lessons.build(done.lesson).cells if cell.cell_type == "code"]
    for old, _ in (OTHER_VALUES, *OTHERS.get(done.lesson[:2], ())):
        assert any(old in source for source in sources), f"{done.lesson} has no longer {old!r}"
    assert bool(found_in(folder / "others", done.lesson)) == (done.lesson[:2] != "00")
