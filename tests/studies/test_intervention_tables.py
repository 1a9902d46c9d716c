"""Reading interventions and sequences: worked by hand on rows whose numbers are chosen."""

from __future__ import annotations

import pytest
from forgetting_rows import intervened_row, sequence_row

from lorahub_studies import intervention_tables as tables


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


def test_sequences_forget_the_text_and_the_tasks_before() -> None:
    losses = [
        {"sort": 4.0, "caps": 5.0, "count": 6.0},
        {"sort": 1.0, "caps": 5.0, "count": 6.0},
        {"sort": 2.0, "caps": 1.5, "count": 6.0},
        {"sort": 3.0, "caps": 2.5, "count": 2.0},
    ]
    rows = [sequence_row(rank, seed, [0, 0.1, 0.2 + seed, 0.4], losses) for seed in (1, 0) for rank in (1, 0)]
    curves = tables.continual_curves(rows)
    assert list(curves) == [1, 0]
    assert curves[1][0] == pytest.approx([0, 0.1, 0.2, 0.4])
    assert curves[1][1] == pytest.approx([0, 0.1, 1.2, 0.4])  # by seed
    assert tables.task_forgetting(rows[0]) == {"sort": 2.0, "caps": 1.0}
    table = tables.continual_table(rows)
    assert table.rows[0] == (
        "LoRA, r = 1, alpha = 2r", "0.100", "0.700 (0.200 to 1.200)", "0.400", "1.50", "1.50", "12.0",
    )  # fmt: skip
    assert table.rows[1][0] == "full fine-tuning"
