"""Random LoRA modules, rows to score them on, and what both should give, computed the slow way in float64."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from lorahub_edu.data import fewshot
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import tiny

PROMPTS = [f"Give the opposite.\nInput: {word}\nOutput:" for word in ("hot", "a long way", "up", "dear", "old")]
ANSWERS = ["cold", "a short way", "down", "cheap", "new"]


def random_module(
    model: nn.Module,
    seed: int,
    rank: int = 4,
    alpha: float = 8.0,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    dtype: torch.dtype = torch.float32,
    std: float = 0.1,
    base: tuple[str, str | None] = (tiny.NAME, None),
) -> AdapterFile:
    """A module called "m<seed>" whose A and B are both random, for every layer of the model that ends in a target."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(targets):
            A = torch.randn(rank, layer.in_features, generator=generator) * std
            B = torch.randn(layer.out_features, rank, generator=generator) * std
            weights[name] = (A.to(dtype), B.to(dtype))
    config = LoRAConfig(rank=rank, alpha=alpha, target_modules=targets, dtype=dtype)
    return AdapterFile(Path(f"m{seed}"), weights, dict.fromkeys(weights, config), *base)


def random_modules(model: nn.Module, count: int = 3, **options: object) -> list[AdapterFile]:
    """Modules "m0", "m1", …; see `random_module`."""
    return [random_module(model, seed, **options) for seed in range(count)]


def write(file: AdapterFile, folder: Path, name: str | None = None) -> Path:
    """The module on disk in PEFT's layout, written by safetensors and json alone."""
    config = next(iter(file.configs.values()))
    where = folder / (name or file.path.name)
    where.mkdir(parents=True)
    tensors = {}
    for site, (A, B) in file.weights.items():
        tensors[f"base_model.model.{site}.lora_A.weight"] = A.contiguous()
        tensors[f"base_model.model.{site}.lora_B.weight"] = B.contiguous()
    metadata = {"format": "pt"} | ({"base_model_sha256": file.base_model_sha256} if file.base_model_sha256 else {})
    save_file(tensors, where / "adapter_model.safetensors", metadata=metadata)
    settings = {
        "peft_type": "LORA", "r": config.rank, "lora_alpha": config.alpha,
        "target_modules": [target.lstrip(".") for target in config.target_modules],
        "base_model_name_or_path": file.base_model,
    }  # fmt: skip
    (where / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return where


def rows(count: int = 5) -> list[PromptedRow]:
    """Examples for the tiny model; their prompts share the instruction."""
    return fewshot.encode(tiny.tokenizer(), PROMPTS[:count], ANSWERS[:count])


def deltas(files: Sequence[AdapterFile], weights: Sequence[float], composition: str) -> dict[str, np.ndarray]:
    """Per layer the update that a composition adds to the weight, (out, in), by plain sums in float64."""
    found = {}
    for site in files[0].weights:
        scaling = [file.configs[site].scaling for file in files]
        pairs = [tuple(t.double().numpy() for t in file.weights[site]) for file in files]
        if composition == "paper":
            A = sum(w * A for w, (A, _) in zip(weights, pairs, strict=True))
            B = sum(w * B for w, (_, B) in zip(weights, pairs, strict=True))
            found[site] = scaling[0] * B @ A
        else:
            found[site] = sum(w * s * B @ A for w, s, (A, B) in zip(weights, scaling, pairs, strict=True))
    return found


def merged(model: PreTrainedModel, update: dict[str, np.ndarray]) -> PreTrainedModel:
    """A float64 copy of the model with the updates added to its weights."""
    twin = copy.deepcopy(model).double()
    with torch.no_grad():
        for site, delta in update.items():
            twin.get_submodule(site).weight += torch.from_numpy(delta)
    return twin


@torch.no_grad()
def plain_losses(model: PreTrainedModel, examples: Sequence[PromptedRow]) -> tuple[float, list[float]]:
    """transformers' own loss, a row at a time and without padding: over all label tokens, and a row's mean each."""
    means = []
    for row in examples:
        if model.config.is_encoder_decoder:
            loss = model(input_ids=torch.tensor([row.prompt_ids]), labels=torch.tensor([row.answer_ids])).loss
        else:
            encoded = row.encoded()
            loss = model(input_ids=torch.tensor([encoded.input_ids]), labels=torch.tensor([encoded.labels])).loss
        means.append(loss.item())
    return float(np.average(means, weights=[len(row.answer_ids) for row in examples])), means


def t5(gated: bool = False, tied: bool = True) -> T5ForConditionalGeneration:
    """A random T5 of two layers in evaluation mode, as the first T5 (ReLU, tied head) or as FLAN-T5 (gated, untied)."""
    settings = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu" if gated else "relu", tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return T5ForConditionalGeneration(settings).eval()


def t5_rows(count: int = 4) -> list[PromptedRow]:
    """Rows of random token ids and different lengths; 1 is the end token, as in T5."""
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> list[int]:
        return [*torch.randint(3, 64, (length,), generator=generator).tolist(), 1]

    return [PromptedRow(ids(3 + 2 * i), ids(1 + i % 3)) for i in range(count)]
