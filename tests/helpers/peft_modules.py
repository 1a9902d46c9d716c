"""Random modules as PEFT saves them, and a random small T5 in a folder: what the original LoRAHub can load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration

from lorahub_edu.models import tiny


def save_modules(
    make_model: Callable[[], PreTrainedModel],
    folder: Path,
    count: int = 3,
    rank: int = 4,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    std: float = 0.1,
) -> list[Path]:
    """Folders of `count` modules made and saved by PEFT alone; A and B are random, so that each does something."""
    folders = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        model = get_peft_model(make_model(), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets)))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=std, generator=generator)
        folders.append(folder / f"module{number}")
        model.save_pretrained(folders[-1])
    return folders


def tokenizer() -> PreTrainedTokenizerBase:
    """The tiny tokenizer with a padding token of its own, so that padding and the end of an answer differ."""
    made = tiny.tokenizer()
    made.pad_token = "<|endoftext|>"
    return made


def save_t5(folder: Path) -> Path:
    """A random T5 of two layers and its tokenizer, as a folder that transformers' Auto classes load."""
    settings = T5Config(
        vocab_size=tiny.config().vocab_size,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        T5ForConditionalGeneration(settings).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
