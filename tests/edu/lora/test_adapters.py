"""Whole models with adapters against PEFT (an independent implementation) and the papers' worked figures."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import peft
import pytest
import torch
from lora_models import llama, peft_twin, randomise, t5

from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import tiny

IDS = torch.arange(1, 25).view(2, 12)

# Equality with PEFT.


@pytest.mark.parametrize("rank_stabilised", [False, True])
@pytest.mark.parametrize(
    ("make", "targets", "inputs"),
    [
        (llama, ("q_proj", "v_proj", "down_proj"), {"input_ids": torch.arange(24).view(2, 12)}),
        (
            t5,
            ("q", "v", "wo"),
            {"input_ids": torch.arange(1, 21).view(2, 10), "labels": torch.arange(1, 13).view(2, 6)},
        ),
    ],
    ids=["llama", "t5"],
)
def test_equals_peft_in_output_and_gradients(make, targets, inputs, rank_stabilised) -> None:
    config = LoRAConfig(rank=4, alpha=8, target_modules=targets, rank_stabilised=rank_stabilised)
    base = make()
    ours = copy.deepcopy(base)
    adapters.inject(ours, config, seed=0)
    randomise(ours)
    twin = peft_twin(base, ours, config)
    mine, theirs = ours(**inputs).logits, twin(**inputs).logits
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(mine, base(**inputs).logits)  # the adapters do something
    mine.square().mean().backward()
    theirs.square().mean().backward()
    modules = dict(twin.base_model.model.named_modules())
    compared = 0
    for name, adapted in adapters.lora_layers(ours):
        pairs = [
            (adapted.lora_A["default"].grad, modules[name].lora_A["default"].weight.grad),
            (adapted.lora_B["default"].grad, modules[name].lora_B["default"].weight.grad),
        ]
        for ours_grad, peft_grad in pairs:
            torch.testing.assert_close(ours_grad, peft_grad, rtol=1e-10, atol=1e-14)
            assert ours_grad.abs().max() > 0
            compared += 1
        assert adapted.weight.grad is None
    assert compared == 2 * len(list(adapters.lora_layers(ours))) > 0


def test_injects_the_same_layers_as_peft() -> None:
    for targets in (("q_proj",), ("mlp.up_proj", "o_proj"), r".*layers\.[12]\..*(k|v)_proj", "all-linear"):
        base = tiny.model()
        ours, theirs = copy.deepcopy(base), copy.deepcopy(base)
        mine = {name for name, _ in adapters.inject(ours, LoRAConfig(rank=2, target_modules=targets))}
        peft_targets = targets if isinstance(targets, str) else list(targets)
        twin = peft.get_peft_model(
            theirs, peft.LoraConfig(r=2, target_modules=peft_targets, task_type="CAUSAL_LM")
        ).base_model.model
        expected = {name for name, module in twin.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
        assert mine == expected and mine


# A model with adapters.


def test_only_the_active_adapter_is_trainable() -> None:
    model = tiny.model()
    adapters.inject(model, LoRAConfig(rank=2), "alice")
    adapters.inject(model, LoRAConfig(rank=3), "bob")
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all(name.endswith(".bob") for name in trainable)
    adapters.set_adapter(model, "alice")
    assert all(name.endswith(".alice") for name, p in model.named_parameters() if p.requires_grad)
    adapters.set_adapter(model, None)
    assert not any(p.requires_grad for p in model.parameters())


def test_the_same_seed_gives_the_same_adapter_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    made = []
    for _ in range(2):
        model = tiny.model()
        adapters.inject(model, LoRAConfig(rank=2), seed=4)
        made.append({name: p.clone() for name, p in model.named_parameters() if p.requires_grad})
    assert torch.equal(before, torch.get_rng_state())
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_count_parameters() -> None:
    model = tiny.model()
    before = adapters.count_parameters(model)
    assert before.total == sum(p.numel() for p in set(model.parameters()))
    adapters.inject(model, LoRAConfig(rank=4, target_modules=("q_proj", "v_proj")))
    count = adapters.count_parameters(model)
    expected = 4 * (4 * (128 + 128) + 4 * (128 + 64))  # four layers; q is 128 -> 128, v is 128 -> 64, rank 4
    assert count.trainable == count.adapter == count.total - before.total == expected
    assert count.trainable_share == expected / count.total


def test_parameter_count_of_the_source() -> None:
    assert 100 * 500 == 50_000
    assert adapters.lora_parameter_count(in_features=100, out_features=500, rank=5) == 3_000


def test_llama_7b_adapter_is_eight_megabytes() -> None:
    # Rank 8 on q and v of 32 layers, 4096 wide, two bytes each: the source's "as small as 8 MB" (claim R6).
    parameters = 32 * 2 * adapters.lora_parameter_count(4096, 4096, 8)
    assert parameters * 2 / 2**20 == 8.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_merge_is_idempotent_and_unmerge_is_exact(dtype: torch.dtype) -> None:
    model = tiny.model().to(dtype)
    adapters.inject(model, LoRAConfig(rank=4, target_modules="all-linear"), seed=0)
    randomise(model)
    ids = torch.arange(20)[None]
    weights = {name: adapted.weight.clone() for name, adapted in adapters.lora_layers(model)}
    with torch.no_grad():
        unmerged = model(ids).logits
        adapters.merge(model)
        once = {name: adapted.weight.clone() for name, adapted in adapters.lora_layers(model)}
        adapters.merge(model)
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 6e-2}[dtype]
        torch.testing.assert_close(model(ids).logits, unmerged, rtol=tolerance, atol=tolerance)
    assert all(torch.equal(once[name], adapted.weight) for name, adapted in adapters.lora_layers(model))
    assert any(not torch.equal(once[name], weights[name]) for name in weights)
    adapters.unmerge(model)
    adapters.unmerge(model)
    assert all(torch.equal(weights[name], adapted.weight) for name, adapted in adapters.lora_layers(model))


def test_state_dict_of_a_merged_model_does_not_add_the_update_twice() -> None:
    model = llama()
    adapters.inject(model, LoRAConfig(rank=4), seed=0)
    randomise(model)
    plain = {key: value.clone() for key, value in model.state_dict().items()}
    adapters.merge(model)
    merged = model.state_dict()
    assert plain.keys() == merged.keys()
    assert all(torch.equal(plain[key], merged[key]) for key in plain)
    ids = torch.arange(20)[None]
    expected = model(ids).logits
    other = llama()
    adapters.inject(other, LoRAConfig(rank=4), seed=9)
    adapters.merge(other)  # loading into a merged model must not keep the old weight for unmerge either
    other.load_state_dict(merged)
    torch.testing.assert_close(other(ids).logits, expected, rtol=1e-10, atol=1e-10)
    adapters.unmerge(other)
    torch.testing.assert_close(other(ids).logits, expected, rtol=1e-10, atol=1e-10)


def test_a_merged_model_can_change_dtype_and_still_unmerge() -> None:
    model = llama()
    adapters.inject(model, LoRAConfig(rank=4), seed=0)
    randomise(model)
    before = {name: adapted.weight.float() for name, adapted in adapters.lora_layers(model)}
    adapters.merge(model)
    model.float()
    adapters.unmerge(model)
    assert all(torch.equal(before[name], adapted.weight) for name, adapted in adapters.lora_layers(model))


def test_merge_and_unload_leaves_a_plain_model() -> None:
    model = llama()
    adapters.inject(model, LoRAConfig(rank=4), seed=0)
    randomise(model)
    ids = torch.arange(20)[None]
    expected = model(ids).logits
    plain = adapters.merge_and_unload(model)
    assert plain.state_dict().keys() == llama().state_dict().keys()
    torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-10, atol=1e-10)


def test_removed_adapters_leave_the_base_and_the_others() -> None:
    model, ids = llama(), torch.arange(20)[None]
    keys, plain = model.state_dict().keys(), model(ids).logits
    adapters.inject(model, LoRAConfig(rank=4, target_modules=("q_proj",)), "one", seed=0)
    adapters.inject(model, LoRAConfig(rank=2, target_modules=("q_proj", "v_proj")), "two", seed=0)
    randomise(model)
    adapters.set_adapter(model, "one")
    by_one = model(ids).logits
    adapters.set_adapter(model, "two")
    adapters.merge(model)
    adapters.remove(model, "two")
    adapters.remove(model, "two")  # again, or never there: nothing happens
    assert {name for _, layer in adapters.lora_layers(model) for name in layer.configs} == {"one"}
    assert torch.equal(model(ids).logits, plain), "the merged one was active"
    adapters.set_adapter(model, "one")
    assert torch.equal(model(ids).logits, by_one)
    adapters.remove(model, "one")
    assert model.state_dict().keys() == keys and torch.equal(model(ids).logits, plain)


def test_a_merge_that_fails_half_way_merges_nothing() -> None:
    model = llama()
    layers = adapters.inject(model, LoRAConfig(rank=4), seed=0)
    randomise(model)
    layers[-1][1].lora_B["default"].data[0, 0] = math.nan
    before = [adapted.weight.clone() for _, adapted in layers]
    with pytest.raises(CourseError, match="NaN or infinite"):
        adapters.merge(model)
    assert all(adapted.merged is None for _, adapted in layers)
    assert all(torch.equal(b, adapted.weight) for b, (_, adapted) in zip(before, layers, strict=True))


# Bad input.


def test_bad_ranks() -> None:
    with pytest.raises(CourseError, match="at least 1, but it is 0"):
        LoRAConfig(rank=0)
    model = tiny.model()
    with pytest.raises(CourseError, match=r"Rank 65 is above the size of model.layers.0.self_attn.k_proj.*1 to 64"):
        adapters.inject(model, LoRAConfig(rank=65, target_modules=("q_proj", "k_proj")))
    assert not list(adapters.lora_layers(model))  # nothing half-done


@pytest.mark.parametrize("make, targets", [(llama, ("q_proj", "lm_head")), (t5, ("q", "lm_head"))])
def test_a_merge_unties_a_tied_head(tmp_path: Path, make, targets) -> None:
    base, model = make(), make()
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is embeddings.weight
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {})
    config = LoRAConfig(rank=4, target_modules=targets)
    adapters.inject(model, config, seed=0)
    randomise(model)
    expected = peft_twin(base, model, config)(**inputs).logits  # unmerged
    adapters.merge(model)
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(embeddings.weight, base.get_input_embeddings().weight)
    adapters.unmerge(model)
    assert model.get_output_embeddings().weight is embeddings.weight  # tied again
    adapters.merge_and_unload(model).save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=1e-10, atol=1e-10)


def test_unknown_patterns_list_near_matches() -> None:
    model = tiny.model()
    with pytest.raises(CourseError, match="Did you mean .*'q_proj'"):
        adapters.inject(model, LoRAConfig(target_modules=("query_proj",)))
    with pytest.raises(CourseError, match="No linear layer fits 'q_proj'.*pattern matches whole names"):
        adapters.inject(model, LoRAConfig(target_modules="q_proj"))
    with pytest.raises(CourseError, match="not a regular expression"):
        adapters.inject(model, LoRAConfig(target_modules="(q_proj"))


def test_bad_adapter_names() -> None:
    model = tiny.model()
    adapters.inject(model, LoRAConfig(rank=2), "alice")
    with pytest.raises(CourseError, match="has an adapter 'alice' already"):
        adapters.inject(model, LoRAConfig(rank=2), "alice")
    with pytest.raises(CourseError, match="Did you mean 'alice'"):
        adapters.set_adapter(model, "alcie")
    with pytest.raises(CourseError, match="no adapter 'eve'"), adapters.route(model, ["eve"]):
        pass
    with pytest.raises(CourseError, match="can't name an adapter"):
        adapters.inject(model, LoRAConfig(rank=2), "a.b")
