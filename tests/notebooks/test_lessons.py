"""Lessons: notebooks agree with their sources, are short to read, and hold nothing they must not."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from lorahub_edu import results
from lorahub_edu.data import alpaca
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.models import profiles
from lorahub_edu.show import lessons

NAMES = lessons.names()

# Claims that a lesson puts to the test: each must have a finding with a verdict once the lesson is published.
CLAIMS = {
    "01": {"R1", "R2", "R3", "R4", "R5", "R6"},
    "03": {"R9", "R12", "R13", "R14", "R15"},
    "04": {"R7", "R8", "R10", "R17"},
    "05": {"R9", "R10", "R11", "R15", "R16", "H17"},
    "06": {"H1", "H2", "H3"},
    "07": {f"H{number}" for number in range(4, 21)} | {"X2", "X3", "X5"},
    "08": {f"I{number}" for number in (1, 2, 3, 4, 5, 6, 7, 10)} | {"X6"},
    "09": {"I8", "I9", "I11", "I12"},
    "10": {"X1", "X4"},
}


def is_published(name: str) -> bool:
    return (lessons.LESSONS / f"{name}.ipynb").is_file()


def committed(name: str) -> nbformat.NotebookNode:
    if not is_published(name):
        pytest.skip(f"{name} is not published yet: lorahub-edu run {name[:2]} --save")
    return nbformat.read(lessons.LESSONS / f"{name}.ipynb", as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[dict]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def text_of(notebook: nbformat.NotebookNode) -> str:
    return json.dumps([output for output in outputs(notebook)], ensure_ascii=False)


def test_the_first_four_lessons_are_here() -> None:
    assert [name[:2] for name in NAMES[:4]] == ["00", "01", "02", "03"]


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_its_source_executed(name: str) -> None:
    source, notebook = lessons.build(name), committed(name)
    assert [(c.cell_type, c.source) for c in source.cells] == [(c.cell_type, c.source) for c in notebook.cells]
    assert notebook.metadata.kernelspec.name == "python3"
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "executed from top to bottom in a fresh kernel"
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert "Traceback" not in text_of(notebook)
    assert (lessons.LESSONS / f"{name}.ipynb").stat().st_size < 1_500_000


@pytest.mark.parametrize("name", NAMES)
def test_no_path_of_the_machine_that_ran_it(name: str) -> None:
    texts = [output.get("text", "") for output in outputs(committed(name))]
    for output in outputs(committed(name)):
        texts += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    absolute = r"(?<![\w.:/])/(?:[A-Za-z_][\w.-]*/)+[\w.-]+"
    assert re.search(absolute, "Model: /somewhere/cache/model"), "the pattern finds a path"
    assert not re.search(absolute, "https://arxiv.org/abs/2106.09685 and alpha/rank")
    assert not [found for text in texts for found in re.findall(absolute, text)]


@pytest.mark.parametrize("name", NAMES)
def test_pictures_have_a_text_and_panels_a_state(name: str) -> None:
    notebook = committed(name)
    pictures = [o for o in outputs(notebook) if "image/png" in o.get("data", {})]
    assert all(o.metadata.get("image/png", {}).get("alt") for o in pictures)
    views = [o for o in outputs(notebook) if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    if views:
        state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
        for view in views:
            assert view.data["application/vnd.jupyter.widget-view+json"]["model_id"] in state
    if name[:2] != "00":
        assert pictures and views, "a lesson has a picture and a panel"


@pytest.mark.parametrize("name", NAMES[1:])
def test_anatomy(name: str) -> None:
    notebook = lessons.build(name)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "You will be able to" in prose or "you will be able to" in prose.lower()
    assert len(re.findall(r"\*\*Predict", prose, re.IGNORECASE)) >= 3
    assert "## Findings" in prose and "What to remember" in prose and "Next" in prose
    checks = re.findall(r'check\("(\d\d\.\d)"', "\n".join(c.source for c in notebook.cells if c.cell_type == "code"))
    assert 2 <= len(set(checks)) <= 4 and all(id.startswith(name[:2]) for id in checks)


def test_no_fetched_row_is_committed(smollm) -> None:
    """No sentence of Alpaca's rows stands in any notebook or result."""
    if assets.locate("alpaca") is None:
        pytest.skip("Alpaca's rows are not here")
    rows = alpaca.read_rows(assets.locate("alpaca"))
    shipped = {row.instruction for row in alpaca.shipped_examples()}
    everything = "".join(path.read_text(encoding="utf-8") for path in lessons.LESSONS.glob("*.ipynb"))
    everything += "".join(path.read_text(encoding="utf-8") for path in results.committed_folder().glob("*.json"))
    leaked = [
        row.instruction
        for row in rows
        if (len(row.instruction) > 40 and row.instruction not in shipped and row.instruction in everything)
        or (len(row.output) > 60 and row.output[:60] in everything)
    ]
    assert not leaked


