"""Layers and models to adapt, with adapters that do something, and PEFT's twin of them."""

from __future__ import annotations

import copy

import peft
import torch
from torch import nn
from transformers import LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig, LoRALinear
from lorahub_edu.models import tiny


def linear(seed: int = 0, dtype: torch.dtype = torch.float64, out_features: int = 24) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(16, out_features).to(dtype)


def layer(rank: int = 4, **options) -> LoRALinear:
    made = LoRALinear(linear(), LoRAConfig(rank=rank, **options), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made.lora_B["default"].normal_(generator=torch.Generator().manual_seed(2))
    return made


def llama() -> LlamaForCausalLM:
    return tiny.model().double()


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config).double().eval()


def randomise(model: nn.Module) -> None:
    """Give every B random values: at the start they are zero and would hide a wrong product."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, adapted in adapters.lora_layers(model):
            for name in adapted.configs:
                adapted.lora_B[name].normal_(std=0.05, generator=generator)


def peft_twin(base: nn.Module, ours: nn.Module, config: LoRAConfig) -> nn.Module:
    """PEFT's model over the same base with the same A and B."""
    twin = peft.get_peft_model(
        copy.deepcopy(base),
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            use_rslora=config.rank_stabilised,
            target_modules=list(config.target_modules),
        ),
        autocast_adapter_dtype=False,
    ).double()
    modules = dict(twin.base_model.model.named_modules())
    with torch.no_grad():
        for name, adapted in adapters.lora_layers(ours):
            modules[name].lora_A["default"].weight.copy_(adapted.lora_A["default"])
            modules[name].lora_B["default"].weight.copy_(adapted.lora_B["default"])
    return twin.eval()
