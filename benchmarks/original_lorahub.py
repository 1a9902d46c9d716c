"""The original LoRAHub (`pip install --no-deps lorahub==0.1.0`) on a causal model: the peer of the benchmarks.

Its own `get_score`, `default_get_loss` and `default_l1_regularization` do the work. What is written here stands in for
the parts that are tied to encoder-decoders: loading the model and the modules, and encoding the examples.

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, and the released package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nevergrad
import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lorahub_edu.data import fewshot
from lorahub_edu.data.alpaca import IGNORED

Cache = dict[str, dict[str, Tensor]]


def load(
    model: str | Path | PreTrainedModel, module_folders: Sequence[Path], dtype: torch.dtype = torch.float32
) -> tuple[PeftModel, Cache]:
    """A model that carries the first module, and every module's weights, as the original keeps them.

    The original's cache shares memory with the model that loaded its last module, so that each evaluation overwrites
    that module. Here every module is a copy: otherwise the two sides of a benchmark would search different zoos.

    Args:
        model: a folder, or a causal model, which is changed in place.
        module_folders: adapters in PEFT's layout; the first one's configuration serves for all, as in the original.
        dtype: of the base model; PEFT keeps A and B in float32 beside a half-precision one.

    Returns:
        The model in evaluation mode, on the GPU if there is one, and {folder: {PEFT's name: A or B}}.

    Raises:
        ValueError: a module's tensors have other names or shapes than the first one's.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"  # the original's loss looks there, too
    base = model if isinstance(model, PreTrainedModel) else AutoModelForCausalLM.from_pretrained(model)
    peft_model = PeftModel.from_pretrained(base.to(device, dtype), str(module_folders[0])).eval()
    files = [load_peft_weights(str(folder), device=device) for folder in module_folders]
    shapes = [{name: tuple(tensor.shape) for name, tensor in file.items()} for file in files]
    cache: Cache = {}
    for folder, file, found in zip(module_folders, files, shapes, strict=True):
        if found != shapes[0]:  # a missing tensor would silently keep the value of the module before
            differing = sorted(
                name for name in found.keys() | shapes[0].keys() if found.get(name) != shapes[0].get(name)
            )
            raise ValueError(f"{folder} has other tensors than {module_folders[0]}, for example {differing[0]}")
        set_peft_model_state_dict(peft_model, file)
        cache[str(folder)] = {name: t.detach().clone() for name, t in get_peft_model_state_dict(peft_model).items()}
    return peft_model, cache


def examples(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]) -> Dataset:
    """Prompts and answers as the original's data set, with a causal model's labels.

    Args:
        tokenizer: the model's.
        prompts: one text a row.
        answers: one text a row; the tokens are those of `lorahub_edu.data.fewshot.encode`.

    Returns:
        Rows of equal length with input (the prompt; the original divides its loss by this column's length), output,
        input_ids, attention_mask and labels (-100 on prompt and padding).
    """
    rows = [row.encoded() for row in fewshot.encode(tokenizer, prompts, answers)]
    width = max(len(row.input_ids) for row in rows)
    gaps = [width - len(row.input_ids) for row in rows]
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Dataset.from_dict(
        {
            "input": list(prompts),
            "output": list(answers),
            "input_ids": [row.input_ids + [pad] * gap for row, gap in zip(rows, gaps, strict=True)],
            "attention_mask": [[1] * (width - gap) + [0] * gap for gap in gaps],
            "labels": [row.labels + [IGNORED] * gap for row, gap in zip(rows, gaps, strict=True)],
        }
    )


def score(weights: Sequence[float], peft_model: PeftModel, cache: Cache, dataset: Dataset) -> float:
    """The original's score of one candidate: mean token loss / number of examples + 0.05 · mean |w|; lower is better.

    Args:
        weights: (N,) one a module, in the cache's order.
        peft_model: from `load`; it carries the composed module afterwards.
        cache: from `load`.
        dataset: from `examples`.

    Returns:
        The score, in nats.
    """
    import lorahub

    return float(
        lorahub.get_score(
            weights,
            peft_model,
            cache,
            dataset,
            batch_size=None,
            get_loss=lorahub.default_get_loss,
            get_regular=lorahub.default_l1_regularization,
        )
    )


def search(
    peft_model: PeftModel, cache: Cache, dataset: Dataset, steps: int, seed: int = 42
) -> tuple[np.ndarray, list[tuple[np.ndarray, float]]]:
    """The original's search: nevergrad's NGOpt from zero within ±1.5, one candidate at a time.

    Args:
        peft_model, cache, dataset: as in `score`.
        steps: evaluations.
        seed: gives what the original gets from the same seed, without touching numpy's global generator.

    Returns:
        The recommended weights (N,), and each candidate (N,) with its score, in order.
    """
    count = len(cache)
    space = nevergrad.p.Array(init=[0] * count, upper=[1.5] * count, lower=[-1.5] * count)
    # The original seeds numpy's global generator, from which nevergrad then draws the seed of its own.
    space.random_state = np.random.RandomState(np.random.RandomState(seed).randint(2**32, dtype=np.uint32))
    history: list[tuple[np.ndarray, float]] = []

    def objective(weights: np.ndarray) -> float:
        history.append((np.array(weights), score(weights, peft_model, cache, dataset)))
        return history[-1][1]

    best = nevergrad.optimizers.NGOpt(parametrization=space, budget=steps).minimize(objective)
    return np.array(best.value), history
