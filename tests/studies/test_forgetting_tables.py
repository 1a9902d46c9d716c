"""Reading the studies' rows: worked by hand on rows whose numbers are chosen."""

from __future__ import annotations

import pytest
from forgetting_rows import BASE, intervened_row, point, run_row

from lorahub_edu.errors import CourseError
from lorahub_studies import forgetting_tables as tables

RULE = "alpha = 2r"


@pytest.fixture
def rows() -> list[dict]:
    """Three ways to train with two seeds each; one more run diverged and one learned nothing."""
    return [
        run_row(1, RULE, 0, [point(10, 3.0, 0.2, 4), point(20, 2.0, 0.4, 8)]),
        run_row(1, RULE, 1, [point(10, 3.0, 0.4, 6), point(20, 2.2, 0.6, 6)]),
        run_row(16, RULE, 1, [point(10, 2.0, 0.3, 0), point(20, 1.0, 0.1, 0)]),
        run_row(16, RULE, 0, [point(10, 2.0, 0.1, 0), point(20, 1.0, 0.1, 2)]),
        run_row(64, "fixed alpha", 0, [point(10, 2.0, 0.9), point(20, 1.9, 0.9)]),
        run_row(64, RULE, 0, [point(10, 1.0, 0.5), point(20, 0.9, 0.7)]),
        run_row(64, RULE, 1, [point(10, 1.0, 0.5), point(20, 0.9, 0.5)]),
        run_row(64, RULE, 2, []),
        run_row(64, RULE, 3, [point(10, 4.5, 2.0)]),
        run_row(0, "", 0, [point(10, 3.0, 0.1), point(20, 2.0, 0.2)]),
    ]


def test_a_trajectory_begins_at_the_base(rows: list[dict]) -> None:
    steps = tables.trajectory(rows[0])
    assert [step["step"] for step in steps] == [0, 10, 20]
    assert steps[0]["loss"] == BASE["loss"] and steps[0]["forgetting"] == steps[0]["nuclear_norm"] == 0
    assert steps[2]["forgetting"] == pytest.approx(0.4) and steps[2]["intruders"] == 8


def test_quantities_at_a_loss_lie_on_the_line_between_two_steps(rows: list[dict]) -> None:
    there = tables.at_loss(rows[0], 2.25)  # three quarters of the way from step 10 to step 20
    assert there["step"] == pytest.approx(17.5)
    assert there["forgetting"] == pytest.approx(0.35)
    assert there["intruders"] == pytest.approx(7.0)
    assert tables.at_loss(rows[0], 3.5)["forgetting"] == pytest.approx(0.1)  # between the base and step 10
    assert tables.at_loss(rows[0], 3.0)["step"] == 10
    assert tables.at_loss(rows[0], 1.9) is None


def test_the_first_crossing_counts(rows: list[dict]) -> None:
    bumpy = run_row(1, RULE, 0, [point(10, 2.0, 0.2), point(20, 3.0, 0.4), point(30, 1.0, 0.9)])
    assert tables.at_loss(bumpy, 2.5)["step"] == pytest.approx(7.5)


def test_the_matched_loss_is_one_that_every_run_reaches(rows: list[dict]) -> None:
    kept = tables.learned(rows)
    assert len(kept) == 8
    assert tables.matched_loss(kept) == 2.2
    assert all(tables.at_loss(row, 2.2) is not None for row in kept)
    with pytest.raises(CourseError, match="no run to match"):
        tables.matched_loss([])


def test_values_stand_by_arm_and_seed(rows: list[dict]) -> None:
    values = tables.by_arm(rows, "forgetting")
    assert list(values) == [(1, RULE), (16, RULE), (64, "fixed alpha"), (64, RULE), (0, "")]
    assert values[1, RULE] == pytest.approx([0.4, 0.6])
    assert values[64, RULE] == pytest.approx([0.7, 0.5])
    assert tables.by_arm(rows, "intruders", loss=2.5)[1, RULE] == pytest.approx([6.0, 6.0])
    assert (1, RULE) not in tables.by_arm(rows, "loss", loss=1.5)
    with pytest.raises(CourseError, match="Did you mean 'forgetting'"):
        tables.by_arm(rows, "forgeting")


