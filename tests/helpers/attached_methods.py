"""A tiny model, every method and combination, what each trains, and parameters that do something."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from lorahub_edu.data import alpaca
from lorahub_edu.data.batching import make_batches
from lorahub_edu.methods import kinds
from lorahub_edu.models import tiny

BITSANDBYTES = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: the extra 'gpu' has it"
)
# By hand, for 4 layers of width 128 (keys and values 64, inner 384), a vocabulary of 1,024 and a tied head.
TRAINED = {
    "full": 1024 * 128 + 4 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 384 * 128 + 2 * 128) + 128,
    "bitfit": 4 * (128 + 64 + 64 + 128 + 384 + 384 + 128),
    "ln_tuning": (2 * 4 + 1) * 128,
    "ia3": 4 * (64 + 64 + 384),
    "prompt": 20 * 128,
    "p_tuning": 20 * 128 + 3 * (128 * 128 + 128),
    "prefix": 20 * 4 * 2 * 64,
    "llama_adapter": 2 * (10 * 128 + 1),
    "houlsby": 8 * (2 * 128 * 8 + 8 + 128),
    "pfeiffer": 4 * (2 * 128 * 16 + 16 + 128),
    "lora": 4 * 8 * (128 + 128 + 128 + 64),
    "rslora": 4 * 8 * (128 + 128 + 128 + 64),
    "dora": 4 * 8 * (128 + 128 + 128 + 64) + 4 * (128 + 64),
    "qlora": 4 * 8 * (128 + 128 + 128 + 64),
}
# What the names of a method's own parameters hold.
MARKS = {
    "bitfit": "beft_bias",
    "ln_tuning": "ln_tuning_layers",
    "ia3": "ia3_l",
    "prompt": "prompt_encoder",
    "p_tuning": "prompt_encoder",
    "prefix": "prompt_encoder",
    "llama_adapter": "adaption_",
    "houlsby": ".adapter.",
    "pfeiffer": ".adapter.",
    "lora": "lora_",
    "rslora": "lora_",
    "dora": "lora_",
    "qlora": "lora_",
}


def each(names) -> list:
    """The names as test parameters; QLoRA's is skipped where its library is missing."""
    return [pytest.param(name, marks=BITSANDBYTES) if name == "qlora" else name for name in names]


EVERY = each(kinds.METHODS)
COMBINED = [["lora", "prefix"], ["lora", "houlsby"], ["ia3", "p_tuning"], ["lora", "pfeiffer", "prompt"]]


def rows():
    return alpaca.encode_rows(alpaca.shipped_examples()[:24], tiny.tokenizer(), 160, too_long="drop")


def batch(count: int = 3, strategy: str = "padded"):
    return make_batches(rows()[:count], strategy, count, 2)[0]


def stir(made, std: float = 0.05) -> None:
    """Move every trained parameter a little: at their start many methods do nothing."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.requires_grad:
                shift = torch.randn(parameter.shape, generator=generator).abs()  # upwards: no ReLU dies of it
                parameter.add_(std * shift.to(parameter.dtype))


def snapshot(model) -> dict:
    """Weights, layers, what is trained and hooks of a model."""
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "layers": [(name, type(module)) for name, module in model.named_modules()],
        "trained": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "attributes": [sorted(vars(module)) for module in model.modules()],
    }


def assert_same(a: dict, b: dict) -> None:
    assert a["weights"].keys() == b["weights"].keys()
    assert all(torch.equal(a["weights"][name], b["weights"][name]) for name in a["weights"])
    for what in ("layers", "trained", "modes", "hooks", "attributes"):
        assert a[what] == b[what], what
