"""Losses, gradients, merging, scores and training of many architectures, against transformers' own forward and PEFT."""

from __future__ import annotations

import copy

import lora_models
import pytest
import tiny_architectures as arch
import torch

from lorahub_edu import evaluation, scoring
from lorahub_edu.data.batching import STRATEGIES, additive_mask, make_batches
from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.training import losses
from lorahub_edu.training.descent import Descent, schedule
from lorahub_edu.training.loop import TrainingConfig, train
from lorahub_edu.training.losses import batch_loss

ROWS = arch.prompted_rows()
ENCODED = [row.encoded() for row in ROWS]
LABELLED = sum(len(row.answer_ids) for row in ROWS)
ADAPTED = [name for name in arch.SETTINGS if name != "gpt2"]  # it has no nn.Linear


def tolerance(model) -> float:
    return 2e-5 if model.dtype == torch.float32 else 1e-9


def with_lora(model) -> LoRAConfig:
    """A random adapter on every linear layer but the head."""
    endings = {name.rpartition(".")[2] for name in adapters.find_targets(model, adapters.ALL_LINEAR)}
    config = LoRAConfig(rank=2, alpha=4, target_modules=tuple(sorted(endings)))
    adapters.inject(model, config, seed=0)
    lora_models.randomise(model)
    return config


def test_the_list_of_tested_types_is_what_is_tested_here() -> None:
    assert {*arch.SETTINGS, "t5"} == losses.TESTED  # T5: tests/edu/hub/test_t5.py


@pytest.mark.parametrize("name", arch.SETTINGS)
def test_three_batchings_give_the_loss_and_the_gradients_of_the_models_own_forward(name: str) -> None:
    model = arch.make(name)
    parameters = [p for p in model.parameters() if p.dim() > 1]
    own = arch.own_loss(model, ENCODED)
    expected = torch.autograd.grad(own, parameters, allow_unused=True)  # an expert that no token chose has none
    attentions = [model.config._attn_implementation, *(["packed"] if name not in arch.EAGER else [])]
    for attention, batching in [(a, b) for a in attentions for b in STRATEGIES]:
        model.config._attn_implementation = attention
        found = sum(batch_loss(model, batch) for batch in make_batches(ENCODED, batching, 2, 0))
        assert found.item() == pytest.approx(own.item(), rel=tolerance(model)), (attention, batching)
        for gradient, truth in zip(torch.autograd.grad(found, parameters, allow_unused=True), expected, strict=True):
            if truth is not None:
                error = (gradient - truth).norm() / truth.norm().clamp(min=1e-3)
                assert error <= 100 * tolerance(model), (attention, batching, tuple(truth.shape))


@pytest.mark.parametrize("name", arch.SETTINGS)
def test_scores_are_those_of_the_models_own_forward(name: str) -> None:
    model = arch.make(name)
    own = arch.own_loss(model, ENCODED).item() / LABELLED
    assert scoring.score(model, ROWS).losses == pytest.approx([own], rel=1e-5)
    assert scoring.score_padded(model, ROWS).losses == pytest.approx([own], rel=1e-5)
    assert evaluation.loss(model, ENCODED) == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("name", ADAPTED)
def test_lora_is_pefts_merged_is_apart_and_three_steps_are_transformers(name: str) -> None:
    base = arch.make(name)
    ours = copy.deepcopy(base)
    twin = lora_models.peft_twin(base, ours, with_lora(ours)).to(base.dtype).train()
    ids = torch.tensor([ENCODED[0].input_ids])
    error = tolerance(base)

    def logits(model) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).logits

    apart = logits(ours)
    torch.testing.assert_close(apart, logits(twin), rtol=error, atol=10 * error)
    adapters.merge(ours)
    torch.testing.assert_close(logits(ours), apart, rtol=error, atol=1000 * error)
    adapters.unmerge(ours)

    config = TrainingConfig(steps=3, learning_rate=1e-2, batch_size=len(ROWS), micro_batch_size=2, schedule="constant")
    losses = train(ours, ENCODED, config, progress=False).losses
    descent = Descent((p for p in twin.parameters() if p.requires_grad), schedule("constant", 1e-2, 0, 3), clip_norm=1)
    expected = [descent.step([arch.own_loss(twin, ENCODED) / LABELLED]).loss for _ in range(3)]
    assert losses == pytest.approx(expected, rel=10 * error)
    assert losses[2] < losses[0]
    torch.testing.assert_close(logits(ours), logits(twin), rtol=1e4 * error, atol=1e4 * error)


