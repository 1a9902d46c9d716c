"""FewShotTuning on a few examples: the same steps as PEFT and transformers take, and no trace of it afterwards."""

from __future__ import annotations

import warnings

import hub_modules
import pytest
import torch
from hub_modules import plain_losses
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from transformers import get_scheduler

from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapters
from lorahub_edu.models import tiny
from lorahub_edu.scoring import score
from lorahub_studies.baselines import TUNINGS, FewShotTuning, attention_targets, tuned

ROWS = hub_modules.rows(3)


def snapshot(model) -> dict:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()]
    modules = [(name, type(module), module.training) for name, module in model.named_modules()]
    return {"tensors": tensors, "parameters": parameters, "modules": modules, "attributes": set(vars(model))}


def assert_as_before(model, before: dict) -> None:
    now = snapshot(model)
    assert now["modules"] == before["modules"] and now["parameters"] == before["parameters"]
    assert now["attributes"] == before["attributes"] and now["tensors"].keys() == before["tensors"].keys()
    assert all(torch.equal(tensor, before["tensors"][name]) for name, tensor in now["tensors"].items())


def test_the_papers_settings() -> None:
    assert TUNINGS["lora"] == FewShotTuning("lora", 2e-4, 40) and TUNINGS["ia3"] == FewShotTuning("ia3", 2e-4, 40)
    assert TUNINGS["full"] == FewShotTuning("full", 3e-5, 40)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_as_before_and_can_be_tuned_again(kind: str, dtype: torch.dtype) -> None:
    model = tiny.model().to(dtype)
    model.get_input_embeddings().requires_grad_(False)
    before = snapshot(model)
    histories = []
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # PEFT warns of a second adapter on the same model
            with tuned(model, ROWS, FewShotTuning(kind, 2e-3, 4)) as history:
                inside = {name: p for name, p in model.named_parameters() if p.requires_grad}
                assert inside and {p.dtype for p in inside.values()} == {torch.float32}
                histories.append(history)
        assert_as_before(model, before)
    assert histories[0] == histories[1]
    with pytest.raises(ZeroDivisionError), tuned(model, ROWS, FewShotTuning(kind, 2e-3, 1)):
        raise ZeroDivisionError
    assert_as_before(model, before)


@pytest.mark.parametrize("kind", ["lora", "ia3", "full"])
def test_the_loss_falls_from_the_base_models(kind: str) -> None:
    model = tiny.model()
    base, _ = plain_losses(tiny.model().double(), ROWS)
    with tuned(model, ROWS, FewShotTuning(kind, 1e-2 if kind != "full" else 1e-3, 12)) as history:
        assert len(history) == 12 and history[0] == pytest.approx(base, abs=1e-5)  # B = 0, and IA3 starts at one
        after = score(model, ROWS).losses[0]
    assert after < history[-1] + 1e-3 < history[0] - 0.03


def test_the_zoos_rate_moves_an_adapter() -> None:
    with tuned(tiny.model(), ROWS[:1], TUNINGS["lora_fast"]) as history:
        assert len(history) == TUNINGS["lora_fast"].epochs and history[-1] < history[0] - 0.1


def independent_history(kind: str, rate: float, epochs: int) -> list[float]:
    """PEFT's adapter, transformers' loss row by row, AdamW and a linear decay."""
    model = tiny.model()
    if kind == "ia3":
        targets = ["k_proj", "v_proj", "down_proj"]
        model = get_peft_model(model, IA3Config(target_modules=targets, feedforward_modules=["down_proj"]))
    elif kind == "lora":
        ours = tiny.model()
        start = dict(adapters.inject(ours, adapters.LoRAConfig(rank=8, alpha=16.0), seed=5))
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
        for name, layer in start.items():
            twin = model.base_model.model.get_submodule(name)
            twin.lora_A["default"].weight.data.copy_(layer.lora_A["default"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, 0, epochs)
    labels, history = sum(len(row.answer_ids) for row in ROWS), []
    for _ in range(epochs):
        total = 0.0
        for row in ROWS:
            encoded = row.encoded()
            out = model(input_ids=torch.tensor([encoded.input_ids]), labels=torch.tensor([encoded.labels]))
            loss = out.loss * len(row.answer_ids) / labels
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        history.append(total)
    return history


@pytest.mark.parametrize(("kind", "rate"), [("lora", 5e-3), ("ia3", 5e-3), ("full", 1e-4)])
def test_steps_are_those_of_peft_and_transformers(kind: str, rate: float) -> None:
    with tuned(tiny.model(), ROWS, FewShotTuning(kind, rate, 6), seed=5) as history:
        assert history == pytest.approx(independent_history(kind, rate, 6), abs=1e-4)
        assert history[0] - history[-1] > 0.01  # well above the tolerance


def test_numbers_of_parameters() -> None:
    model, epochs = tiny.model(), 1
    settings = model.config
    inner = settings.head_dim * settings.num_key_value_heads
    expected = {
        # IA3: a scale for each key, each value and each inner activation of the feed-forward
        "ia3": settings.num_hidden_layers * (2 * inner + settings.intermediate_size),
        "lora": settings.num_hidden_layers * 8 * (4 * settings.hidden_size - (settings.hidden_size - inner)),
        "full": sum(p.numel() for p in model.parameters()),
    }
    for kind, count in expected.items():
        with tuned(model, ROWS[:1], FewShotTuning(kind, 1e-4, epochs)):
            assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


def test_the_seed_draws_the_start_and_touches_no_global_seed() -> None:
    state = torch.get_rng_state()
    starts = []
    for seed in (0, 0, 1):
        model = tiny.model()
        with tuned(model, ROWS[:1], FewShotTuning("lora", 1e-9, 1), seed=seed):
            starts.append(next(p.clone() for name, p in model.named_parameters() if "lora_A" in name))
    assert torch.allclose(starts[0], starts[1], atol=1e-7) and not torch.allclose(starts[0], starts[2], atol=1e-3)
    with tuned(tiny.model(), ROWS[:1], FewShotTuning("ia3", 1e-3, 1)):
        pass
    assert torch.equal(state, torch.get_rng_state())


def test_targets_by_kind_of_model() -> None:
    for model in (tiny.model(), hub_modules.t5()):
        endings = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        assert set(attention_targets(model)) < endings


def test_tuning_on_nothing_is_refused_and_leaves_no_adapter() -> None:
    model = tiny.model()
    with pytest.raises(CourseError, match="no rows to score"), tuned(model, [], TUNINGS["lora"]):
        pass
    assert not list(adapters.lora_layers(model))
