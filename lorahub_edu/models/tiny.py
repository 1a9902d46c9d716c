"""A random LLaMA of a million parameters with its tokenizer: for profile `tiny`, from no file and no network."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lorahub_edu.data import alpaca

NAME = "tiny-random-llama"
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
    settings = config()
    settings._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = LlamaForCausalLM(settings)
    made.config._name_or_path = NAME
    return made.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1,024 tokens learnt in milliseconds from the shipped rows; any text survives a round trip."""
    unknown, start, end = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe()), unk_token=unknown, bos_token=start, eos_token=end, pad_token=end
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
