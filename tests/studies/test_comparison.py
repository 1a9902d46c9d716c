"""The comparison on the tiny model: one rate search for all, resuming, errors kept as lines, sums by hand."""

from __future__ import annotations

import json

import pytest

from lorahub_edu.errors import CourseError
from lorahub_studies import comparison, comparison_tables, engine
from lorahub_studies.comparison import Cost, Grid, MethodRun

GRID = Grid(
    variants=("ia3", "lora+prefix"), tasks=(("upper", 2),), seeds=(0, 1), profile="tiny", batch_size=4, test_items=6,
    costs=False,
)  # fmt: skip


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list:
    """Runs that only look at their settings, and a list of those that were made."""
    made: list = []

    def run(run: MethodRun) -> dict:
        made.append(run)
        entry = {"variant": run.variant, "task": run.task, "rate": run.rate, "seed": run.seed, "steps": run.steps}
        if run.variant == "prefix" or run.rate > 0.02:
            return entry | {"error": "ValueError: no"}
        scores = {"strict": 0.1 * (1 + run.seed), "answer_only": 0.5, "loss": 1.0, "answer_loss": 1.0}
        return entry | scores | {
            "trainable": 7, "cpu_seconds": 2.0, "validation_loss": abs(run.rate - 3e-3), "test_items": 6
        }  # fmt: skip

    monkeypatch.setattr(comparison, "run", run)
    return made


def test_a_real_sweep_of_two_lines_runs_and_goes_on(tmp_path) -> None:
    rows = comparison.sweep(GRID, tmp_path)
    assert len(rows) == 2 * (3 + 1) and not any("error" in row for row in rows)
    counts = {row["variant"]: row["trainable"] for row in rows}
    assert counts["ia3"] == 2048  # 4 layers of keys and values (64 each) and inner activations (384)
    # half of LoRA's 14,336 for each: rank 4, and 14 tokens of keys and values in 4 layers
    assert counts["lora+prefix"] == 7168 + 14 * 4 * 2 * 64
    again = comparison.sweep(GRID, tmp_path, report=lambda row: pytest.fail("measured twice"))
    assert again == rows


def test_a_run_is_a_pure_function_of_its_settings() -> None:
    run = MethodRun("lora", "upper", 3e-3, 1, 2, "tiny", 4, 6)
    first, again = comparison.run(run), comparison.run(run)
    same = [key for key in first if key != "cpu_seconds"]
    assert [first[key] for key in same] == [again[key] for key in same]
    assert comparison.run(MethodRun("lora", "upper", 3e-3, 2, 2, "tiny", 4, 6))["loss"] != first["loss"]


def test_no_run_trains_on_what_rates_are_chosen_or_judged_by() -> None:
    tokenizer = comparison.pretrained.load("tiny")[1]
    rows = comparison.rows_of("antonym", tokenizer, 100)
    prompts = [{tuple(row.prompt_ids) for row in part} for part in (rows.training, rows.validation, rows.test)]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    assert len(rows.test) == 100


def test_the_rate_is_the_one_of_lowest_validation_loss_and_only_it_is_repeated(tmp_path, fast) -> None:
    grid = Grid(("lora", "ia3"), (("upper", 2), ("antonym", 2)), (0, 1, 2), "tiny", costs=False)
    rows = comparison.sweep(grid, tmp_path)
    assert comparison_tables.chosen_rates(rows) == {
        (task, variant): 3e-3 for task in ("upper", "antonym") for variant in ("lora", "ia3")
    }
    assert len(fast) == 2 * 2 * 3 + 2 * 2 * 2
    assert {run.rate for run in fast if run.seed > 0} == {3e-3}


def test_the_search_looks_at_no_test_score(tmp_path, fast, monkeypatch) -> None:
    real = comparison.run
    monkeypatch.setattr(comparison, "run", lambda run: real(run) | {"strict": 1.0 if run.rate == 1e-3 else 0.0})
    rows = comparison.sweep(Grid(("lora",), (("upper", 2),), (0,), "tiny", costs=False), tmp_path)
    assert comparison_tables.chosen_rates(rows) == {("upper", "lora"): 3e-3}


def test_what_does_not_run_keeps_its_line(tmp_path, fast) -> None:
    grid = Grid(("lora", "prefix"), (("upper", 2),), (0, 1), "tiny", costs=False)
    summary = comparison_tables.summarise(comparison.sweep(grid, tmp_path))
    assert [entry["variant"] for entry in summary] == ["lora", "prefix"]
    assert summary[1]["error"] == "ValueError: no" and not summary[1]["tasks"]
    assert "ValueError: no" in str(comparison_tables.table(summary))


