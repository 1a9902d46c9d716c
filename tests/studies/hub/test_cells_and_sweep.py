"""A cell's rows against merged float64 weights; a sweep goes on, sums up as by hand, and fills a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import hub_modules
import numpy as np
import pytest
import torch
from hub_modules import deltas, merged, plain_losses

from lorahub_edu.data import fewshot, tasks
from lorahub_edu.errors import CourseError
from lorahub_edu.models import pretrained, tiny
from lorahub_edu.scoring import score
from lorahub_studies.hub import baselines, cells, sweep
from lorahub_studies.hub.cells import METHODS, Cell, Method, run_cell

TARGET, ITEMS = tasks.names("target")[0], 6
FIXED = ("zero_shot", "in_context", "average", "random_weights", "single")


@pytest.fixture(scope="module")
def files():
    return hub_modules.random_modules(tiny.model())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, files) -> Path:
    where = tmp_path_factory.mktemp("zoo")
    for file in files:
        hub_modules.write(file, where)
    return where


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cells in float32 instead of bfloat16, so that figures can be compared to five digits."""
    load = pretrained.load
    monkeypatch.setattr(cells.pretrained, "load", lambda *a, **k: load(*a, **k | {"dtype": "float32"}))
    cells.bench.cache_clear()
    yield
    cells.bench.cache_clear()


def cell(folder: Path, *methods: str, draw: int = 0, **changes) -> Cell:
    settings = {"folder": str(folder), "profile": "tiny", "test_items": ITEMS}
    return Cell(TARGET, draw, methods or ("zero_shot",), **settings | changes)


def encoded(items, shots=()) -> list[fewshot.PromptedRow]:
    instruction = tasks.get(TARGET).instructions[0]
    prompts = [tasks.prompt(instruction, item.input, shots) for item in items]
    return fewshot.encode(tiny.tokenizer(), prompts, [item.output for item in items])


def test_every_method_is_measured_on_the_same_items(exact, folder: Path, files, monkeypatch) -> None:
    monkeypatch.setitem(
        METHODS, "random_40", replace(METHODS["random_40"], settings={"optimizer": "random", "budget": 6})
    )
    task = tasks.get(TARGET)
    examples, tested = tasks.draw(task, 3), task.test[:ITEMS]
    assert not {item.input for item in examples} & {item.input for item in task.test}
    rows = {row["method"]: row for row in run_cell(cell(folder, *FIXED, "random_40", draw=3))}
    assert list(rows) == [*FIXED, "random_40"]

    ones = [plain_losses(merged(tiny.model(), deltas(files, w, "exact")), encoded(examples))[0] for w in np.eye(3)]
    drawn = np.random.default_rng(3).uniform(-1.5, 1.5, 3)
    searched = dict(rows["random_40"]["top"])
    weights = {
        "zero_shot": np.zeros(3),
        "in_context": np.zeros(3),
        "average": np.full(3, 1 / 3),
        "random_weights": drawn,
        "single": np.eye(3)[int(np.argmin(ones))],
        "random_40": np.array([searched[name] for name in ("m0", "m1", "m2")]),
    }
    for method, w in weights.items():
        row = rows[method]
        composition = "exact" if method == "single" else "paper"
        twin = merged(tiny.model(), deltas(files, w, composition))
        asked = encoded(tested, examples if method == "in_context" else ())
        scores = score(twin, asked)
        assert row["loss"] == pytest.approx(plain_losses(twin, asked)[0], abs=1e-5)
        assert row["answer_loss"] == pytest.approx(scores.answer_losses[0], abs=1e-5)
        assert (row["strict"], row["answer_only"]) == (scores.strict.mean(), scores.answer_only.mean())
        assert row["prompt_tokens"] == pytest.approx(np.mean([len(r.prompt_ids) for r in asked]))
        assert (row["target"], row["draw"], row["test_items"], row["modules"]) == (TARGET, 3, ITEMS, 3)
        if method in ("average", "random_weights", "single", "random_40"):
            assert row["example_loss"] == pytest.approx(plain_losses(twin, encoded(examples))[0], abs=1e-5)
            assert dict(row["top"]) == pytest.approx({f"m{i}": w[i] for i in range(3) if w[i]})
    assert rows["in_context"]["prompt_tokens"] > 4 * rows["zero_shot"]["prompt_tokens"]
    assert {m: row["evaluations"] for m, row in rows.items() if row["evaluations"]} == {"single": 3, "random_40": 6}
    assert rows["zero_shot"]["seconds"] == rows["in_context"]["seconds"] == 0 < rows["random_40"]["seconds"]


