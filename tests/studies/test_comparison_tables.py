"""What a comparison shows, on summaries whose answer is known."""

from __future__ import annotations

import pytest

from lorahub_studies import comparison_tables as tables

LMH = ("low", "mean", "high")


def entry(name: str, trainable: int = 7, **tasks: tuple[float, float, float]) -> dict:
    found = {
        task: {
            "strict": dict(zip(LMH, values, strict=True)),
            "loss": {"low": 1, "mean": 1, "high": 1},
        }
        for task, values in tasks.items()
    }
    return {"variant": name, "label": name.upper(), "trainable": trainable, "tasks": found}


LORA = entry("lora", 10, a=(0.5, 0.6, 0.7), b=(0.3, 0.3, 0.3))


@pytest.mark.parametrize(
    ("other", "expected"), [((0.1, 0.2, 0.4), 1), ((0.1, 0.2, 0.5), 0), ((0.7, 0.8, 0.9), 0), ((0.71, 0.8, 0.9), -1)]
)
def test_better_means_that_no_seed_overlaps(other: tuple, expected: int) -> None:
    assert tables.apart(LORA, entry("x", a=other), "a") == expected


def test_of_a_loss_less_is_better() -> None:
    low, high = entry("x", a=(0, 0, 0)), entry("y", a=(0, 0, 0))
    high["tasks"]["a"]["loss"] = {"low": 2, "mean": 2, "high": 2}
    assert tables.apart(low, high, "a", "loss") == 1 and tables.apart(high, low, "a", "loss") == -1


@pytest.mark.parametrize(
    ("rivals", "verdict"),
    [
        ([entry("x", a=(0.1, 0.1, 0.1), b=(0.3, 0.3, 0.3))], "shown"),
        ([entry("x", a=(0.6, 0.6, 0.6), b=(0.3, 0.3, 0.3))], "not shown here"),  # nothing beyond the spread
        ([entry("x", a=(0.8, 0.8, 0.8), b=(0.3, 0.3, 0.3))], "not shown here"),  # better on one task
        ([entry("x", a=(0.8, 0.8, 0.8), b=(0.4, 0.4, 0.4)), entry("y", a=(0, 0, 0), b=(0, 0, 0))], "refuted here"),
        ([], "not shown here"),
    ],
)
def test_the_verdict_follows_from_the_duels(rivals: list, verdict: str) -> None:
    assert tables.best_verdict(tables.duels([LORA, *rivals])) == verdict


def test_a_line_that_does_not_run_has_no_duel_and_no_point() -> None:
    broken = {"variant": "z", "label": "Z", "tasks": {}, "error": "no"}
    assert tables.duels([LORA, broken]) == {}
    assert tables.points([LORA, broken]) == {"LORA": (10, pytest.approx(0.45), pytest.approx(0.4), pytest.approx(0.5))}
    assert tables.mean_score(LORA) == pytest.approx(0.45)


def test_a_gain_is_over_the_better_part() -> None:
    prefix, both = entry("prefix", a=(0, 0.8, 1), b=(0, 0.2, 1)), entry("lora+prefix", a=(0, 0.5, 1), b=(0, 0.3, 1))
    found = tables.gains([LORA, prefix, both], ("lora+prefix", "lora+houlsby"))
    assert found == {"lora+prefix": pytest.approx(0.4 - 0.5)}  # means of the tasks: LoRA 0.45, prefix 0.5
    assert tables.gains([LORA], ("lora+prefix",)) == {}


def test_a_ratio_of_costs_wants_both() -> None:
    summary = [LORA | {"peak_bytes": 4}, entry("full") | {"peak_bytes": 6}, entry("ia3")]
    assert tables.ratio(summary, "full", "lora", "peak_bytes") == 1.5
    assert tables.ratio(summary, "ia3", "lora", "peak_bytes") is None
