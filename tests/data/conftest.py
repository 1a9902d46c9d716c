"""A byte-level tokenizer trained on the shipped rows, and tiny LLaMA models: nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lorahub_edu.data.alpaca import format_prompt, shipped_examples


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = [format_prompt(example) + example.output for example in shipped_examples()]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


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