def test_the_shipped_rows_are_not_alpacas(smollm) -> None:
    if assets.locate("alpaca") is None:
        pytest.skip("Alpaca's rows are not here")
    theirs = {row.output.strip() for row in alpaca.read_rows(assets.locate("alpaca")) if len(row.output) > 40}
    assert not [row for row in alpaca.shipped_examples() if row.output.strip() in theirs]


@pytest.mark.parametrize("name", NAMES)
def test_beside_every_panel_stands_what_it_shows_without_a_kernel(name: str) -> None:
    cells = lessons.build(name).cells
    for index, cell in enumerate(cells):
        if cell.cell_type == "code" and re.search(
            r"^(panels\.sliders?_panel|clouds\.player|mixing\.chat_panel)\(", cell.source, re.M
        ):
            said = [cells[near].source for near in range(index - 2, index + 3) if near in range(len(cells))]
            pictures = [c for c in said if re.search(r"^\s*(panels\.show|Table)\(", c, re.M)]
            words = [c for c in said if "two texts above" in c]  # a chat's answers
            assert pictures or words, cell.source


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_in_capitals_is_set_in_one_cell(name: str) -> None:
    """Otherwise a learner who goes back to an earlier cell goes on with the value of a later one."""
    cells: dict[str, set[int]] = {}
    for index, cell in enumerate(lessons.build(name).cells):
        if cell.cell_type == "code" and cell.source != lessons.DOOR:
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    cells.setdefault(node.id, set()).add(index)
    assert not [name for name, where in cells.items() if re.fullmatch("[A-Z_]{2,}", name) and len(where) > 1]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_learner_sees_is_short(name: str) -> None:
    """Visible code cells hold at most 15 lines; drawing and bookkeeping stand in collapsed cells."""
    for cell in lessons.build(name).cells:
        collapsed = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert collapsed == ("hide-input" in cell.metadata.get("tags", []))
        assert cell.cell_type != "code" or collapsed or len(cell.source.splitlines()) <= 15, cell.source


@pytest.mark.parametrize("number", CLAIMS)
def test_every_claim_of_a_lesson_has_a_finding(number: str) -> None:
    if not is_published(lessons.resolve(number)):
        pytest.skip("not published yet")
    found = results.read(f"lesson_{number}", results.committed_folder())
    assert {finding.claim for finding in found if finding.claim and finding.verdict} >= CLAIMS[number]


@pytest.mark.parametrize("name", NAMES)
def test_costs_of_the_real_run_are_within_bounds(name: str) -> None:
    if not is_published(name):
        pytest.skip("not published yet")
    costs = {f.name: f.value for f in results.read("lessons", results.committed_folder())}
    assert costs[f"{name}.cpu.minutes"] <= 5, "on two plain cores, without 16-bit instructions"
    assert costs[f"{name}.cpu.memory"] <= 4


def test_a_cell_that_fails_is_reported_with_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "01_broken.py").write_text("# %%\nprint('fine')\n\n# %%\n1 / 0\n")
    monkeypatch.setattr(lessons, "SOURCES", tmp_path)
    with pytest.raises(CourseError, match=r"(?s)01_broken failed with profile tiny.*ZeroDivisionError"):
        lessons.run("01_broken", "tiny", tmp_path)


def test_lessons_by_number_and_near_matches() -> None:
    assert lessons.resolve("1") == lessons.resolve("01") == lessons.resolve("lessons/01_lora_from_scratch.ipynb")
    with pytest.raises(CourseError, match="no lesson 'lora_from_scrach'.*01_lora_from_scratch"):
        lessons.resolve("lora_from_scrach")
    with pytest.raises(CourseError, match="no profile"):
        lessons.run(NAMES[0], "enormous")
    assert profiles.DEFAULT == "cpu"


def test_publishing_drops_findings_of_an_earlier_edition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "07_short.py").write_text("# %%\nprint('fine')\n\n# %%\nprint('more')\n")
    monkeypatch.setattr(lessons, "SOURCES", tmp_path)
    for name in ("lesson_07", "lesson_08"):
        results.record([results.Finding("dropped", (1.0,), "s")], name, tmp_path)
    done = lessons.run("07_short", "tiny", tmp_path)
    assert not (tmp_path / "lesson_07.json").exists() and (tmp_path / "lesson_08.json").exists()
    assert 1e7 < done.peak_bytes < 1e9, "a kernel that imports nothing"


@pytest.mark.parametrize("here", [True, False])
def test_the_first_code_cell_fetches_the_course_only_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    from IPython.core.inputtransformer2 import TransformerManager

    asked: list[tuple[str, ...]] = []
    shell = SimpleNamespace(run_line_magic=lambda *words: asked.append(words))
    if not here:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(TransformerManager().transform_cell(lessons.DOOR), {"get_ipython": lambda: shell})
    assert asked == ([] if here else [("pip", "install -q lorahub-edu")])
    for name in NAMES:
        first = next(cell for cell in committed(name).cells if cell.cell_type == "code")
        assert (first.source, first.outputs) == (lessons.DOOR, []) and "hide-input" in first.metadata.tags
