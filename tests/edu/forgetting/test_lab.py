"""The rules of scaling agree where they should."""

from __future__ import annotations

import math

import pytest

from lorahub_edu.errors import CourseError
from lorahub_edu.forgetting import lab as study
from lorahub_edu.forgetting.lab import scaling


def test_all_rules_of_scaling_agree_at_rank_16() -> None:
    assert {scaling(rule, 16) for rule in study.RULES} == {2.0}
    assert scaling("alpha = 2r", 64) * 64 == 2 * 64
    assert scaling("rank-stabilised", 64) == pytest.approx(8 / math.sqrt(64))
    assert scaling("fixed alpha", 64) == pytest.approx(32 / 64)
    with pytest.raises(CourseError, match="Did you mean 'fixed alpha'"):
        scaling("fixed alfa", 1)
