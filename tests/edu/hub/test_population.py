"""A population's scores against transformers' own loss on merged float64 weights, one candidate and row at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hub_modules
import numpy as np
import peft_modules
import pytest
import torch
from hub_modules import deltas, merged, plain_losses, random_modules
from safetensors.torch import load_file
from torch.func import functional_call

from lorahub_edu import scoring
from lorahub_edu.data import fewshot
from lorahub_edu.errors import CourseError
from lorahub_edu.hub.compose import COMPOSITIONS, compose, stack
from lorahub_edu.hub.population import Population
from lorahub_edu.lora import adapter_files, adapters
from lorahub_edu.lora.adapter_files import read_adapter
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import tiny

W = np.array([[0.7, -1.2, 0.4], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.5, 1.5, 1.5], [0.1, 0.2, -0.3]])
EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def files(model):
    return random_modules(model)


@pytest.fixture(scope="module")
def stacked(files):
    return stack(files)


def snapshot(model) -> dict:
    """Everything that must come back: every tensor by name, every module's type and mode, what needs a gradient."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [(name, type(module), module.training) for name, module in model.named_modules()]
    return {"tensors": tensors, "modules": modules, "grads": [p.requires_grad for p in model.parameters()]}


def assert_as_before(model, before: dict) -> None:
    now = snapshot(model)
    assert now["modules"] == before["modules"] and now["grads"] == before["grads"]
    assert now["tensors"].keys() == before["tensors"].keys()
    assert all(torch.equal(tensor, before["tensors"][name]) for name, tensor in now["tensors"].items())


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), EVERY_LINEAR], ids=["q and v", "every layer"])
def test_scores_are_those_of_merged_weights(composition: str, targets: tuple[str, ...]) -> None:
    model, rows = tiny.model().double(), hub_modules.rows()
    files = random_modules(model, targets=targets, std=0.07)
    with Population(model, stack(files, dtype=torch.float64), composition) as population:
        found = population.score(W, rows)
    for number, weights in enumerate(W):
        twin = merged(tiny.model(), deltas(files, weights, composition))
        loss, means = plain_losses(twin, rows)
        assert found.losses[number] == pytest.approx(loss, abs=1e-6)
        assert found.row_losses[number] == pytest.approx(means, abs=1e-5)
        alone = scoring.score(twin, rows)
        assert np.array_equal(found.strict[number], alone.strict[0])
        assert np.array_equal(found.answer_only[number], alone.answer_only[0])
    assert np.ptp(found.losses) > 1e-2  # the candidates differ


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("gated, tied", [(False, True), (True, False), (True, True), (False, False)])
def test_an_encoder_decoder_with_modules_made_by_peft(tmp_path: Path, composition, gated, tied) -> None:
    """Self- and cross-attention and the feed-forward; the composed file holds the plain sums of the files."""
    targets = ("q", "v", "wo")
    folders = peft_modules.save_modules(lambda: hub_modules.t5(gated, tied), tmp_path, targets=targets)
    files = [read_adapter(folder) for folder in folders]
    assert len(files[0].weights) == 2 * (2 + 4 + 2)  # two layers: encoder q v, decoder q v twice, wo in both
    model, rows = hub_modules.t5(gated, tied).double(), hub_modules.t5_rows()
    with Population(model, stack(files, dtype=torch.float64), composition) as population:
        found = population.score(W, rows)
    for number, weights in enumerate(W):
        twin = merged(hub_modules.t5(gated, tied), deltas(files, weights, composition))
        loss, means = plain_losses(twin, rows)
        assert found.losses[number] == pytest.approx(loss, abs=1e-6)
        assert found.row_losses[number] == pytest.approx(means, abs=1e-5)
    assert np.ptp(found.losses) > 1e-2
    if composition == "paper":
        loaded = hub_modules.t5(gated, tied)
        adapter_files.put_adapter(loaded, compose(stack(files), W[0]))
        written = load_file(adapter_files.save_adapter(loaded, tmp_path / "sum") / "adapter_model.safetensors")
        parts = [load_file(folder / "adapter_model.safetensors") for folder in folders]
        assert written.keys() == parts[0].keys()
        for key, tensor in written.items():
            expected = sum(w * part[key].double() for w, part in zip(W[0], parts, strict=True))
            torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_how_a_population_is_cut_changes_nothing(model, stacked, composition: str) -> None:
    rows = hub_modules.rows()
    with Population(model, stacked, composition) as population:
        whole = population.score(W, rows)
        again = population.score(W, fewshot.batches(model.config, rows, max_tokens=40))
    for most in (1, 200):
        with Population(model, stacked, composition, max_tokens=most) as population:
            cut = population.score(W, rows)
        assert cut.losses == pytest.approx(whole.losses, abs=2e-6)
        assert np.array_equal(cut.strict, whole.strict)
    assert again.losses == pytest.approx(whole.losses, abs=2e-6)
    assert again.row_losses == pytest.approx(whole.row_losses, abs=1e-5)


