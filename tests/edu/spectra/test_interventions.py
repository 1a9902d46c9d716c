"""Scaling a part of the spectrum, judged by numpy's SVD, by PEFT's own function, and by what PEFT loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import random_updates
import torch
from peft.tuners.lora.intruders import reduce_intruder_dimension

from lorahub_edu.errors import CourseError
from lorahub_edu.hub.compose import refactor
from lorahub_edu.lora import adapter_files
from lorahub_edu.models import tiny
from lorahub_edu.spectra import interventions, measures
from lorahub_edu.spectra.bases import BaseSpectra
from lorahub_edu.spectra.updates import Update, iter_updates

SHAPES = [(144, 160), (160, 144), (40, 64), (64, 40)]


def as_whole(one: Update) -> Update:
    return Update(one.name, one.base, delta=one.dense(torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("whole", [False, True])
def test_the_chosen_values_and_no_others_are_scaled(tmp_path: Path, shape: tuple[int, int], whole: bool) -> None:
    one = random_updates.update(*shape, rank=2, strength=2.0)
    tuned = one.weight(torch.float64).numpy()
    left, values, right = np.linalg.svd(tuned, full_matrices=False)
    intruding = (measures.largest_cosines(one.base, one.weight(torch.float64)) < 0.5).numpy()
    assert 0 < intruding.sum() < 5
    others = np.flatnonzero(~intruding)[: intruding.sum()]
    for kind, chosen in (("intruders", np.flatnonzero(intruding)), ("others", others)):
        (made,) = interventions.scaled([as_whole(one) if whole else one], BaseSpectra(tmp_path), 0.3, kind)
        smaller = values.copy()
        smaller[chosen] *= 0.3
        np.testing.assert_allclose(
            made.weight(torch.float64).numpy(), (left * smaller) @ right, atol=2e-5 * values[0], rtol=0
        )
        if not whole:
            assert made.down.shape[0] == 2 + len(chosen)
            assert made.scaling == one.scaling


def test_the_control_shrinks_the_whole_update(tmp_path: Path) -> None:
    one = random_updates.update(strength=0.3)  # without an intruder, and shrunk all the same
    for given in (one, as_whole(one)):
        (made,) = interventions.scaled([given], BaseSpectra(tmp_path), 0.7, "update")
        torch.testing.assert_close(made.dense(), 0.7 * one.dense())


def test_what_has_no_intruder_stays_as_it_is(tmp_path: Path) -> None:
    weak = random_updates.update(strength=0.2)
    still = Update("still", weak.base, weak.down, torch.zeros_like(weak.up))
    strong = random_updates.update(strength=3.0)
    bases = BaseSpectra(tmp_path)
    assert list(interventions.scaled([weak, still], bases, 0.5)) == [weak, still]
    assert list(interventions.scaled([strong], bases, 1.0)) == [strong]


def test_bad_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="Did you mean 'intruders'"):
        interventions.scaled([], BaseSpectra(tmp_path), 0.5, "intruder")
    with pytest.raises(CourseError, match="-1"):
        interventions.scaled([], BaseSpectra(tmp_path), -1.0)
    with pytest.raises(CourseError, match="ε"):
        interventions.scaled([], BaseSpectra(tmp_path), 0.5, epsilon=1.0)


@pytest.fixture(scope="module")
def by_peft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter made by PEFT alone with a strong first direction in every layer."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj", "down_proj"])
    model = peft.get_peft_model(tiny.model(), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data.normal_(std=0.1, generator=generator)
        elif "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=generator)
            parameter.data[:, 0] *= 8
    folder = tmp_path_factory.mktemp("peft")
    model.save_pretrained(folder)
    return folder


def test_peft_agrees_once_ours_is_cut_to_its_rank(by_peft: Path, tmp_path: Path) -> None:
    model = peft.PeftModel.from_pretrained(tiny.model(), by_peft)
    reduce_intruder_dimension(model, mitigation_lambda=0.6, logging_sink=None)
    file = adapter_files.read_adapter(by_peft)
    changed = interventions.scaled(iter_updates(file, tiny.model()), BaseSpectra(tmp_path), 0.6)
    exact = interventions.as_adapter(file, changed)
    touched = {name for name, (A, _) in exact.weights.items() if A.shape[0] > 4}
    assert len(touched) >= 6
    cut = refactor(exact, 4)
    for name, (A, B) in cut.weights.items():
        theirs = model.base_model.model.get_submodule(name).get_delta_weight("intruder_reduced")
        torch.testing.assert_close(cut.configs[name].scaling * B @ A, theirs, atol=2e-5, rtol=1e-3)
    # what PEFT cuts off is not nothing: ours keeps it
    name = next(iter(touched))
    A, B = exact.weights[name]
    theirs = model.base_model.model.get_submodule(name).get_delta_weight("intruder_reduced")
    assert (exact.configs[name].scaling * B @ A - theirs).norm() > 1e-3 * theirs.norm()


def test_the_result_is_an_adapter_that_peft_loads(by_peft: Path, tmp_path: Path) -> None:
    file = adapter_files.read_adapter(by_peft)
    changed = list(interventions.scaled(iter_updates(file, tiny.model()), BaseSpectra(tmp_path / "spectra"), 0.5))
    adapter_files.write_adapter(interventions.as_adapter(file, changed), tmp_path / "made")
    loaded = peft.PeftModel.from_pretrained(tiny.model(), tmp_path / "made").merge_and_unload().state_dict()
    for one in changed:
        torch.testing.assert_close(loaded[f"{one.name}.weight"], one.weight(), atol=1e-6, rtol=1e-5)
