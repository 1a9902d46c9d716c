"""A trial's row against merged float64 weights; a sweep goes on, sums up as by hand, and fills a table."""

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
from lorahub_studies import adapting, baselines, engine
from lorahub_studies import adapting_tables as tables
from lorahub_studies.adapting import METHODS, Approach, Trial

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
    """Trials in float32 instead of bfloat16, so that figures can be compared to five digits."""
    load = pretrained.load
    monkeypatch.setattr(adapting.pretrained, "load", lambda *a, **k: load(*a, **k | {"dtype": "float32"}))
    adapting.bench.cache_clear()
    yield
    adapting.bench.cache_clear()


def trial(folder: Path, method: str = "zero_shot", draw: int = 0, **changes) -> Trial:
    settings = {"folder": str(folder), "profile": "tiny", "test_items": ITEMS}
    return Trial(TARGET, draw, method, **settings | changes)


def rows_of_trials(folder: Path, *methods: str, **changes) -> list[dict]:
    return [adapting.run(trial(folder, method, **changes)) for method in methods]


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
    rows = {row["method"]: row for row in rows_of_trials(folder, *FIXED, "random_40", draw=3)}
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
    before, row, after = rows_of_trials(folder, "zero_shot", tuning, "zero_shot")
    model = tiny.model()
    with baselines.tuned(model, encoded(tasks.draw(tasks.get(TARGET), 0)), short) as history:
        expected = score(model, encoded(tasks.get(TARGET).test[:ITEMS])).losses[0]
    assert row["loss"] == pytest.approx(expected, abs=1e-4) and row["evaluations"] == 3
    assert row["example_loss"] == pytest.approx(history[-1], abs=1e-4)
    assert before == after and row["loss"] != before["loss"]


def test_trials_run_in_bfloat16_and_say_what_ran(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "auto", Approach("auto", "search", {"optimizer": "auto", "budget": 5}))
    monkeypatch.setitem(METHODS, "cma_40", Approach("CMA-ES", "search", {"optimizer": "cma", "budget": 7}))
    adapting.bench.cache_clear()
    first = rows_of_trials(folder, "auto", "cma_40", shots=2)
    assert adapting.bench("tiny", (), str(folder), "").model.dtype == torch.bfloat16
    assert [row["evaluations"] for row in first] == [5, 7] and [row["failed"] for row in first] == [0, 0]
    assert [row["algorithm"] for row in first] == ["greedy coordinate search", "CMA-ES"]
    again = rows_of_trials(folder, "auto", "cma_40", shots=2)
    for a, b in zip(first, again, strict=True):
        assert {k: v for k, v in a.items() if "seconds" not in k} == {k: v for k, v in b.items() if "seconds" not in k}
    adapting.bench.cache_clear()


def test_unknown_targets_and_modules(folder: Path) -> None:
    with pytest.raises(CourseError, match="no task 'nothing'"):
        adapting.run(replace(trial(folder), target="nothing"))
    with pytest.raises(CourseError, match="no module 'm9'"):
        adapting.run(trial(folder, modules=("m9",)))
    adapting.bench.cache_clear()


# The tables.


def measured(trial_: Trial) -> dict:
    """A row as `run` gives it, with made-up figures that differ by target, draw and method."""
    value = (len(trial_.target) % 7 + 2 * trial_.draw + 4 * list(METHODS).index(trial_.method)) / 16
    row = {"target": trial_.target, "draw": trial_.draw, "method": trial_.method, "test_items": 8}
    return row | dict.fromkeys(tables.MEASURES, value)


