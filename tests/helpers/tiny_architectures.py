"""Small random models of many architectures, with windows, caps and scales strong enough to matter, and their rows."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lorahub_edu.data.alpaca import Encoded
from lorahub_edu.data.fewshot import PromptedRow

WINDOW = 5  # tokens; every row is longer
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD = {"head_dim": 8}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
CAP = {"final_logit_softcapping": 0.5, "query_pre_attn_scalar": 8}
EXPERTS = {"num_local_experts": 4, "experts_implementation": "eager"}
SETTINGS = {
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, **MIXED},
    "gemma": HEAD,
    "gemma2": {"attn_logit_softcapping": 0.5, **HEAD, **MIXED, **CAP},
    "gemma3_text": {**HEAD, **MIXED, **CAP},
    "gpt2": {"n_inner": 48},
    "gpt_neox": {},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.3},
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {"sliding_window": WINDOW, **EXPERTS},
    "olmo2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW, **HEAD},
    "smollm3": {"use_sliding_window": True, "no_rope_layers": [1, 0], **MIXED},
    "starcoder2": {"sliding_window": WINDOW},
}
# Not on the list of tested ones: measured at their first use, and refused where they differ.
UNLISTED = {
    "bloom": {},
    "exaone4": MIXED,
    "falcon": {},
    "falcon, alibi": {"alibi": True},
    "gptj": {"rotary_dim": 4},
    "hyperclovax": {"logits_scaling": 4.0},
    "mpt": {},
    "stablelm": {},
}
EAGER = {"gemma2", "bloom", "gptj", "mpt"}  # transformers has no other attention for them


def make(name: str, attention: str | None = None) -> PreTrainedModel:
    """A random model, in evaluation mode; float32 where transformers' eager attention or experts need it."""
    config = AutoConfig.for_model(name.partition(",")[0], **SIZES | (SETTINGS | UNLISTED)[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = attention or ("eager" if name in EAGER else "sdpa")
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 1.0, 0.25)
    return model.to(torch.float32 if name in EAGER else torch.float64).eval()


def prompted_rows(lengths: tuple[int, ...] = (9, 14, 12, 12)) -> list[PromptedRow]:
    """Rows that begin with the same six tokens."""
    draw = random.Random(1)
    texts = [[draw.randrange(3, 64) for _ in range(length)] for length in (6, *lengths)]
    return [PromptedRow(texts[0] + text[:2], text[2:]) for text in texts[1:]]


def own_loss(model: nn.Module, rows: list[Encoded]) -> Tensor:
    """Transformers' own loss, summed over each row's labels, a row at a time."""
    losses = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0, :-1]
        losses.append(F.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum"))
    return torch.stack(losses).sum()
