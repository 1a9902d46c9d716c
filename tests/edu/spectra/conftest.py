"""Small matrices are searched like large ones, so that tests of the search are quick."""

from __future__ import annotations

import pytest

from lorahub_edu.spectra.solver import decide


@pytest.fixture(autouse=True)
def _search_small_ones_too(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Where a decomposition becomes the slower way is a matter of speed alone; the real ones keep the real line."""
    if "real" not in request.keywords:
        monkeypatch.setattr(decide, "SMALL", 4)
