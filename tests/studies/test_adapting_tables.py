"""What a sweep's rows show, against means and counts worked out by hand."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from lorahub_edu import results
from lorahub_edu.errors import CourseError
from lorahub_studies import adapting_tables as tables
from lorahub_studies import engine

TARGETS = ("less", "superlative")


def row(target: str, draw: int, method: str, strict: float, **more: object) -> dict:
    """A made-up row of a sweep."""
    filled = {measure: 0.0 for measure in tables.MEASURES} | {"strict": strict, "answer_only": min(1.0, strict + 0.1)}
    return {"target": target, "draw": draw, "method": method, "test_items": 100, "modules": 20} | filled | more


@pytest.fixture
def rows() -> list[dict]:
    """cma_40 and single over two targets and three draws; single misses draw 2 of one target; ia3 has one target."""
    strict = {  # (method, target): one value a draw
        ("cma_40", "less"): (0.50, 0.40, 0.30),
        ("cma_40", "superlative"): (0.20, 0.30, 0.10),
        ("single", "less"): (0.30, 0.40),
        ("single", "superlative"): (0.10, 0.20, 0.90),
        ("ia3", "less"): (0.10, 0.20, 0.20),
    }
    return [
        row(target, draw, method, value, loss=1 - value)
        for (method, target), values in strict.items()
        for draw, value in enumerate(values)
    ]


def test_means_over_targets_draw_by_draw(rows: list[dict]) -> None:
    assert tables.per_draw(rows, "cma_40") == pytest.approx({0: 35.0, 1: 35.0, 2: 20.0})
    assert tables.per_draw(rows, "cma_40", targets=["less"]) == pytest.approx({0: 50.0, 1: 40.0, 2: 30.0})
    assert tables.per_draw(rows, "cma_40", "loss") == pytest.approx({0: 0.65, 1: 0.65, 2: 0.8})  # not in percent
    assert tables.per_draw(rows, "cma_40", "answer_only")[0] == pytest.approx(45.0)


def test_a_draw_without_every_target_is_left_out(rows: list[dict]) -> None:
    assert list(tables.per_draw(rows, "single")) == [0, 1]
    assert tables.difference(rows, "cma_40", "single") == pytest.approx({0: 15.0, 1: 5.0})


def test_only_common_targets_are_compared(rows: list[dict]) -> None:
    assert tables.difference(rows, "cma_40", "ia3") == pytest.approx({0: 40.0, 1: 20.0, 2: 10.0})
    assert tables.difference(rows, "ia3", "cma_40") == pytest.approx({0: -40.0, 1: -20.0, 2: -10.0})


def test_another_measure_of_the_other_method(rows: list[dict]) -> None:
    beside = tables.difference(rows, "cma_40", "ia3", other_measure="answer_only")
    assert beside == pytest.approx({0: 30.0, 1: 10.0, 2: 0.0})
    by_loss = tables.difference(rows, "cma_40", "ia3", "loss")
    assert by_loss == pytest.approx({0: -0.4, 1: -0.2, 2: -0.1})


def test_differences_equal_those_of_all_cells_in_numpy() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 5, 4))  # (draws, targets)
    rows = [
        row(f"t{t}", d, method, float(values[d, t]))
        for method, values in (("auto", a), ("cma_120", b))
        for d, t in itertools.product(range(5), range(4))
    ]
    found = tables.difference(rows, "auto", "cma_120")
    assert list(found.values()) == pytest.approx((100 * (a - b)).mean(1).tolist())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 3, 2], "shown"),
        ([-0.1, -3, -2], "refuted here"),
        ([0.1, -3, 2], "not shown here"),
        ([0.0, 3, 2], "not shown here"),
        ([-1, -1, 0.0], "not shown here"),
        ([5, 5], "not shown here"),  # two draws that agree are too few
        ([5, 5, math.nan], "not shown here"),
        ({0: 1.0, 1: 2.0, 2: 3.0}, "shown"),
    ],
)
def test_the_verdict_is_by_the_sign_of_every_draw(values: list[float] | dict[int, float], expected: str) -> None:
    assert tables.verdict(values) == expected


def test_break_even_balances_what_both_ways_read() -> None:
    queries = tables.break_even(40, 50, 130, 30)
    assert queries == 20
    assert 40 * 50 + queries * 30 == queries * 130  # tokens read in all, either way
    with pytest.raises(CourseError, match="30 and 130 tokens: are the two swapped"):
        tables.break_even(40, 50, 30, 130)


def test_values_by_number_of_modules() -> None:
    rows = [row("less", d, "cma_40", 0.1 * d, modules=m) for m, d in itertools.product((20, 5), (0, 1, 2))]
    rows.append(row("superlative", 0, "cma_40", 0.7, modules=5))
    found = tables.spread_by_modules(rows, "cma_40")
    assert list(found) == [5, 20]
    assert found[20] == {"less": pytest.approx([0, 10, 20])}
    assert found[5] == {"less": pytest.approx([0, 10, 20]), "superlative": pytest.approx([70])}


def test_relatives_among_the_largest_weights() -> None:
    def top(*names: str) -> list[list]:
        return [[name, 1.0] for name in names]

    rows = [
        row("gerund_upper", 0, "auto", 0.5, top=top("add", "upper", "past", "gerund")),
        row("gerund_upper", 1, "auto", 0.5, top=top("add", "bool", "past", "gerund")),  # the fourth is not looked at
        row("less", 0, "auto", 0.5, top=top("greater")),
        row("less", 1, "auto", 0.5, top=top("greater")),
        row("second_word", 0, "auto", 0.5, top=top("add")),  # nothing named: left out
    ]
    named = {"gerund_upper": ("gerund", "upper"), "less": ("greater",), "second_word": ()}
    share, chance = tables.relatives_found(rows, "auto", named, within=3)
    assert share == {0: 100.0, 1: 50.0}
    drawn = [set(three) for three in itertools.combinations(range(20), 3)]  # all equally likely
    by_drawing = [100 * np.mean([bool(d & set(range(k))) for d in drawn]) for k in (2, 1)]
    assert chance == pytest.approx(np.mean(by_drawing))
    with pytest.raises(CourseError, match="no row of the method 'auto'"):
        tables.relatives_found(rows, "auto", {"second_word": ()})


def test_the_overview_has_means_and_ranges(rows: list[dict]) -> None:
    for entry in rows:
        entry |= {"prompt_tokens": 18.0, "seconds": 90.0, "cpu_seconds": 7.0}
    table = tables.overview(tables.summarise([r for r in rows if r["method"] == "cma_40"]))
    assert isinstance(table, results.Table)
    assert table.rows == (
        ("CMA-ES, 40", "30.0 (20.0–35.0)", "40.0 (30.0–45.0)", "0.70 (0.65–0.80)", "18", "7", "2 × 3"),
    )


def test_a_finding_carries_the_sweeps_circumstances(tmp_path: Path, rows: list[dict]) -> None:
    tables.write(rows, "made_up", {"profile": "cpu"}, tmp_path)
    content = engine.read("made_up", tmp_path) | {"device": "another machine", "date": "2020-01-01"}
    values = tables.difference(rows, "cma_40", "single")
    found = tables.finding(content, "H12.over_single", values, "points", verdict="not shown here", model="a model")
    assert (found.claim, found.values, found.seeds) == ("H12", (pytest.approx(15.0), pytest.approx(5.0)), (0, 1))
    assert (found.device, found.date, found.profile) == ("another machine", "2020-01-01", "cpu")
    assert (found.versions, found.model) == (results.library_versions(), "a model")
    assert tables.finding(content, "H16.spread", [1.0, 2.0], "points").seeds == ()


def test_a_benchmark_that_was_not_run_is_none(tmp_path: Path) -> None:
    assert tables.benchmark("adapt_memory", tmp_path) is None
    results.write_json(tmp_path / "benchmark_adapt_memory.json", {"peak_gb": {"ours-float32": 1.0}})
    assert tables.benchmark("adapt_memory", tmp_path) == {"peak_gb": {"ours-float32": 1.0}}
    (tmp_path / "benchmark_adapt_memory.json").write_text(json.dumps({"a": 1})[:3])
    assert tables.benchmark("adapt_memory", tmp_path) is None


def test_what_was_not_measured_is_said(rows: list[dict]) -> None:
    with pytest.raises(CourseError, match="no row of the method 'cma_4'.*'cma_40'"):
        tables.per_draw(rows, "cma_4")
    half = [r for r in rows if (r["target"], r["draw"]) in (("less", 0), ("superlative", 1))]
    with pytest.raises(CourseError, match="no draw in which 'cma_40' beside 'single'"):
        tables.difference(half, "cma_40", "single")
    with pytest.raises(CourseError, match="no draw in which 'cma_40' beside 'single'"):
        tables.over_targets(half, "cma_40", "single")


def test_a_difference_that_is_only_rounding_decides_nothing() -> None:
    assert tables.verdict([1e-16, 0.5, 0.7]) == "not shown here"
    assert tables.verdict([-1e-16, -0.5, -0.7]) == "not shown here"


def rows_of(table: dict[str, list[float]], method: str) -> list[dict]:
    """A row a target and draw; exact match from 0 to 1."""
    return [
        {"target": t, "draw": d, "method": method, "strict": v}
        for t, values in table.items()
        for d, v in enumerate(values)
    ]


def test_an_interval_over_targets_is_that_of_a_bootstrap_over_both() -> None:
    generator = np.random.default_rng(1)
    ours = {f"t{i}": list(0.5 + generator.normal(0, 0.2) + generator.normal(0, 0.05, 5)) for i in range(12)}
    rows = rows_of(ours, "auto") + rows_of({t: [0.4] * 5 for t in ours}, "single")
    found = tables.over_targets(rows, "auto", "single")
    table = 100 * (np.array(list(ours.values())) - 0.4)
    own = np.random.default_rng(7)
    means = []
    for _ in range(4000):
        targets = own.integers(12, size=12)
        means.append(np.mean([own.choice(table[t], 5).mean() for t in targets]))
    assert found["mean"] == pytest.approx(table.mean())
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.6)
    assert (found["ahead"], found["behind"]) == ((table.mean(1) > 0).sum(), (table.mean(1) < 0).sum())


def test_four_targets_ahead_and_four_behind_show_nothing() -> None:
    """Every draw's mean is above zero, but the targets disagree: the sign over draws would call it shown."""
    ahead = {f"t{i}": [0.5 + (0.2 if i < 4 else -0.1)] * 3 for i in range(8)}
    rows = rows_of(ahead, "cma_40") + rows_of({t: [0.5] * 3 for t in ahead}, "ngopt_40")
    assert tables.verdict(tables.difference(rows, "cma_40", "ngopt_40")) == "shown"
    found = tables.over_targets(rows, "cma_40", "ngopt_40")
    assert (found["ahead"], found["behind"]) == (4, 4)
    assert tables.verdict_over_targets(found) == "not shown here"
    assert tables.verdict_over_targets({"low": 0.1, "high": 2.0}) == "shown"
    assert tables.verdict_over_targets({"low": -2.0, "high": -0.1}) == "refuted here"


def test_pairs_of_methods_in_one_table() -> None:
    rows = rows_of({"a": [0.9, 0.8], "b": [0.7, 0.6]}, "auto") + rows_of({"a": [0.4, 0.4], "b": [0.4, 0.4]}, "single")
    table = tables.against(rows, [("auto", "single"), ("single", "auto")], "caption")
    first, second = table.rows
    assert first[0] == "auto, 120 (exact, greedy) minus best single module" and first[1] == "+35.0"
    assert first[3:] == ("2 and 0", "shown") and second[1] == "-35.0" and second[3:] == ("0 and 2", "refuted here")


def test_the_largest_weight_is_a_mean_over_targets() -> None:
    tops = {"a": [["x", -1.5], ["y", 0.2]], "b": [["x", 0.5]]}
    rows = [row(target, 0, "cma_40", 0.0, top=top) for target, top in tops.items()]
    assert tables.largest_weights(rows, "cma_40") == {0: 1.0}
