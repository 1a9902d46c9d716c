"""The tiny tokenizer and smaller LLaMA models: nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lorahub_edu.models import tiny


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny profile's tokenizer, with a padding token that is not the end token, so that a test can tell them."""
    made = tiny.tokenizer()
    made.pad_token = "<|endoftext|>"
    return made


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LlamaForCausalLM]:
    """A function that builds the same random LLaMA (2 layers, 4 query and 2 key heads) for any attention and dtype."""

    def build(attention: str, dtype: torch.dtype = torch.float32, vocab_size: int = 97) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
            initializer_range=0.3,
            attn_implementation=attention,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return LlamaForCausalLM(config).to(dtype).eval()

    return build