@pytest.mark.parametrize("tuning", ["lora", "ia3", "full"])
def test_tuning_is_measured_and_leaves_the_bench_alone(exact, folder: Path, monkeypatch, tuning: str) -> None:
    short = replace(baselines.TUNINGS[tuning], epochs=3, learning_rate=1e-3)
    monkeypatch.setitem(baselines.TUNINGS, tuning, short)
    before, row, after = run_cell(cell(folder, "zero_shot", tuning, "zero_shot"))
    model = tiny.model()
    with baselines.tuned(model, encoded(tasks.draw(tasks.get(TARGET), 0)), tuning) as history:
        expected = score(model, encoded(tasks.get(TARGET).test[:ITEMS])).losses[0]
    assert row["loss"] == pytest.approx(expected, abs=1e-4) and row["evaluations"] == 3
    assert row["example_loss"] == pytest.approx(history[-1], abs=1e-4)
    assert before == after and row["loss"] != before["loss"]


def test_cells_run_in_bfloat16_and_say_what_ran(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "auto", Method("auto", "search", {"optimizer": "auto", "budget": 5}))
    monkeypatch.setitem(METHODS, "cma_40", Method("CMA-ES", "search", {"optimizer": "cma", "budget": 7}))
    cells.bench.cache_clear()
    first = run_cell(cell(folder, "auto", "cma_40", shots=2))
    assert cells.bench("tiny", (), str(folder), "").model.dtype == torch.bfloat16
    assert [row["evaluations"] for row in first] == [5, 7] and [row["failed"] for row in first] == [0, 0]
    assert [row["algorithm"] for row in first] == ["greedy coordinate search", "CMA-ES"]
    again = run_cell(cell(folder, "auto", "cma_40", shots=2))
    for a, b in zip(first, again, strict=True):
        assert {k: v for k, v in a.items() if "seconds" not in k} == {k: v for k, v in b.items() if "seconds" not in k}
    cells.bench.cache_clear()


def test_unknown_methods_targets_and_modules(folder: Path) -> None:
    with pytest.raises(CourseError, match="no method 'averag'. Did you mean 'average'"):
        run_cell(cell(folder, "averag"))
    with pytest.raises(CourseError, match="no task 'nothing'"):
        run_cell(replace(cell(folder), target="nothing"))
    with pytest.raises(CourseError, match="no module 'm9'"):
        run_cell(cell(folder, modules=("m9",)))
    cells.bench.cache_clear()


# The sweep.


