"""Rank correlations against scipy and worked cases, and verdicts that can go either way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lorahub_edu.errors import CourseError
from lorahub_studies import correlation
from lorahub_studies.correlation import compare, correlate, judge, partial_rho


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlation, "RESAMPLES", 400)


def made(runs: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A common cause, and two quantities that follow it and nothing else."""
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=runs)
    return cause, cause + 0.5 * rng.normal(size=runs), cause + 0.5 * rng.normal(size=runs)


def test_rho_is_scipys_also_with_ties() -> None:
    x, y, _ = made()
    for left, right in ((x, y), (np.round(x), np.round(y)), (np.exp(x), -y)):
        assert partial_rho(left, right) == pytest.approx(stats.spearmanr(left, right).statistic)


def test_a_partial_rho_is_the_one_of_the_inverse_correlation_matrix() -> None:
    cause, x, y = made()
    other = np.random.default_rng(5).normal(size=len(x))
    ranks = np.stack([stats.rankdata(values) for values in (x, y, cause, other)])
    inverse = np.linalg.inv(np.corrcoef(ranks))
    expected = -inverse[0, 1] / math.sqrt(inverse[0, 0] * inverse[1, 1])
    assert partial_rho(x, y, [cause, other]) == pytest.approx(expected)


def test_a_common_cause_is_taken_out() -> None:
    cause, x, y = made(runs=400)
    assert correlate(x, y).low > 0.6
    without = correlate(x, y, [cause])
    assert without.low < 0 < without.high


def test_the_interval_is_near_the_one_of_the_normal_approximation() -> None:
    cause, x, _ = made(runs=200)
    found = correlate(cause, x)
    centre, width = math.atanh(found.rho), 1.96 * math.sqrt(1.06 / (found.runs - 3))  # Fieller's variance for ranks
    assert found.low == pytest.approx(math.tanh(centre - width), abs=0.04)
    assert found.high == pytest.approx(math.tanh(centre + width), abs=0.04)
    assert correlate(cause, x) == found


def test_a_quantity_that_does_not_vary_correlates_with_nothing() -> None:
    assert math.isnan(partial_rho(np.ones(8), np.arange(8.0)))
    assert math.isnan(partial_rho(np.arange(8.0), np.arange(8.0) ** 2, [np.arange(8.0)]))


def test_comparing_two_measures_is_the_difference_of_their_rhos() -> None:
    cause, x, y = made()
    found = compare(cause, y, x)
    assert found.rho == pytest.approx(partial_rho(cause, x) - partial_rho(y, x))
    assert found.low < found.rho < found.high


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(CourseError, match="at least 5 runs"):
        correlate([1.0, 2.0], [1.0, 2.0])


def runs_where(nuclear_leads: bool, clean_forgets: bool) -> list[dict[str, float]]:
    rng = np.random.default_rng(3)
    rows = []
    for size in np.linspace(0.1, 3.0, 40):
        noisy = size + rng.normal(scale=0.4)
        count = max(0.0, round(4 * (size - 1) + rng.normal(scale=0.3)))
        nuclear, forgetting = (size, size) if nuclear_leads else (noisy, count + 0.01 * size)
        rows.append(
            {
                "forgetting": forgetting, "loss": rng.normal(), "intruders": count, "spike_ratio": noisy,
                "relative_size": size + rng.normal(scale=0.05), "nuclear_norm": nuclear,
            }
        )  # fmt: skip
    if clean_forgets:
        rows.append(dict.fromkeys(rows[0], 1.5) | {"intruders": 0.0, "forgetting": 99.0, "nuclear_norm": 99.0})
    return rows


def test_verdicts_follow_the_rows() -> None:
    one, other = judge(runs_where(True, True)), judge(runs_where(False, False))
    assert {name: verdict["held"] for name, verdict in one.items()} == {
        "H1": True, "H2": True, "H3": True, "H4": True, "H5": True,
    }  # fmt: skip
    assert not other["H2"]["held"] and not other["H3"]["held"] and not other["H4"]["held"] and not other["H5"]["held"]
    reversed_ = [run | {"forgetting": -run["forgetting"]} for run in runs_where(True, True)]
    assert not judge(reversed_)["H1"]["held"]
