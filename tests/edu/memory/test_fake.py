"""Stand-ins for bitsandbytes: bits a weight by the papers' figures, and bitsandbytes' own tensors where it is."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from lorahub_edu.memory import fake
from lorahub_edu.memory.fake import EightBitAdamW, FourBitLinear, quantise
from lorahub_edu.memory.tracker import ACTIVATIONS, StorageTracker
from lorahub_edu.models import tiny

BITSANDBYTES = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: the extra 'gpu' has it"
)


def layer_bytes(layer: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*layer.parameters(), *layer.buffers()))


@pytest.mark.parametrize(("double", "bits"), [(False, 4.5), (True, 4.127)])
def test_bits_of_a_weight_are_the_papers(double: bool, bits: float) -> None:
    """QLoRA, section 3: 0.5 bits of scales a weight, 0.127 with double quantisation."""
    layer = FourBitLinear(nn.Linear(4096, 4096, bias=False, device="meta"), double, torch.bfloat16)
    assert 8 * layer_bytes(layer) / 4096**2 == pytest.approx(bits, abs=0.001)


def test_the_weight_is_there_only_during_the_product() -> None:
    with fake.fake_tensors():
        layer = FourBitLinear(nn.Linear(256, 512, bias=False), True, torch.float32)
        x = torch.empty(4, 256, requires_grad=True)
        tracker = StorageTracker()
        with tracker:
            tracker.enter("forward")
            out = layer(x)
            kept = tracker.live.parts[ACTIVATIONS]
            tracker.enter("backward")
            out.sum().backward()
    assert kept == 4 * 512 * 4, "nothing but the output stays"
    for stage in ("forward", "backward"):
        assert tracker.peaks[stage].total >= 256 * 512 * 4
    assert x.grad.shape == x.shape


def test_every_linear_layer_but_the_head() -> None:
    model = fake.meta_model(tiny.config(), torch.bfloat16)
    quantise(model, True, torch.bfloat16)
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Linear)}
    assert kinds == {FourBitLinear, nn.Linear} and type(model.lm_head) is nn.Linear


@BITSANDBYTES
@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_own_layer_holds_as_many_bytes(double: bool) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit

    theirs = Linear4bit(512, 256, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta")
    theirs.weight = Params4bit(torch.randn(256, 512), requires_grad=False, quant_type="nf4", compress_statistics=double)
    state = theirs.to("cpu").weight.quant_state
    tensors = [theirs.weight, state.absmax, state.code]
    if double:
        tensors += [state.state2.absmax, state.state2.code]
    held = sum(t.numel() * t.element_size() for t in tensors)
    mine = FourBitLinear(nn.Linear(512, 256, bias=False), double, torch.bfloat16)
    assert layer_bytes(mine) == held


@BITSANDBYTES
def test_bitsandbytes_own_optimizer_holds_as_many_bytes() -> None:
    from bitsandbytes.optim import AdamW8bit

    sizes = {}
    for make in (AdamW8bit, EightBitAdamW):
        parameters = [nn.Parameter(torch.ones(64, 128)), nn.Parameter(torch.ones(100, 70)), nn.Parameter(torch.ones(9))]
        optimizer = make(parameters)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        if make is AdamW8bit:  # its kernels may not run here, but its states are made before
            for parameter in parameters:
                optimizer.init_state(optimizer.param_groups[0], parameter, 0, 0)
        else:
            optimizer.step()
        tensors = {id(v): v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)}
        sizes[make] = sum(v.numel() * v.element_size() for v in tensors.values())
    assert sizes[EightBitAdamW] == sizes[AdamW8bit]
