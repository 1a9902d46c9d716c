"""Checks of lesson 04's assignment on what methods train: counts, biases, a scale, and what can be merged.

Sources: Hu et al. 2021, arXiv 2106.09685, table 4; Ben Zaken et al. 2021, arXiv 2106.10199; Kalajdzievski 2023, arXiv
2312.03732.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lorahub_checks.draws import integer, normal
from lorahub_checks.predictions import choice, number
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds
from lorahub_edu.methods.attach import attach
from lorahub_edu.show import objects
from lorahub_edu.show.objects import there

SIZE_NAMES = {"prompt": "length", "prefix": "length", "lora": "rank"}


@lru_cache(maxsize=256)
def _counted(method: str, layers: int, heads: int, kv_heads: int, head_width: int, inner: int, size: int) -> int:
    """What a method trains on a small LLaMA, counted on the model itself."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=heads * head_width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        pad_token_id=0,
    )
    settings = {SIZE_NAMES[method]: size} if method in SIZE_NAMES else {}
    if method == "lora":
        settings["target_modules"] = ("q_proj", "v_proj")
    return attach(LlamaForCausalLM(config), method, **settings).trainable


@problem(
    "04.8",
    "what each method trains",
    hints=(
        "For each method write down what one layer gets: vectors of which width, and how many of them?",
        "Keys and values are as wide as `kv`, not as `hidden`. A prompt stands in front once, a prefix in every layer "
        "and for keys and values both. A bias is as wide as what its layer puts out.",
        "hidden 8, kv 4, 2 layers, size 3: a prompt trains 3 * 8 = 24, a prefix 2 * 2 * 3 * 4 = 48. LoRA takes q and "
        "v: 3 * (8 + 8) + 3 * (8 + 4) in each layer.",
    ),
)
def trained(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """trained(method, layers, hidden, kv, inner, size) -> numbers that a method trains on a LLaMA."""
    layers, kv_heads, head_width = integer(3, 4, generator), integer(1, 2, generator), 2 * integer(2, 3, generator)
    heads = 3 * kv_heads
    hidden, kv, inner = heads * head_width, kv_heads * head_width, 100 + integer(1, 9, generator)
    for method in ("prompt", "prefix", "ia3", "bitfit", "lora"):
        size = integer(5, 7, generator) if method in SIZE_NAMES else 0
        all_seven = 2 * 2 * hidden + 2 * (hidden + kv) + 3 * (hidden + inner)
        right = _counted(method, layers, heads, kv_heads, head_width, inner, size)
        wrong = {
            "prompt": {
                "every layer was given a prompt: it stands in front of the first one only": layers * size * hidden,
                "its width is missing: each vector is as wide as an embedding": size,
                "keys and values have no prompt of their own: that is a prefix": 2 * size * hidden,
            },
            "prefix": {
                "keys or values are missing: the prefix has both": layers * size * kv,
                "a prefix is as wide as keys and values, not as the hidden state": layers * 2 * size * hidden,
                "only one layer was counted: every layer has a prefix": 2 * size * kv,
            },
            "ia3": {
                "keys and values are taken as wide as the hidden state": layers * (2 * hidden + inner),
                "the feed-forward's scale is missing: it has one factor for each inner number": layers * 2 * kv,
                "only keys or only values are scaled: both are": layers * (kv + inner),
                "only one layer was counted": 2 * kv + inner,
            },
            "bitfit": {
                "a bias is as wide as the layer's outputs, not its inputs": layers * (5 * hidden + hidden + inner),
                "the feed-forward's three matrices are missing": layers * (2 * hidden + 2 * kv),
                "the attention's four matrices are missing": layers * (2 * inner + hidden),
                "k_proj and v_proj are taken as wide as q_proj": layers * (5 * hidden + 2 * inner),
            },
            "lora": {
                "v_proj puts out kv numbers, not hidden": layers * size * 4 * hidden,
                "only A was counted": layers * size * 2 * hidden,
                "q_proj's adapter is missing: q_proj and v_proj both have one": layers * size * (hidden + kv),
                "all seven matrices were counted: adapters stand on q_proj and v_proj": layers * size * all_seven,
                "the rank is missing": layers * (3 * hidden + kv),
            },
        }[method]
        seen = answer(method, layers, hidden, kv, inner, size)
        yield equals(f"{method}, counted on the model itself", seen, right, misconceptions=wrong)


@problem(
    "04.9",
    "train the biases only",
    hints=(
        "Some layers have a bias, some don't. What must a new one be, so that nothing changes at first?",
        "Freeze everything. A layer without a bias gets one of zeros, as wide as its outputs; then every bias trains.",
        "nn.Parameter(torch.zeros(7)) is a bias for 7 outputs, and it trains. Look at every module that is an "
        "nn.Linear, and ask whether its bias is None.",
    ),
)
def bitfit(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """bitfit(model): every linear layer has a trained bias, new ones start at zero, nothing else trains; in place."""
    sizes = (integer(4, 5, generator), integer(6, 7, generator), 3, 3)
    layers = [
        there(answer, nn.Linear, sizes[0], sizes[1], bias=False),
        there(answer, nn.RMSNorm, sizes[1]),
        there(answer, nn.Linear, sizes[1], sizes[2]),
        there(answer, nn.Sequential, there(answer, nn.Linear, sizes[2], sizes[3], bias=False)),
        there(answer, nn.Linear, sizes[3], 2, bias=False),  # the last module and parameter count, too
    ]
    there(answer, nn.Module.requires_grad_, layers[2], False)  # a bias that somebody froze before
    model = there(answer, nn.Sequential, *layers)
    before = there(answer, objects.state, model)
    x = normal(generator, 5, sizes[0]).float()
    start = there(answer, objects.output, model, x)
    answer(model)
    found = there(answer, objects.parameters, model)
    trains = {name: shape for name, (shape, trained) in found.items() if trained}
    wanted = {"0.bias": (sizes[1],), "2.bias": (sizes[2],), "3.0.bias": (sizes[3],), "4.bias": (2,)}
    words = "name every bias `bias`, as nn.Linear does, and make it an nn.Parameter as wide as the outputs"
    if any(name.endswith("weight") for name in trains):
        words = "weights are trained as well: freeze everything but the biases"
    elif not trains:
        words = "nothing is trained: biases need a gradient"
    elif set(trains) < set(wanted):
        words = "some linear layers have no trained bias: those without one get one, wherever they stand"
    yield holds("trained is the bias of every linear layer, nothing else", trains == wanted, trains, words)
    if trains != wanted:
        return
    after = there(answer, objects.state, model)
    kept = all(torch.equal(after[name], tensor) for name, tensor in before.items())
    words = "what was there has changed: a bias that exists stays as it is"
    yield holds("weights and old biases stay", kept, misconception=words)
    words = "a new bias must start at zero, or the model is another one before any training"
    now = there(answer, objects.output, model, x)
    yield holds(
        "at the start the model computes what it did", torch.allclose(now, start, atol=1e-6), misconception=words
    )
    drawn = {name: normal(generator, *shape).float() for name, shape in wanted.items()}
    there(answer, objects.assign, model, drawn)
    h = nn.functional.rms_norm(x @ before["0.weight"].T + drawn["0.bias"], (sizes[1],), before["1.weight"])
    for name in ("2", "3.0", "4"):
        h = h @ before[f"{name}.weight"].T + drawn[f"{name}.bias"]
    seen = there(answer, objects.output, model, x)
    yield equals("the biases are added to the outputs", seen, h)


@problem(
    "04.10",
    "two rules for the scale",
    hints=(
        "Write down both factors in front of B A, and divide one by the other.",
        "LoRA has alpha / r, rsLoRA has alpha / sqrt(r). alpha cancels.",
        "At r = 16 it is (alpha / 4) / (alpha / 16) = 4.",
    ),
)
def times_larger(answer: object, _generator: torch.Generator) -> Iterator[Property]:
    """Specification of times_larger, a number: rsLoRA's factor over LoRA's, at rank 64 and alpha 16."""
    mistakes = {
        "this is the rank: the quotient of r and its root is asked for": 64,
        "this is rsLoRA's factor itself: divide it by LoRA's": 2,
        "this is LoRA's factor itself": 0.25,
        "upside down: rsLoRA's is the larger one": 0.125,
        "alpha cancels: the quotient doesn't depend on it": 128,
        "this is alpha": 16,
    }
    yield from number(answer, "rsLoRA's factor over LoRA's", 8, mistakes)


@problem(
    "04.11",
    "what can't be merged",
    hints=(
        "A merged layer is one matrix. Which of the four computes something that no matrix can?",
        "A matrix maps a sum to the sum of the maps. LoRA, IA3 and DoRA change a weight; one of the four bends.",
        "Run the cell: it fits the best matrix to each, and prints what is left over.",
    ),
)
def not_mergeable(answer: object, _generator: torch.Generator) -> Iterator[Property]:
    """A letter: the method that can't be merged into the weights."""
    yield from choice(
        answer,
        "C",
        {
            "A": "LoRA adds a product of two matrices to the weight: that is a matrix",
            "B": "IA3 multiplies rows or columns of a weight, so its factors can be written into it",
            "D": "DoRA's lengths and directions are a new weight, once training is over",
        },
    )
