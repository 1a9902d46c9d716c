"""LoRALinear, one layer, against PEFT (an independent implementation) and float64 algebra."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from lora_models import layer, linear, peft_twin, randomise
from torch import nn

from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig, LoRALinear
from lorahub_edu.models import tiny


def test_starts_exactly_at_the_pretrained_layer() -> None:
    base = linear()
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    expected = base(x)
    adapted = LoRALinear(base, LoRAConfig(rank=4))
    assert torch.equal(adapted(x), expected)
    assert torch.count_nonzero(adapted.lora_B["default"]) == 0


def test_a_is_kaiming_uniform_with_sqrt_five() -> None:
    torch.manual_seed(7)
    expected = torch.empty(4, 16)
    nn.init.kaiming_uniform_(expected, a=math.sqrt(5))
    adapted = LoRALinear(linear(), LoRAConfig(rank=4), generator=torch.Generator().manual_seed(7))
    assert torch.equal(adapted.lora_A["default"], expected.double())
    assert adapted.lora_A["default"].abs().max() <= 1 / math.sqrt(16)  # the bound that a = sqrt(5) works out to


@pytest.mark.parametrize("shape", [(16,), (5, 16), (2, 3, 16), (2, 2, 3, 16)])
def test_output_is_w_x_plus_scaled_b_a_x(shape: tuple[int, ...]) -> None:
    adapted = layer(rank=4, alpha=8)
    x = torch.randn(*shape, dtype=torch.float64)
    A, B = adapted.lora_A["default"], adapted.lora_B["default"]
    expected = x @ adapted.weight.T + adapted.bias + 8 / 4 * (x @ A.T @ B.T)
    torch.testing.assert_close(adapted(x), expected, rtol=1e-12, atol=1e-12)


def test_delta_weight_added_to_w_is_the_same_computation() -> None:
    adapted = layer()
    x = torch.randn(7, 16, dtype=torch.float64)
    added = nn.functional.linear(x, adapted.weight + adapted.delta_weight("default"), adapted.bias)
    torch.testing.assert_close(adapted(x), added, rtol=1e-12, atol=1e-12)


def test_rank_stabilised_scaling() -> None:
    assert LoRAConfig(rank=16, alpha=32).scaling == 2
    assert LoRAConfig(rank=16, alpha=32, rank_stabilised=True).scaling == 8


def test_dropout_drops_in_training_only() -> None:
    adapted = layer(dropout=0.5)
    x = torch.randn(64, 16, dtype=torch.float64)
    adapted.eval()
    still = adapted(x)
    assert torch.equal(still, adapted(x))
    adapted.train()
    torch.manual_seed(5)
    A, B, scaling = adapted.lora_A["default"], adapted.lora_B["default"], adapted.configs["default"].scaling
    dropped = adapted(x)
    torch.manual_seed(5)
    expected = adapted.base_layer(x) + scaling * (nn.functional.dropout(x, 0.5) @ A.T @ B.T)
    torch.testing.assert_close(dropped, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(dropped, still)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_follows_dtype_of_the_base(dtype: torch.dtype) -> None:
    adapted = LoRALinear(linear(dtype=dtype), LoRAConfig(rank=2))
    assert adapted.lora_A["default"].dtype == adapted.lora_B["default"].dtype == dtype
    assert adapted(torch.randn(2, 16, dtype=dtype)).dtype == dtype
    moved = adapted.to(torch.float64)
    assert moved.lora_A["default"].dtype == torch.float64


def test_follows_device_of_the_base() -> None:
    with torch.device("meta"):
        base = nn.Linear(16, 24)
    adapted = LoRALinear(base, LoRAConfig(rank=2))
    assert adapted.lora_A["default"].device.type == adapted.lora_B["default"].device.type == "meta"


def test_float32_adapter_on_a_bfloat16_base() -> None:
    adapted = LoRALinear(linear(dtype=torch.bfloat16), LoRAConfig(rank=2, dtype=torch.float32))
    with torch.no_grad():
        adapted.lora_B["default"].normal_()
    x = torch.randn(3, 16, dtype=torch.bfloat16)
    out = adapted(x)
    update = 16 / 2 * (x.float() @ adapted.lora_A["default"].T @ adapted.lora_B["default"].T)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, (adapted.base_layer(x) + update).to(torch.bfloat16))  # as PEFT: rounded once
    out.sum().backward()
    assert adapted.lora_A["default"].grad.dtype == torch.float32


def test_under_autocast_matches_peft() -> None:
    config = LoRAConfig(rank=4, target_modules=("q_proj", "v_proj"))
    base = tiny.model()
    ours = copy.deepcopy(base)
    adapters.inject(ours, config, seed=0)
    randomise(ours)
    twin = peft_twin(base, ours, config).float()
    ids = torch.arange(20)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, theirs = ours(ids).logits, twin(ids).logits
    torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)
