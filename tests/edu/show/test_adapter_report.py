"""The one-page report: its figures are those of PEFT, of numpy in float64 and of the plain cross-entropy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import peft_modules
import pytest
import torch
from peft import PeftModel
from torch.nn import functional as F

from lorahub_edu.data import tasks
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.forgetting import texts
from lorahub_edu.lora.adapter_files import read_adapter
from lorahub_edu.models import tiny
from lorahub_edu.show.adapter_report import SHRUNK, AdapterReport, examine
from lorahub_edu.spectra.measures import intruder_count

TASK = tasks.names("target")[0]
SETTINGS = {"sequences": 4, "profile": "tiny"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peft_modules.save_modules(tiny.model, tmp_path_factory.mktemp("made"), count=1)[0]


@pytest.fixture(scope="module")
def report(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AdapterReport:
    patch = pytest.MonkeyPatch()
    patch.setenv(assets.HOME_VARIABLE, str(tmp_path_factory.mktemp("home")))
    found = examine(folder, task=TASK, test_items=5, **SETTINGS)
    patch.undo()
    return found


def peft_model(folder: Path, factor: float = 1.0) -> PeftModel:
    model = PeftModel.from_pretrained(tiny.model(), folder)
    for module in model.modules():
        if hasattr(module, "scaling") and isinstance(module.scaling, dict):
            module.scaling = {name: value * factor for name, value in module.scaling.items()}
    return model.eval()


def text_loss(model: torch.nn.Module, ids: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double()
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))


def test_the_losses_on_plain_text_are_those_of_pefts_model(report: AdapterReport, folder: Path) -> None:
    ids = texts.load(tiny.tokenizer(), sequences=4, fetch=False).sequences
    expected = {
        "base": text_loss(tiny.model(), ids),
        "adapter": text_loss(peft_model(folder), ids),
        "shrunk": text_loss(peft_model(folder, SHRUNK), ids),
    }
    assert report.text == pytest.approx(expected, abs=1e-4)
    assert len(set(expected.values())) == 3
    assert report.forgetting == pytest.approx(expected["adapter"] - expected["base"], abs=2e-4)
    assert report.plain.sequences.shape == (4, texts.TOKENS) and report.plain.label == texts.SHIPPED


def test_the_spectrum_is_that_of_the_definition(report: AdapterReport) -> None:
    base, file = tiny.model(), report.file
    for row in report.spectrum.rows:
        A, B = (tensor.double() for tensor in file.weights[row.name])
        before = base.get_submodule(row.name).weight.detach().double()
        delta = file.configs[row.name].scaling * B @ A
        assert row.intruders[0] == intruder_count(before, before + delta)
        assert row.relative_size == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(before), rel=1e-5)
    assert len(report.spectrum.rows) == len(file.weights)


def test_what_the_adapter_is(report: AdapterReport, folder: Path) -> None:
    assert report.parameters == peft_model(folder).get_nb_trainable_parameters()[1] - sum(
        p.numel() for p in tiny.model().parameters()
    )
    assert report.size == sum(path.stat().st_size for path in folder.iterdir())
    assert 0 <= report.merge_error < 1e-4
    assert set(report.scores) == {"base", "adapter", "shrunk"}
    for found in report.scores.values():
        assert found.strict.mean() <= found.answer_only.mean() and found.losses[0] > 0


def test_the_page_shows_every_figure_and_its_control(report: AdapterReport) -> None:
    page, shown = str(report), report._repr_markdown_()
    for part in (page, shown):
        assert TASK in part and f"update × {SHRUNK}" in part and texts.SHIPPED in part
        assert f"{report.text['base']:.3f}" in part and f"{report.forgetting:+.3f}" in part
        assert f"{report.spectrum.intruders[0]} of {10 * len(report.spectrum.rows)} vectors" in part
        assert f"{report.size / 1e6:.1f} MB" in part


def test_a_composed_adapter_in_memory_and_no_task(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path))
    found = examine(replace(read_adapter(folder), path=Path("composed")), **SETTINGS)
    assert found.size == 0 and found.scores == {} and "exact match" not in str(found)


def test_what_is_refused_before_anything_is_measured(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="Did you mean"):
        examine(folder, task=TASK[:-1], **SETTINGS)
    with pytest.raises(CourseError):
        examine(tmp_path / "nowhere", **SETTINGS)
