"""The controls of a composition differ from it in the one thing that they are named after."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import hub_modules
import numpy as np
import pytest
import torch

from lorahub_edu.data import tasks
from lorahub_edu.files import assets
from lorahub_edu.models import tiny
from lorahub_edu.spectra.updates import Update
from lorahub_studies import adapting, composed_spectra, engine
from lorahub_studies.adapting import METHODS
from lorahub_studies.composed_spectra import Composition, parts, run, same_spectrum

TARGET = tasks.names("target")[0]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "home"))
    adapting.bench.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for file in hub_modules.random_modules(tiny.model()):
        hub_modules.write(file, tmp_path / "zoo")
    return str(tmp_path / "zoo")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("auto", "cma_40"):
        method = METHODS[name]
        monkeypatch.setitem(METHODS, name, replace(method, settings=method.settings | {"budget": 12}))


def test_same_spectrum_keeps_the_singular_values_and_no_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    B, A = torch.randn(40, 3, generator=generator), torch.randn(3, 30, generator=generator)
    change = Update("q", torch.zeros(40, 30), A, B, 2.0)
    other = same_spectrum(change, generator)
    before, after = (np.linalg.svd(update.dense().double().numpy()) for update in (change, other))
    np.testing.assert_allclose(after[1], before[1], rtol=1e-5, atol=1e-5)
    assert np.abs(before[0][:, 0] @ after[0][:, 0]) < 0.6
    assert change.base is other.base


@pytest.mark.parametrize("search", ["auto", "cma_40"])
def test_each_control_changes_one_thing(folder: str, short, monkeypatch, search: str) -> None:
    composed = []
    real = composed_spectra.compose
    monkeypatch.setattr(
        composed_spectra, "compose", lambda stack, w, way: composed.append((np.array(w), way)) or real(stack, w, way)
    )
    weights = np.array([0.5, -1.0, 0.25])
    found = type("Found", (), {"weights": weights, "composition": "exact" if search == "auto" else "paper"})
    monkeypatch.setattr(adapting, "adapt", lambda *args, **settings: found)
    rows = {row["variant"]: row for row in run(Composition(TARGET, 1, search, folder=folder, profile="tiny"))["rows"]}
    used = dict(zip(rows, composed, strict=True))
    assert {way for _, way in composed} == {found.composition}
    np.testing.assert_array_equal(used["no signs"][0], np.abs(weights))
    assert sorted(used["dealt anew"][0]) == sorted(weights)
    assert np.linalg.norm(used["random weights"][0]) == pytest.approx(np.linalg.norm(weights))
    for unchanged in ("found", "random directions", "size of a part"):
        np.testing.assert_array_equal(used[unchanged][0], weights)
    assert rows["random directions"]["relative_size"] == pytest.approx(rows["found"]["relative_size"], rel=1e-4)
    assert rows["random directions"]["spike_ratio"] == pytest.approx(rows["found"]["spike_ratio"], rel=1e-4)
    assert rows["found"]["negative"] == 1 and rows["no signs"]["negative"] == 0
    alone = parts(folder=folder, profile="tiny")
    mean = np.mean([row["relative_size"] for row in alone])
    assert rows["size of a part"]["relative_size"] == pytest.approx(mean, rel=0.02)  # rows are means of ratios
    assert len({row["matrices"] for row in [*alone, *rows.values()]}) == 1


def test_a_study_goes_on_and_is_summed_up(folder: str, short, tmp_path: Path, monkeypatch) -> None:
    seen = []
    asked = [Composition(TARGET, 0, "auto", folder=folder, profile="tiny")]
    kept = engine.run(asked, composed_spectra.run, tmp_path / "kept", report=lambda job, row: seen.extend(row["rows"]))
    rows = kept[0]["rows"]
    assert json.loads(json.dumps(seen)) == rows and [row["variant"] for row in rows] == list(composed_spectra.VARIANTS)
    assert all(0 <= a <= b <= 10 * row["matrices"] for row in rows for a, b in [row["intruders"][:2]])
    again = engine.run(asked, lambda composition: pytest.fail("it was done already"), tmp_path / "kept")
    assert again == kept
    other = [row | {"intruders": [value + 4 for value in row["intruders"]]} for row in rows]
    entry = composed_spectra.summarise([*rows, *other])[0]
    first = rows[0]["intruders"][0]
    assert entry["variant"] == "found" and entry["compositions"] == 2
    assert entry["intruders"] == {"mean": first + 2, "low": first, "high": first + 4}