def test_a_rate_that_diverges_is_no_failure_of_the_method(tmp_path, fast) -> None:
    summary = comparison_tables.summarise(
        comparison.sweep(Grid(("bitfit",), (("upper", 2),), (0, 1), "tiny", costs=False), tmp_path)
    )
    assert "error" not in summary[0]  # 3e-2 fails, 3e-3 and 1e-2 don't
    found = summary[0]["tasks"]["upper"]
    assert found["rate"] == 3e-3 and found["edge"] and found["seeds"] == 2
    assert found["strict"] == {"mean": pytest.approx(0.15), "low": pytest.approx(0.1), "high": pytest.approx(0.2)}
    assert "15 (10–20)" in str(comparison_tables.table(summary))


def test_a_line_can_be_added_later_and_a_damaged_store_is_refused(tmp_path, fast) -> None:
    one = Grid(("lora",), (("upper", 2),), (0,), "tiny", costs=False)
    comparison.sweep(one, tmp_path)
    fast.clear()
    comparison.sweep(Grid(("lora", "ia3"), (("upper", 2),), (0,), "tiny", costs=False), tmp_path)
    assert {run.variant for run in fast} == {"ia3"}
    other = Grid(("lora",), (("upper", 3),), (0, 1), "tiny", costs=False)
    assert comparison.progress(one, tmp_path).endswith(" 0 still to be done.")
    assert comparison.progress(other, tmp_path) == "4 runs and measurements of cost, 4 still to be done."
    (tmp_path / engine.STORE).write_text("{\n", encoding="utf-8")
    with pytest.raises(CourseError, match="delete the line"):
        comparison.sweep(one, tmp_path)


def test_a_folder_that_is_a_file_is_refused(tmp_path, fast) -> None:
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(CourseError, match="taken.*--out"):
        comparison.sweep(GRID, tmp_path / "taken")
    assert not fast


def test_the_summary_is_written_with_its_circumstances_and_read(tmp_path, fast) -> None:
    grid = Grid(("lora",), (("upper", 2),), (0,), "tiny", costs=False)
    path = comparison.write(comparison.sweep(grid, tmp_path / "runs"), grid, tmp_path)
    found = engine.read("methods", tmp_path)
    assert path.name == "methods.json" and found["settings"]["base_model"] == "tiny-random-llama"
    assert {"peft", "transformers", "torch"} <= set(found["versions"])
    assert found["summary"] == json.loads(json.dumps(comparison_tables.summarise(found["rows"])))
    with pytest.raises(CourseError, match="methods sweep"):
        engine.read("methods", tmp_path / "elsewhere")


def test_what_a_method_costs_is_measured() -> None:
    measured = comparison.cost(Cost("houlsby", "tiny", 2))
    assert "error" not in measured
    assert measured["trainable"] == 8 * (2 * 128 * 6 + 6 + 128)  # 6 neurons come nearest to LoRA's 14,336
    assert measured["disk_bytes"] >= 4 * measured["trainable"]
    assert measured["peak_bytes"] >= measured["loaded_bytes"] > 0
    assert measured["step_seconds"] > 0 and measured["tokens_per_second"] > 0


def test_what_fails_while_it_runs_becomes_an_error_in_words(monkeypatch) -> None:
    def broken(*_arguments, **_options) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(comparison, "train", broken)
    row = comparison.run(MethodRun("lora", "upper", 3e-3, 0, 2, "tiny", 4, 6))
    assert row["error"] == "RuntimeError: no such kernel"
    assert not any(
        "lora_" in name for name, _ in comparison._shared("tiny")[0].named_parameters()
    )  # the base is clean again


def test_a_task_needs_its_steps() -> None:
    with pytest.raises(CourseError, match="on reverse. Give --steps"):
        comparison.plan(tasks=["upper", "reverse"], profile="tiny")


def test_every_line_of_the_comparison_can_be_attached_at_its_size() -> None:
    model = comparison.pretrained.load("tiny")[0]
    lora = comparison.count_trainable(model, comparison.parts_of("lora", {}))
    for name, variant in comparison.VARIANTS.items():
        if name not in ("qlora", "full"):
            made = comparison.attach_variant(variant, model)
            assert not variant.matched or abs(made.trainable / lora - 1) < 0.1, name
            comparison.detach(made)
        assert len(variant.rates) == 3
