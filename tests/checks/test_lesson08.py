"""What variants can't show of lesson 08's checks: a message that belongs to one property and not to the first."""

from __future__ import annotations

from torch import Tensor

from lorahub_edu.show.check import check
from lorahub_edu.spectra import measures


def test_an_effective_rank_that_grows_with_the_update_is_named() -> None:
    def grows(values: Tensor) -> float:
        return measures.effective_rank(values) * float(values.sum() / values.sum().round())

    report = check("08.3", grows, 0)
    assert any("grows with the update" in p.misconception for p in report.properties if not p.passed), str(report)