CAN = {  # batchings and packed scores of types that are not on the list, in their own attention
    "bloom": {"padded", "grouped"},  # ALiBi reads the mask's shape
    "exaone4": {*STRATEGIES, "scores"},
    "falcon": {*STRATEGIES, "scores"},
    "falcon, alibi": {"padded", "grouped"},
    "gptj": {*STRATEGIES, "scores"},
    "hyperclovax": {*STRATEGIES, "scores"},
    "mpt": set(STRATEGIES),  # ALiBi counts from the sequence's beginning, and so across a shared prefix
    "stablelm": {*STRATEGIES, "scores"},
}


def outcome(model, what: str) -> float | str:
    """The mean loss by one way, or the refusal."""
    try:
        if what == "scores":
            return scoring.score(model, ROWS).losses[0]
        return evaluation.loss(model, ENCODED, batching=what)
    except CourseError as error:
        return str(error)


@pytest.mark.parametrize("name", arch.UNLISTED)
def test_other_types_are_right_or_refused_by_name(name: str) -> None:
    model = arch.make(name)
    own = arch.own_loss(model, ENCODED).item() / LABELLED
    found = {what: outcome(model, what) for what in (*STRATEGIES, "scores")}
    assert {what for what, value in found.items() if not isinstance(value, str)} == CAN[name], found
    for what, value in found.items():
        if what in CAN[name]:
            assert value == pytest.approx(own, rel=1e-5)
        else:
            assert f"({model.config.model_type}, attention 'eager') can't be used with" in value.replace(
                "sdpa", "eager"
            )
    assert scoring.score_padded(model, ROWS).losses == pytest.approx([own], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "what"), [("stablelm", "packed"), ("bloom", "padded"), ("bloom", "scores"), ("gemma2", "padded")]
)
def test_packed_attention_is_refused_where_a_model_does_not_hear_it(name: str, what: str) -> None:
    assert "eager" in outcome(arch.make(name, "packed"), what)


def test_a_refused_model_is_left_as_it_was_and_is_not_trained() -> None:
    model = arch.make("bloom").train()
    adapters.inject(model, LoRAConfig(rank=2, target_modules=("query_key_value",)))
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(CourseError, match=r"\(bloom, attention 'eager'\) can't be used with packed batches.*padded"):
        train(model, ENCODED, TrainingConfig(steps=1), progress=False)
    assert model.training and all(map(torch.equal, before, model.parameters()))
    train(model, ENCODED, TrainingConfig(steps=1, batching="padded"), progress=False)


def test_the_probe_sees_a_window_and_a_scale(monkeypatch) -> None:
    """The control: with the mask and the head that were here once, the models are refused."""
    for name, target, wrong in (
        (
            "exaone4",
            "lorahub_edu.data.batching.attention_masks",
            lambda _c, seen, _p, dtype: additive_mask(seen, dtype),
        ),
        ("hyperclovax", "lorahub_edu.training.losses._head_is_a_product", lambda *_arguments: True),
    ):
        model = arch.make(name)
        model.config.torchscript = True  # another configuration than the one that was found equal
        window = getattr(model.config, "sliding_window", None)
        monkeypatch.setattr(target, wrong)
        assert "where the model's own is" in outcome(model, "packed")
        assert getattr(model.config, "sliding_window", None) == window


def test_half_precision_and_a_real_window_pass_the_probe() -> None:
    model = arch.make("exaone4").to(torch.bfloat16)
    model.config.sliding_window = 4096
    assert isinstance(outcome(model, "packed"), float)
    assert model.config.sliding_window == 4096


def test_gpt2s_own_layers_are_named() -> None:
    with pytest.raises(CourseError, match=r"h\.0\.attn\.c_attn of GPT2LMHeadModel is a Conv1D"):
        adapters.find_targets(arch.make("gpt2"), adapters.ALL_LINEAR)