def measured(cell_: Cell) -> list[dict]:
    """Rows as `run_cell` gives them, with made-up figures that differ by target, draw and method."""
    rows = []
    for number, method in enumerate(cell_.methods):
        value = (len(cell_.target) % 7 + 2 * cell_.draw + 4 * number) / 16
        row = {"target": cell_.target, "draw": cell_.draw, "method": method, "test_items": 8}
        rows.append(row | dict.fromkeys(sweep.MEASURES, value))
    return rows


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Replaces the measuring; holds the cells that were measured."""
    asked: list[Cell] = []
    monkeypatch.setattr(sweep, "run_cell", lambda c: asked.append(c) or measured(c))
    return asked


def test_a_sweep_measures_only_what_is_missing(tmp_path: Path, folder: Path, run: list[Cell]) -> None:
    wanted = [cell(folder, "zero_shot", "average", draw=draw) for draw in range(3)]
    reported = []

    def killed(rows: list[dict]) -> None:
        reported.append(rows)
        if len(reported) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run(wanted, tmp_path, report=killed)
    assert run == wanted[:2] and sweep.missing(wanted, tmp_path) == wanted[2:]
    rows = sweep.run(wanted, tmp_path)
    assert run == wanted and rows == [row for c in wanted for row in measured(c)]
    assert sweep.run(wanted, tmp_path) == rows and len(run) == 3
    more = [replace(c, methods=("single", "zero_shot")) for c in wanted]
    added = sweep.run(more, tmp_path)
    assert run[3:] == [replace(c, methods=("single",)) for c in wanted]  # a method can be added later
    assert [row["method"] for row in added] == ["zero_shot", "single"] * 3
    assert sweep.run(wanted, tmp_path) == rows
    with ThreadPoolExecutor(2) as executor:
        assert sweep.run(wanted, tmp_path / "other", executor=executor) == rows


def test_a_real_cell_survives_the_disk(tmp_path: Path, folder: Path) -> None:
    wanted = [cell(folder, "zero_shot", "average")]
    rows = sweep.run(wanted, tmp_path)
    assert sweep.run(wanted, tmp_path) == rows == json.loads(json.dumps(rows))
    path = sweep.write(rows, "made", {"draws": 1}, tmp_path)
    assert path == tmp_path / "made.json"
    content = sweep.read("made", tmp_path)
    assert (
        content["settings"] == {"draws": 1} and content["device"] and content["versions"]["torch"] and content["date"]
    )
    assert content["summary"] == json.loads(json.dumps(sweep.summarise(rows)))
    assert content["rows"][0]["loss"] == rows[0]["loss"]
    assert content["rows"][1]["top"] == [[name, 0.333] for name in ("m0", "m1", "m2")]
    with pytest.raises(CourseError, match="There is no study at .*other.json.*run lorahub-edu adapt sweep first"):
        sweep.read("other", tmp_path)
    cells.bench.cache_clear()


@pytest.mark.parametrize("change", [{"test_items": 7}, {"shots": 3}, {"profile": "cpu"}, {"modules": ("m0",)}])
def test_other_settings_are_refused(tmp_path: Path, folder: Path, run: list[Cell], change: dict) -> None:
    sweep.run([cell(folder)], tmp_path)
    with pytest.raises(
        CourseError, match=rf"measured with other settings \({next(iter(change))}\): use another folder"
    ):
        sweep.run([cell(folder, draw=1), cell(folder, "average", **change)], tmp_path)
    assert len(run) == 1  # refused before anything was measured


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"settings": {}}'])
def test_a_file_that_is_no_cell_is_refused(tmp_path: Path, folder: Path, run: list[Cell], text: str) -> None:
    (tmp_path / f"{TARGET}.0.json").write_text(text, encoding="utf-8")
    with pytest.raises(CourseError, match="is not a measured cell .*delete it"):
        sweep.run([cell(folder)], tmp_path)


def rows_of(figures: dict[tuple[str, str], list[float | None]]) -> list[dict]:
    """Rows with one figure for every measure; the place in a list is the draw."""
    return [
        {"target": target, "method": method, "draw": draw, "test_items": 8} | dict.fromkeys(sweep.MEASURES, value)
        for (target, method), values in figures.items()
        for draw, value in enumerate(values)
        if value is not None
    ]


FIGURES = {
    ("a", "zero_shot"): [0.1, 0.2, 0.6],
    ("b", "zero_shot"): [0.5, 0.4, 0.9],
    ("a", "average"): [0.25, 0.25, None],
    ("b", "average"): [0.75, None, 0.5],
}


def test_the_summary_by_hand() -> None:
    entries = {(entry["target"], entry["method"]): entry for entry in sweep.summarise(rows_of(FIGURES))}
    by_hand = {
        ("a", "zero_shot"): (3, 0.3, 0.1, 0.6),
        ("b", "zero_shot"): (3, 0.6, 0.4, 0.9),
        ("a", "average"): (2, 0.25, 0.25, 0.25),
        ("b", "average"): (2, 0.625, 0.5, 0.75),
        ("mean", "zero_shot"): (3, 0.45, 0.3, 0.75),  # each draw's mean over both targets: 0.3, 0.3, 0.75
        ("mean", "average"): (1, 0.5, 0.5, 0.5),  # only the first draw has both targets
    }
    assert entries.keys() == by_hand.keys()
    for key, (draws, mean, low, high) in by_hand.items():
        assert entries[key]["draws"] == draws
        for measure in sweep.MEASURES:
            assert entries[key][measure] == pytest.approx({"mean": mean, "low": low, "high": high})
    assert entries["mean", "zero_shot"]["targets"] == 2 and entries["a", "average"]["test_items"] == 8


def test_the_table() -> None:
    summary = sweep.summarise(rows_of(FIGURES))
    table = sweep.table(summary, caption="Exact match, percent")
    assert table.header == ("method", "a", "b", "mean")
    assert table.rows == (
        ("zero-shot", "30 (10–60)", "60 (40–90)", "45 (30–75)"),
        ("average of all, 1/N", "25", "62 (50–75)", "50"),
    )
    losses = sweep.table(summary, "loss", ["b"])
    assert losses.header == ("method", "b") and losses.rows[0] == ("zero-shot", "0.60 (0.40–0.90)")
    some = sweep.table(sweep.summarise(rows_of({("a", "single"): [0.5], ("b", "average"): [math.pi / 4]})))
    assert some.rows[0] == ("average of all, 1/N", "–", "79", "79") and some.rows[1][1:] == ("50", "–", "50")
    assert "Exact match, percent" in str(table) and "30 (10–60)" in str(table)
