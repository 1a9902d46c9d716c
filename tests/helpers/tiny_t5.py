"""A random T5 of a fifth of a million parameters with a tokenizer, and the folder of both: a base as a user has it."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache

import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from lorahub_edu.models import tiny

NAME = "tiny-random-t5"


def config() -> T5Config:
    """A T5 with what FLAN-T5 has: a gated feed-forward, an output head of its own, and padding apart from the end."""
    return T5Config(
        vocab_size=tiny.config().vocab_size, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0, pad_token_id=0,
        decoder_start_token_id=0, eos_token_id=2,
    )  # fmt: skip


def model(seed: int = 0) -> T5ForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = T5ForConditionalGeneration(config())
        # transformers ties every T5's head that no checkpoint fills; FLAN-T5's checkpoint has its own head.
        made.lm_head.weight = torch.nn.Parameter(torch.randn_like(made.lm_head.weight) * made.config.d_model**-0.5)
    made.config._name_or_path = NAME
    return made.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny LLaMA's tokens as a T5 wants them: the end token closes a text for the encoder, padding is another."""
    unknown, start, end = tiny.SPECIAL_TOKENS
    bpe = tiny.tokenizer().backend_tokenizer
    bpe.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token=unknown, bos_token=start, eos_token=end, pad_token=unknown
    )


@cache
def folder() -> str:
    """Where `model()` lies, as transformers saves it."""
    made = tempfile.mkdtemp(prefix=f"{NAME}-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    model().save_pretrained(made)
    tokenizer().save_pretrained(made)
    return made