def test_at_most_so_many_positions_a_forward(model, stacked, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = scoring.label_states
    monkeypatch.setattr(
        scoring, "label_states", lambda m, batch, count: seen.append(batch.num_tokens * count) or real(m, batch, count)
    )
    with Population(model, stacked, max_tokens=130) as population:
        population.score(W, hub_modules.rows())
    assert len(seen) > 1 and max(seen) <= 130


def test_bfloat16_stays_close_to_float32(model, stacked) -> None:
    rows = hub_modules.rows()
    with Population(model, stacked) as population:
        expected = population.score(W, rows).losses
    for composition in COMPOSITIONS:
        half = tiny.model().bfloat16()
        with Population(half, stacked, composition) as population:
            found = population.score(W[:3], rows).losses
        assert found[1:] == pytest.approx(expected[1:3], abs=0.1)  # at a one-hot both compositions are the module


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("make", [tiny.model, hub_modules.t5], ids=["llama", "t5"])
def test_the_model_is_whole_again_afterwards(make, composition: str) -> None:
    model = make().train()
    targets = ("q", "v") if model.config.is_encoder_decoder else ("q_proj", "v_proj")
    rows = hub_modules.t5_rows() if model.config.is_encoder_decoder else hub_modules.rows()
    modules = stack(random_modules(model, targets=targets))
    model.get_input_embeddings().requires_grad_(False)
    before = snapshot(model)
    with Population(model, modules, composition) as population:
        first = population.score(W, rows).losses
        assert not model.training  # dropout must not blur a comparison
        assert np.array_equal(population.score(W, rows).losses, first)
    assert_as_before(model, before)
    with pytest.raises(ZeroDivisionError), Population(model, modules, composition) as population:
        population.score(W, rows)
        raise ZeroDivisionError
    assert_as_before(model, before)
    with pytest.raises(IndexError), Population(model, modules, composition) as population:
        population.score(W, [fewshot.PromptedRow([5], [9999])])  # fails in the middle of a forward
    assert_as_before(model, before)
    with Population(model, modules, composition) as population:  # and it can be used again
        assert np.array_equal(population.score(W, rows).losses, first)


# What the algebra implies.


def test_w_and_minus_w_score_alike_in_the_papers_composition_only(model, stacked) -> None:
    rows = hub_modules.rows()
    both = np.stack([W[0], -W[0]])
    with Population(model, stacked, "paper") as population:
        paper = population.score(both, rows).losses
    with Population(model, stacked, "exact") as population:
        exact = population.score(both, rows).losses
    assert paper[0] == pytest.approx(paper[1], abs=1e-6) and abs(exact[0] - exact[1]) > 1e-3


def reference_gradient(model, files, weights: np.ndarray, composition: str, rows) -> np.ndarray:
    """torch's gradient in float64 through weights that are composed and merged by hand, and transformers' loss."""
    w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    parameters = dict(model.named_parameters())
    for site in files[0].weights:
        A, B = (torch.stack([file.weights[site][i].double() for file in files]) for i in (0, 1))
        one = (w[:, None, None] * B).sum(0) @ (w[:, None, None] * A).sum(0)
        update = one if composition == "paper" else (w[:, None, None] * (B @ A)).sum(0)
        parameters[f"{site}.weight"] = parameters[f"{site}.weight"].detach() + 2.0 * update  # alpha / rank = 8 / 4
    total = 0.0
    for row in rows:
        encoded = row.encoded()
        inputs = {"input_ids": torch.tensor([encoded.input_ids]), "labels": torch.tensor([encoded.labels])}
        total = total + functional_call(model, parameters, (), inputs).loss * len(row.answer_ids)
    (total / sum(len(row.answer_ids) for row in rows)).backward()
    return w.grad.numpy()


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_the_slope_of_the_loss(files, composition: str) -> None:
    model, rows = tiny.model().double(), hub_modules.rows(3)
    (batch,) = fewshot.batches(model.config, rows)
    weights = torch.tensor(W[[0, 4]], dtype=torch.float64, requires_grad=True)
    with Population(model, stack(files, dtype=torch.float64), composition) as population:
        losses = population.loss(weights, batch)
        (found,) = torch.autograd.grad(losses.sum(), weights)
        scored = population.score(W[[0, 4]], rows).losses
        moved = []
        for step in (5e-3, -5e-3):  # logits are float32, so a smaller step would drown in rounding
            shifted = (weights.detach()[:, None] + step * torch.eye(3, dtype=torch.float64)).flatten(0, 1)
            moved.append(population.score(shifted, rows).losses.reshape(2, 3))
    assert losses.detach().numpy() == pytest.approx(scored, abs=1e-6)
    assert found.numpy() == pytest.approx((moved[0] - moved[1]) / 1e-2, abs=2e-3)
    for number, candidate in enumerate(W[[0, 4]]):
        expected = reference_gradient(model, files, candidate, composition, rows)
        assert found[number].numpy() == pytest.approx(expected, abs=1e-5)
        assert np.abs(expected).max() > 1e-2


def test_zero_is_a_saddle_of_the_papers_composition_only(files, stacked, model) -> None:
    (batch,) = fewshot.batches(model.config, hub_modules.rows())
    slopes = {}
    for composition in COMPOSITIONS:
        zero = torch.zeros(1, 3, requires_grad=True)
        with Population(model, stacked, composition) as population:
            (slopes[composition],) = torch.autograd.grad(population.loss(zero, batch).sum(), zero)
    assert torch.equal(slopes["paper"], torch.zeros(1, 3))
    assert slopes["exact"].abs().min() > 1e-4
    assert reference_gradient(tiny.model().double(), files, np.zeros(3), "exact", hub_modules.rows()) == pytest.approx(
        slopes["exact"][0].numpy(), abs=1e-5
    )


# Bad input.


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_a_candidate_that_overflows_is_counted_and_its_neighbours_are_not_touched(model, files, composition) -> None:
    huge = replace(files[2], weights={site: (A * 1e30, B * 1e30) for site, (A, B) in files[2].weights.items()})
    rows = hub_modules.rows()
    with Population(model, stack([*files[:2], huge]), composition) as population:
        found = population.score(W[[2, 0, 1]], rows)
    assert np.isnan(found.losses).tolist() == [False, True, False]
    assert np.isnan(found.row_losses[1]).all() and not found.strict[1].any() and not found.answer_only[1].any()
    with Population(model, stack(files), composition) as population:
        expected = population.score(W[[2, 1]], rows).losses
    assert found.losses[[0, 2]] == pytest.approx(expected, abs=1e-6)


def test_modules_that_do_not_fit_the_model(model, files, stacked) -> None:
    with pytest.raises(CourseError, match=r"modules adapt model.layers.0.self_attn.q_proj, which this model does not"):
        Population(hub_modules.t5(), stacked)
    renamed = {site.replace("q_proj", "query_proj"): pair for site, pair in files[0].weights.items()}
    wrong = replace(files[0], weights=renamed, configs=dict.fromkeys(renamed, LoRAConfig(rank=4, alpha=8.0)))
    with pytest.raises(CourseError, match="query_proj, which this model does not have. Did you mean '.*q_proj'"):
        Population(model, stack([wrong]))
    cut = {site: (A[:, :64].contiguous(), B) for site, (A, B) in files[0].weights.items()}
    with pytest.raises(
        CourseError, match=r"is \(128, 128\) in this model, .* for \(128, 64\). .* base model: 'tiny-ran"
    ):
        Population(model, stack([replace(files[0], weights=cut)]))
    adapted = tiny.model()
    adapters.inject(adapted, LoRAConfig(rank=2))
    with pytest.raises(CourseError, match="has an adapter already: remove it"):
        Population(adapted, stacked)
    with Population(model, stacked), pytest.raises(CourseError, match="has an adapter already"):
        Population(model, stacked)
    with pytest.raises(CourseError, match="no composition 'exakt'. Did you mean 'exact'"):
        Population(model, stacked, "exakt")


def test_candidates_of_another_shape(model, stacked) -> None:
    rows = hub_modules.rows()
    with Population(model, stacked) as population:
        for wrong in (np.zeros((2, 4)), np.zeros(3)):
            with pytest.raises(CourseError, match=r"Candidates are \(P, 3\), one weight a module, not \("):
                population.score(wrong, rows)
        with pytest.raises(CourseError, match="no rows to score"):
            population.score(W, [])


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_outside_its_block_a_population_scores_nothing(model, stacked, composition: str) -> None:
    population = Population(model, stacked, composition)
    with pytest.raises(CourseError, match="only inside its block"):
        population.score(W, hub_modules.rows())
    with population:
        population.score(W, hub_modules.rows())
    with pytest.raises(CourseError, match="only inside its block"):
        population.score(W, hub_modules.rows())
