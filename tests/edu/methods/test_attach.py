"""Every method on the tiny model: how it starts, what it trains, and that nothing of it stays."""

from __future__ import annotations

import pytest
import tiny_t5
import torch
from attached_methods import (
    BITSANDBYTES,
    COMBINED,
    EVERY,
    MARKS,
    TRAINED,
    assert_same,
    batch,
    each,
    rows,
    snapshot,
    stir,
)
from peft import PeftModel
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.methods import kinds
from lorahub_edu.methods.attach import attach, attached, detach
from lorahub_edu.models import tiny
from lorahub_edu.training.loop import TrainingConfig, train
from lorahub_edu.training.losses import batch_loss, last_hidden_states

CHANGE_THE_START = {"prompt", "p_tuning", "prefix", "houlsby", "pfeiffer", "qlora"}
SAME_START = [name for name in kinds.METHODS if name not in CHANGE_THE_START]


@torch.no_grad()
def states(model) -> torch.Tensor:
    return last_hidden_states(model, batch())


@pytest.mark.parametrize("name", SAME_START)
def test_untrained_it_answers_like_the_base(name: str) -> None:
    base = tiny.model()
    before = states(base)
    torch.testing.assert_close(states(attach(base, name).model), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer"])
def test_bottleneck_adapters_start_near_the_identity_but_not_on_it(name: str) -> None:
    base = tiny.model()
    before = states(base)
    change = (states(attach(base, name).model) - before).norm() / before.norm()
    assert 0 < change < 1e-2


@pytest.mark.parametrize("name", each(name for name, m in kinds.METHODS.items() if m.kind == kinds.PROMPT))
def test_virtual_tokens_do_change_the_start(name: str) -> None:
    base = tiny.model()
    before = states(base)
    assert (states(attach(base, name).model) - before).norm() > 1e-2 * before.norm()


@pytest.mark.parametrize("name", EVERY)
def test_trains_as_many_parameters_as_counted_by_hand(name: str) -> None:
    made = attach(tiny.model(), name)
    assert made.trainable == TRAINED[name]
    if isinstance(made.model, PeftModel):
        assert made.model.get_nb_trainable_parameters()[0] == TRAINED[name]


def test_the_parameters_of_a_combination_add_up() -> None:
    assert attach(tiny.model(), ["lora", "houlsby", "prefix"]).trainable == sum(
        TRAINED[name] for name in ("lora", "houlsby", "prefix")
    )


@pytest.mark.parametrize("name", each(MARKS))
def test_only_its_own_parameters_get_gradients(name: str) -> None:
    made = attach(tiny.model(), name)
    stir(made)  # a gate at zero passes no gradient on to what stands behind it
    batch_loss(made.model, batch()).backward()
    with_gradient = {key for key, p in made.model.named_parameters() if p.grad is not None}
    own = {key for key, p in made.model.named_parameters() if MARKS[name] in key and p.requires_grad}
    assert with_gradient == own
    assert all(p.grad.abs().sum() > 0 for p in made.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", [*EVERY, *COMBINED])
def test_the_one_loop_trains_it_and_detaching_restores_the_base(method) -> None:
    base = tiny.model()
    before = snapshot(base)
    made = attach(base, method)
    start = {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad}
    config = TrainingConfig(steps=2, learning_rate=5e-3, batch_size=2, micro_batch_size=2, batching="padded")
    done = train(made.model, rows(), config, progress=False)
    moved = {name for name, p in made.model.named_parameters() if name in start and not torch.equal(p, start[name])}
    assert moved >= {name for name in start if not name.endswith(("embedding.weight", "embed_tokens.weight"))}
    assert moved and all(torch.isfinite(torch.tensor(done.losses)))
    detach(made)
    assert_same(snapshot(base), before)


@pytest.mark.parametrize("method", ["prefix", "llama_adapter", ["lora", "houlsby"]])
def test_generating_and_an_error_inside_the_block_leave_no_trace(method) -> None:
    base = tiny.model()
    base.requires_grad_(False)
    before = snapshot(base)
    with pytest.raises(KeyError), attached(base, method) as made:
        made.model.generate(input_ids=torch.tensor([[5, 6]]), attention_mask=torch.ones(1, 2), max_new_tokens=2)
        raise KeyError
    assert_same(snapshot(base), before)


def test_lora_is_the_courses_own_lora() -> None:
    made = attach(tiny.model().double(), "lora", rank=4, alpha=8.0, dtype=torch.float64)
    stir(made)
    ours = tiny.model().double()
    for name, layer in adapters.inject(ours, LoRAConfig(rank=4, alpha=8.0), seed=0):
        theirs = made.base.get_submodule(name)
        layer.lora_A["default"].data = theirs.lora_A["default"].weight.data
        layer.lora_B["default"].data = theirs.lora_B["default"].weight.data
    torch.testing.assert_close(states(made.model), states(ours))


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    made = attach(tiny.model(), "rslora", rank=16, alpha=8.0)
    layer = made.base.get_submodule("model.layers.0.self_attn.q_proj")
    assert layer.scaling["default"] == pytest.approx(8.0 / 4.0)


def test_bitfit_adds_the_biases_that_a_llama_has_not() -> None:
    made = attach(tiny.model(), "bitfit")
    stir(made)
    by_hand = tiny.model()
    for name in adapters.find_targets(by_hand, "all-linear"):
        wanted = made.base.get_submodule(name).beft_bias["default"]
        by_hand.get_submodule(name).bias = torch.nn.Parameter(wanted.detach().flatten())
    torch.testing.assert_close(states(made.model), states(by_hand))


def test_llama_adapter_leaves_the_first_two_layers_alone() -> None:
    made = attach(tiny.model(), "llama_adapter")
    adapted = {key.split(".layers.")[1][0] for key, p in made.model.named_parameters() if p.requires_grad}
    assert adapted == {"2", "3"}


@BITSANDBYTES
def test_qlora_computes_with_the_dequantised_weights() -> None:
    import bitsandbytes.functional as bnb

    base, plain = tiny.model(), tiny.model()
    made = attach(base, "qlora")
    for name in adapters.find_targets(plain, "all-linear"):
        layer = base.get_submodule(name)
        weight = getattr(layer, "base_layer", layer).weight
        plain.get_submodule(name).weight.data = bnb.dequantize_4bit(weight.data, weight.quant_state)
    torch.testing.assert_close(states(made.model), states(plain), rtol=1e-4, atol=1e-4)
    assert torch.equal(last_hidden_states(made.model, batch()), states(made.model))
    held = sum(p.numel() * p.element_size() for p in base.model.layers.parameters() if not p.requires_grad)
    assert held < sum(p.numel() * p.element_size() for p in plain.model.layers.parameters()) / 7  # 4.1 bits, not 32


@BITSANDBYTES
def test_qlora_trains_the_same_after_it_was_evaluated() -> None:
    gradients = []
    for evaluated in (False, True):
        made = attach(tiny.model().bfloat16(), "qlora")
        stir(made)
        if evaluated:
            states(made.model)
        batch_loss(made.model, batch()).backward()
        gradients.append([p.grad for p in made.model.parameters() if p.requires_grad])
    assert all(torch.equal(before, after) for before, after in zip(*gradients, strict=True))


def test_a_seed_fixes_the_start_and_leaves_the_callers_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    starts = [attach(tiny.model(), "lora", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    first, again, other = (next(p for key, p in made.model.named_parameters() if "lora_A" in key) for made in starts)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("name", [name for name in kinds.METHODS if name != "qlora"])
def test_a_model_without_weights_will_do(name: str) -> None:
    with torch.device("meta"):
        base = type(tiny.model())(tiny.config())
    made = attach(base, name, **({"keep_base": False} if name == "full" else {}))
    assert made.trainable == TRAINED[name]
    assert all(p.is_meta for p in made.model.parameters())


@pytest.mark.parametrize("name", ["lora", "ia3", "bitfit", "prefix", "houlsby", "llama_adapter", "ln_tuning"])
def test_beside_a_half_precision_base_what_is_added_can_be_float32(name: str) -> None:
    made = attach(tiny.model().bfloat16(), name, dtype=torch.float32)
    assert {p.dtype for p in made.model.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        batch_loss(made.model, batch()).backward()
    assert all(torch.isfinite(p.grad).all() for p in made.model.parameters() if p.requires_grad)


def test_dropout_is_off_in_a_model_that_evaluates() -> None:
    made = attach(tiny.model(), "lora", dropout=0.5)
    stir(made)
    assert torch.equal(states(made.model), states(made.model))


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("lroa", {}, "Did you mean 'lora'"),
        ("LLaMA-Adaptor", {}, "Did you mean 'llama_adapter'"),
        ("lora", {"rnak": 4}, "Did you mean 'rank'"),
        ("bitfit", {"rank": 4}, "no settings"),
        ("lora", {"rank": 0}, "at least 1, but it is 0"),
        ("prefix", {"length": -3}, "at least 1, but it is -3"),
        ("prompt", {"length": 2.5}, "whole number"),
        ("prefix", {"length": 1024}, "context is 1024 tokens"),
        ("llama_adapter", {"layers": 0}, "at least 1, but it is 0"),
        ("houlsby", {"bottleneck": 500}, "width 128"),
        ("lora", {"target_modules": ["q_porj"]}, "Did you mean 'q_proj'"),
        ("llama_adapter", {"layers": 9}, "can't be attached"),
        (["lora", "ia3"], {}, "one kind"),
        (["prompt", "prefix"], {}, "one kind"),
        (["full", "lora"], {}, "every weight already"),
        (["lora", "prefix"], {"rank": 4}, "one method each"),
        ([], {}, "Give a method"),
    ],
)
def test_what_can_not_be_attached_is_said_and_changes_nothing(method, settings, words: str) -> None:
    base = tiny.model()
    before = snapshot(base)
    with pytest.raises(CourseError, match=words):
        attach(base, method, **settings)
    assert_same(snapshot(base), before)


@pytest.mark.parametrize("name", ["llama_adapter", "prefix", "prompt", "p_tuning"])
def test_a_method_that_the_architecture_does_not_take_is_said(name: str) -> None:
    base = tiny_t5.model()
    before = snapshot(base)
    with pytest.raises(CourseError, match="T5ForConditionalGeneration"):
        attach(base, name)
    assert_same(snapshot(base), before)


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer", "llama_adapter"])
def test_a_family_whose_layers_a_method_does_not_know_is_said(name: str) -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    base = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=32, **size))
    before = snapshot(base)
    with pytest.raises(CourseError, match="GPTNeoXForCausalLM"):
        attach(base, name)
    assert_same(snapshot(base), before)


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "bitfit", "houlsby", "pfeiffer", "ln_tuning"])
def test_an_encoder_decoder_takes_what_changes_layers(name: str) -> None:
    base = tiny_t5.model()
    before = snapshot(base)
    made = attach(base, name)
    out = made.model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[6, 7]]))
    out.loss.backward()
    assert all(p.grad is not None for p in made.model.parameters() if p.requires_grad)
    detach(made)
    assert_same(snapshot(base), before)


def test_a_second_method_has_to_come_in_the_same_call() -> None:
    made = attach(tiny.model(), "lora")
    with pytest.raises(CourseError, match="already"):
        attach(made.model, "prefix")


def test_without_the_kept_base_there_is_no_way_back() -> None:
    made = attach(tiny.model(), "full", keep_base=False)
    with pytest.raises(CourseError, match="load it again"):
        detach(made)
