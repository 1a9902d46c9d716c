"""A random LLaMA of a million parameters and a smaller T5, with tokenizers: for tests, from no file and no network."""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from lorahub_edu.data import alpaca

Model = TypeVar("Model", LlamaForCausalLM, T5ForConditionalGeneration)

NAME = "tiny-random-llama"
T5_NAME = "tiny-random-t5"
# SmolLM2's own special tokens, in its own order, so that text prepared for one fits the other.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def config() -> LlamaConfig:
    """A LLaMA of about a million parameters with every part of a large one: grouped-query attention, tied head."""
    return LlamaConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def model(seed: int = 0, attention: str = "sdpa") -> LlamaForCausalLM:
    """The random model of the `tiny` profile; the same seed gives the same weights, and no global seed is touched."""
    return _random(LlamaForCausalLM, config(), NAME, seed, attention)


def _random(kind: type[Model], settings: PreTrainedConfig, name: str, seed: int, attention: str) -> Model:
    settings._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(settings)
        if model.config.is_encoder_decoder:
            # transformers ties every T5's head that no checkpoint fills; FLAN-T5's checkpoint has its own head.
            weight = model.lm_head.weight
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(weight) * settings.d_model**-0.5)
    model.config._name_or_path = name
    return model.eval()


def t5_config() -> T5Config:
    """A T5 with what FLAN-T5 has: a gated feed-forward, an output head of its own, and padding apart from the end."""
    return T5Config(
        vocab_size=config().vocab_size,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        pad_token_id=0,
        decoder_start_token_id=0,
        eos_token_id=2,
    )


def t5(seed: int = 0, attention: str = "sdpa") -> T5ForConditionalGeneration:
    """A random encoder-decoder of a fifth of a million parameters; the same seed gives the same weights."""
    return _random(T5ForConditionalGeneration, t5_config(), T5_NAME, seed, attention)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1,024 tokens learnt in milliseconds from the shipped rows; any text survives a round trip."""
    return _fast(Tokenizer.from_str(_bpe()), pad=SPECIAL_TOKENS[2])


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """The same tokens as a T5 wants them: the end token closes a text for the encoder, and padding is another token."""
    end = SPECIAL_TOKENS[2]
    bpe = Tokenizer.from_str(_bpe())
    bpe.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 2)])
    return _fast(bpe, pad=SPECIAL_TOKENS[0])


def _fast(bpe: Tokenizer, pad: str) -> PreTrainedTokenizerFast:
    unknown, start, end = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token=unknown, bos_token=start, eos_token=end, pad_token=pad
    )


@cache
def _bpe() -> str:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config().vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [alpaca.format_prompt(row) + row.output for row in alpaca.shipped_examples()]
    bpe.train_from_iterator(texts, trainer=trainer)
    return bpe.to_str()