class Measuring:
    """Stands in for the measuring; holds the trials that were measured."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []

    def __call__(self, trial_: Trial) -> dict:
        self.trials.append(trial_)
        return measured(trial_)


def test_a_sweep_measures_only_what_is_missing(tmp_path: Path, folder: Path) -> None:
    work = Measuring()
    wanted = [trial(folder, method, draw) for draw in range(3) for method in ("zero_shot", "average")]
    reported = []

    def killed(trial_: Trial, row: dict) -> None:
        reported.append(row)
        if len(reported) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run(wanted, work, tmp_path, report=killed)
    assert work.trials == wanted[:4] and engine.missing(wanted, tmp_path) == wanted[4:]
    rows = engine.run(wanted, work, tmp_path)
    assert work.trials == wanted and rows == [measured(trial_) for trial_ in wanted]
    assert engine.run(wanted, work, tmp_path) == rows and len(work.trials) == 6
    more = [trial(folder, method, draw) for draw in range(3) for method in ("zero_shot", "single")]
    added = engine.run(more, work, tmp_path)
    assert work.trials[6:] == more[1::2]  # a method can be added later
    assert [row["method"] for row in added] == ["zero_shot", "single"] * 3
    assert engine.run(wanted, work, tmp_path) == rows
    with ThreadPoolExecutor(2) as executor:
        assert engine.run(wanted, work, tmp_path / "other", executor=executor) == rows


def test_a_plan_goes_draw_after_draw(folder: Path) -> None:
    planned = adapting.plan(["less", "count_words"], ["single", "zero_shot"], 2, folder=str(folder), test_items=ITEMS)
    assert [(t.draw, t.target, t.method) for t in planned] == [
        (draw, target, method)
        for draw in range(2)
        for target in ("less", "count_words")
        for method in ("single", "zero_shot")
    ]
    assert {(t.folder, t.test_items) for t in planned} == {(str(folder), ITEMS)}
    assert len(adapting.plan(draws=1)) == len(tasks.names("target")) * len(METHODS)


def test_a_left_out_target_is_fresh_and_its_module_is_not_in_the_zoo() -> None:
    trials = adapting.left_out()
    targets = {trial.target for trial in trials}
    assert len(targets) == 12 and not targets & set(tasks.names("target"))
    assert len(trials) == 12 * 5 * len(adapting.LEFT_OUT_METHODS) == len(set(trials))
    assert all(len(trial.modules) == 19 and trial.target not in trial.modules for trial in trials)
    released = METHODS["released_40"].settings
    assert released == {"optimizer": "ngopt", "budget": 40, "original_scale": True}


def test_a_real_trial_survives_the_disk(tmp_path: Path, folder: Path) -> None:
    wanted = [trial(folder, "zero_shot"), trial(folder, "average")]
    rows = engine.run(wanted, adapting.run, tmp_path)
    assert engine.run(wanted, adapting.run, tmp_path) == rows == json.loads(json.dumps(rows))
    path = tables.write(rows, "made", {"draws": 1}, tmp_path)
    assert path == tmp_path / "made.json"
    content = engine.read("made", tmp_path)
    assert (
        content["settings"] == {"draws": 1} and content["device"] and content["versions"]["torch"] and content["date"]
    )
    assert content["summary"] == json.loads(json.dumps(tables.summarise(rows)))
    assert content["rows"][0]["loss"] == rows[0]["loss"]
    assert content["rows"][1]["top"] == [[name, 0.333] for name in ("m0", "m1", "m2")]
    with pytest.raises(CourseError, match="There is no study at .*other.json.*run lorahub-edu adapt sweep first"):
        engine.read("other", tmp_path)
    adapting.bench.cache_clear()


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"job": {}}'])
def test_a_line_that_is_no_trial_is_refused(tmp_path: Path, folder: Path, text: str) -> None:
    (tmp_path / engine.STORE).write_text(text + "\n", encoding="utf-8")
    with pytest.raises(CourseError, match="Line 1 of .* is not a finished job .*delete the line"):
        engine.run([trial(folder)], Measuring(), tmp_path)


def rows_of(figures: dict[tuple[str, str], list[float | None]]) -> list[dict]:
    """Rows with one figure for every measure; the place in a list is the draw."""
    return [
        {"target": target, "method": method, "draw": draw, "test_items": 8} | dict.fromkeys(tables.MEASURES, value)
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
    entries = {(entry["target"], entry["method"]): entry for entry in tables.summarise(rows_of(FIGURES))}
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
        for measure in tables.MEASURES:
            assert entries[key][measure] == pytest.approx({"mean": mean, "low": low, "high": high})
    assert entries["mean", "zero_shot"]["targets"] == 2 and entries["a", "average"]["test_items"] == 8


def test_the_table() -> None:
    summary = tables.summarise(rows_of(FIGURES))
    table = tables.table(summary, caption="Exact match, percent")
    assert table.header == ("method", "a", "b", "mean")
    assert table.rows == (
        ("zero-shot", "30 (10–60)", "60 (40–90)", "45 (30–75)"),
        ("average of all, 1/N", "25", "62 (50–75)", "50"),
    )
    losses = tables.table(summary, "loss", ["b"])
    assert losses.header == ("method", "b") and losses.rows[0] == ("zero-shot", "0.60 (0.40–0.90)")
    some = tables.table(tables.summarise(rows_of({("a", "single"): [0.5], ("b", "average"): [math.pi / 4]})))
    assert some.rows[0] == ("average of all, 1/N", "–", "79", "79") and some.rows[1][1:] == ("50", "–", "50")
    assert "Exact match, percent" in str(table) and "30 (10–60)" in str(table)