def test_a_curve_over_the_rank_takes_rank_16_under_every_rule(rows: list[dict]) -> None:
    assert list(tables.rank_curve(rows, "forgetting", RULE)) == [1, 16, 64, 0]
    assert list(tables.rank_curve(rows, "forgetting", "fixed alpha")) == [16, 64, 0]
    assert tables.least_forgetting(rows, RULE) == [16, 16]
    with pytest.raises(CourseError, match="Did you mean 'fixed alpha'"):
        tables.rank_curve(rows, "loss", "fixed alfa")


def test_tables_say_mean_and_spread(rows: list[dict]) -> None:
    table = tables.arms_table(rows, caption="at the end")
    assert table.rows[0][:5] == ("LoRA, r = 1, alpha = 2r", "2", "0.001", "2", "2.10 (2.00 to 2.20)")
    assert table.rows[0][5:7] == ("0.500 (0.400 to 0.600)", "7.0 (6.0 to 8.0)")
    assert table.rows[-1][:2] == ("full fine-tuning", "–")
    matched = tables.arms_table(rows, loss=2.5)
    assert matched.header[4] == "step" and matched.rows[-1][4] == "15"


def test_the_correlations_are_over_the_runs_that_learned(rows: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorahub_studies.correlation.RESAMPLES", 50)
    table = tables.correlations_table(rows)
    assert table.caption == "8 runs"
    assert [line[0] for line in table.rows] == [tables.LABELS[name] for name in tables.MEASURES]
    assert table.rows[2][2] == "–"  # a measure given itself
    assert len(tables.correlations_table(rows, loss=2.5).header) == 3
    assert len(tables.quantities(rows)) == 8 and len(tables.quantities(rows, loss=1.0)) == 4


@pytest.fixture
def intervened() -> list[dict]:
    return [
        intervened_row(
            rank,
            seed,
            [
                ("intruders", 0.7, 2.0, 0.75),
                ("intruders", 0.0, 2.5, 0.25),
                ("others", 0.7, 3.0, 1.2),
                ("others", 0.0, 3.5, 1.0),
                ("update", 0.7, 2.04, 0.5 - 0.1 * seed),
                ("update", 0.0, 4.0, 0.0),
            ],
        )
        for rank in (1, 64)
        for seed in range(2)
    ]


def test_an_intervention_removes_a_share_of_the_forgetting_at_a_price(intervened: list[dict]) -> None:
    entry = next(e for e in tables.intervention_effects(intervened) if e["kind"] == "intruders")
    assert entry["removed"] == pytest.approx(0.25) and entry["task"] == pytest.approx(0.0) and entry["intruders"] == 7
    assert tables.removed_at_cost(intervened, "intruders", 0.05) == pytest.approx([0.25] * 4)
    assert tables.removed_at_cost(intervened, "update", 0.05) == pytest.approx([0.5, 0.6, 0.5, 0.6])
    assert tables.removed_at_cost(intervened, "others", 0.05) == [0.0] * 4
    assert tables.removed_at_cost(intervened, "intruders", 1.0) == pytest.approx([0.75] * 4)
    table = tables.interventions_table(intervened)
    assert [line[:2] for line in table.rows] == [
        ("LoRA, r = 1", "0.7"), ("LoRA, r = 1", "0"), ("LoRA, r = 64", "0.7"), ("LoRA, r = 64", "0"),
    ]  # fmt: skip
    assert table.rows[0][2:] == ("25 % at 0.00", "-20 % at 1.00", "55 (50 to 60) % at 0.04")


def test_the_best_rate_of_each_rank_and_seed() -> None:
    losses = {(1, 0, 1e-3): 2.0, (1, 0, 2e-3): 1.5, (1, 1, 1e-3): 1.0, (1, 1, 2e-3): 1.5, (0, 0, 1e-4): 3.0}
    rows = [
        run_row(rank, "fixed alpha" if rank else "", seed, [point(20, loss, 0.0)], rate=rate)
        for (rank, seed, rate), loss in losses.items()
    ]
    rows.append(run_row(0, "", 0, [], rate=2e-4))  # diverged
    rows.append(run_row(16, "alpha = 2r", 0, [], rate=2e-3))
    assert tables.best_rates(rows) == {1: [2e-3, 1e-3], 0: [1e-4]}
    table = tables.rates_table(rows)
    assert table.header == ("method", "0.0001", "0.0002", "0.001", "0.002")
    assert table.rows == (
        ("LoRA, r = 1, fixed alpha", "–", "–", "1.50 (1.00 to 2.00)", "1.50"),
        ("full fine-tuning", "3.00", "–", "–", "–"),
        ("LoRA, r = 16, alpha = 2r", "–", "–", "–", "–"),
    )
