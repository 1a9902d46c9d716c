"""One base, many customers: rows through adapters of their own, against PEFT's mixed batches."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from lora_models import llama, randomise

from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import tiny

IDS = torch.arange(1, 25).view(2, 12)


def test_rows_pass_through_their_own_adapters() -> None:
    model = llama()
    adapters.inject(model, LoRAConfig(rank=2, target_modules=("q_proj", "v_proj")), "alice", seed=1)
    adapters.inject(model, LoRAConfig(rank=5, alpha=20, target_modules=("v_proj", "up_proj")), "bob", seed=2)
    randomise(model)
    ids = torch.arange(48).view(4, 12)
    customers = ["bob", None, "alice", "bob"]
    expected = []
    for row, customer in zip(ids, customers, strict=True):
        adapters.set_adapter(model, customer)
        expected.append(model(row[None]).logits)
    adapters.set_adapter(model, "alice")
    with adapters.route(model, customers):
        routed = model(ids).logits
    torch.testing.assert_close(routed, torch.cat(expected), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(ids[2:3]).logits, expected[2], rtol=1e-10, atol=1e-10)  # and alice is active again


def test_routing_equals_pefts_mixed_batches() -> None:
    base = llama()
    ours = copy.deepcopy(base)
    twin = None
    for name, rank in (("alice", 2), ("bob", 5)):
        adapters.inject(ours, LoRAConfig(rank=rank), name, seed=rank)
        config = peft.LoraConfig(r=rank, lora_alpha=16, target_modules=["q_proj", "v_proj"])
        if twin is None:
            twin = peft.get_peft_model(copy.deepcopy(base), config, adapter_name=name)
        else:
            twin.add_adapter(name, config)
    randomise(ours)
    twin = twin.double().eval()
    modules = dict(twin.base_model.model.named_modules())
    with torch.no_grad():
        for name, adapted in adapters.lora_layers(ours):
            for customer in adapted.configs:
                modules[name].lora_A[customer].weight.copy_(adapted.lora_A[customer])
                modules[name].lora_B[customer].weight.copy_(adapted.lora_B[customer])
    ids = torch.arange(36).view(3, 12)
    with adapters.route(ours, ["bob", "alice", None]):
        mine = ours(ids).logits
    theirs = twin(input_ids=ids, adapter_names=["bob", "alice", "__base__"]).logits
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_routed_generation() -> None:
    model = tiny.model()
    adapters.inject(model, LoRAConfig(rank=4, alpha=64), "alice", seed=1)
    adapters.inject(model, LoRAConfig(rank=4, alpha=64), "bob", seed=2)
    randomise(model)
    ids = torch.arange(10)[None]
    alone = []
    for customer in ("alice", "bob"):
        adapters.set_adapter(model, customer)
        alone.append(model.generate(ids, max_new_tokens=6, do_sample=False)[0])
    with adapters.route(model, ["alice", "bob"]):
        together = model.generate(ids.expand(2, -1), max_new_tokens=6, do_sample=False)
    assert torch.equal(together, torch.stack(alone))
    assert not torch.equal(alone[0], alone[1])


def test_routing_needs_one_name_a_row_and_unmerged_weights() -> None:
    model = tiny.model()
    adapters.inject(model, LoRAConfig(rank=2), "alice")
    with pytest.raises(CourseError, match="2 rows but 1 adapters"), adapters.route(model, ["alice"]):
        model(torch.arange(8).view(2, 4))
    adapters.merge(model)
    with pytest.raises(CourseError, match="merged"), adapters.route(model, ["alice"]):
        pass
