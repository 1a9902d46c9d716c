"""Checks of lesson 02: the parts of a LLaMA block, and what adapters on it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lorahub_checks.draws import integer
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.show.objects import there

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@problem(
    "02.1",
    "RMSNorm",
    hints=(
        "Nothing is subtracted. Every token's vector is divided by one number, its own size.",
        "That number is the root mean square over the last axis: square, average, add eps, take the root. "
        "keepdim=True keeps the axis, so that the division lines up.",
        "For x = (3, 4) the mean of the squares is 12.5 and its root 3.54, so x becomes (0.85, 1.13), times the "
        "weight.",
    ),
    trains=(0, 1),
)
def rms_norm(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """rms_norm(x, weight, eps) against torch's own."""
    width = integer(5, 12, generator)
    weight = 0.5 + torch.rand(width, generator=generator)
    vector = 1.0 + torch.randn(width, generator=generator)  # a mean far from 0 tells RMSNorm from LayerNorm
    batch = 1.0 + torch.randn(2, 3, width, generator=generator) * torch.tensor([0.5, 1.0, 4.0])[:, None]
    faint = 0.01 * torch.randn(4, width, generator=generator)  # as small as eps, so its place shows

    for name, x, eps in (
        ("one vector is divided by its root mean square", vector, 1e-6),
        ("every token of a (batch, tokens, width) tensor is normalised on its own", batch, 1e-6),
        ("eps is added inside the root (inputs as small as eps)", faint, 1e-4),
    ):
        seen = answer(x, weight, eps)
        right = F.rms_norm(x, (width,), weight, eps)
        yield equals(name, seen, right, misconceptions=_wrong_norms(x, weight, eps))


def _wrong_norms(x: Tensor, weight: Tensor, eps: float) -> dict[str, Tensor]:
    mean_square = x.pow(2).mean(-1, keepdim=True)
    layer_norm = F.layer_norm(x, (x.shape[-1],), weight, None, eps)

    def by(square: Tensor) -> Tensor:
        return weight * x / torch.sqrt(square + eps)

    unit, one_mean = x / torch.sqrt(mean_square + eps), by(x.pow(2).mean())
    biased, unbiased = (by(x.var(-1, unbiased=kind, keepdim=True)) for kind in (False, True))
    return {
        "the mean was subtracted: that is LayerNorm, RMSNorm only divides": layer_norm,
        "the standard deviation was used: the root mean square subtracts no mean, not even inside the root": biased,
        "the unbiased standard deviation was used: the root mean square subtracts no mean": unbiased,
        "the squares were summed, not averaged: divide the sum by the width": by(x.pow(2).sum(-1, keepdim=True)),
        "the root is missing: divide by the root of the mean square": weight * x / (mean_square + eps),
        "eps stands outside the root: add it to the mean square first": weight * x / (mean_square.sqrt() + eps),
        "eps is missing: a vector of zeros would divide by zero": weight * x / mean_square.sqrt(),
        "the learnt weight is missing: multiply every coordinate by its own": unit,
        "1 + weight was used, as Gemma does: LLaMA multiplies by the weight itself": (1 + weight) * unit,
        "one mean was taken over all tokens: every token has its own, so average over the last axis only": one_mean,
    }


@problem(
    "02.2",
    "rotate by position",
    hints=(
        "At position 0 nothing turns. What does a turn by an angle do to a point with two coordinates?",
        "Coordinate j of the first half and coordinate j of the second half are one point; its angle is "
        "position * theta ** (-2 * j / d). A turn makes (a, b) into (a cos - b sin, a sin + b cos).",
        "For d = 4 and position 1 the angles are 1 and theta ** (-1/2). The pair x[0], x[2] turns by the first, x[1], "
        "x[3] by the second. positions[:, None] gives each token a row of angles.",
    ),
    trains=(0,),
)
def apply_rope(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """apply_rope(x, positions, theta) in the rotate-half layout, against multiplication by complex numbers."""
    width, tokens = 2 * integer(3, 6, generator), 4
    theta = float(integer(10, 30, generator))
    q, k = torch.randn(2, 2, 3, tokens, width, generator=generator)  # each (batch, heads, tokens, width)
    start = torch.zeros(tokens, dtype=torch.long)
    places = torch.randperm(20, generator=generator)[:tokens] + 2  # neither sorted nor consecutive

    yield equals(
        "position 0 leaves a vector as it is",
        answer(q, start, theta),
        q,
        misconceptions=_wrong_rotations(q, start, theta),
    )
    yield equals(
        "one vector turns by position times its frequencies",
        answer(q[0, 0, :1], places[:1], theta),
        _rotate(q[0, 0, :1], places[:1], theta),
        misconceptions=_wrong_rotations(q[0, 0, :1], places[:1], theta),
    )
    yield equals(
        "a (batch, heads, tokens, width) tensor: every token turns by its own position",
        answer(q, places, theta),
        _rotate(q, places, theta),
        misconceptions=_wrong_rotations(q, places, theta),
    )
    near = (answer(q, places, theta) * answer(k, places + 3, theta)).sum(-1)
    far = (answer(q, places + 50, theta) * answer(k, places + 53, theta)).sum(-1)
    yield holds(
        "the score of two vectors depends on their distance only",
        torch.allclose(near, far, rtol=1e-3, atol=1e-3),
        f"largest difference {(near - far).abs().max():.3g}",
        "shifting both positions must not change q · k: is every pair turned by a full rotation?",
    )


def _rotate(x: Tensor, positions: Tensor, theta: float, exponent: float = 2.0) -> Tensor:
    """The reference: coordinates j and j + d/2 are one complex number, multiplied by exp(i · position · frequency)."""
    width = x.shape[-1]
    frequencies = theta ** (-exponent * torch.arange(width // 2, dtype=torch.float64) / width)  # (d/2,)
    angles = positions.double()[:, None] * frequencies  # (T, d/2)
    turned = torch.complex(*x.double().chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), -1).to(x.dtype)


def _wrong_rotations(x: Tensor, positions: Tensor, theta: float) -> dict[str, Tensor]:
    width = x.shape[-1]
    pairs = x.unflatten(-1, (-1, 2)).mT.flatten(-2)  # neighbours (0, 1), (2, 3), … brought into halves
    wrong = {
        "neighbouring coordinates were paired, as in the paper: here j goes with j + d/2": _rotate(
            pairs, positions, theta
        )
        .unflatten(-1, (2, -1))
        .mT.flatten(-2),
        "it turns the wrong way: the sine's sign is swapped": _rotate(x, -positions, theta),
        "the frequencies fall too slowly: the exponent is -2j/d, not -j/d": _rotate(x, positions, theta, 1.0),
        "the frequencies grow: the exponent is negative, -2j/d": _rotate(x, positions, theta, -2.0),
        "theta was not used: take the one that is given, not 10000": _rotate(x, positions, 10_000.0),
        "the given positions were not used: tokens needn't stand at 0, 1, 2, …": _rotate(
            x, torch.arange(x.shape[-2]), theta
        ),
        "positions count from 1: the first token stands at 0": _rotate(x, positions + 1, theta),
    }
    angles = positions.double()[:, None] * theta ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
    cos, sin = (table(angles).float() for table in (torch.cos, torch.sin))
    a, b = x.chunk(2, -1)
    wrong["a minus sign is missing: the first half becomes a cos - b sin"] = torch.cat(
        (a * cos + b * sin, a * sin + b * cos), -1
    )
    wrong["the sine part is missing: cosines alone shrink the vector, they don't turn it"] = torch.cat(
        (a * cos, b * cos), -1
    )
    return wrong


@problem(
    "02.3",
    "grouped-query attention",
    hints=(
        "Three things happen to the scores before v is averaged: a scale, a mask, a softmax. And which query heads "
        "share a key head?",
        "Query heads 0 … g-1 share key/value head 0, the next g share head 1: repeat_interleave on the heads' axis, "
        "with g = heads / kv_heads. Then it is plain attention, masked so that no token looks ahead.",
        "4 query heads and 2 key heads make g = 2, and repeat_interleave gives the keys 0, 0, 1, 1. For T = 3 the "
        "future is torch.ones(3, 3, dtype=torch.bool).triu(1): there the scores are minus infinity before the "
        "softmax.",
    ),
    trains=(0, 1, 2),
)
def grouped_query_attention(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """grouped_query_attention(q, k, v) against torch's scaled_dot_product_attention."""
    tokens, width = integer(4, 7, generator), 2 * integer(2, 4, generator)

    def draw(heads: int) -> Tensor:
        return torch.randn(2, heads, tokens, width, generator=generator)

    few = [(10 * torch.randn(1, heads, 3, 4, generator=generator)).round() / 10 for heads in (2, 1, 1)]

    for name, heads, kv_heads in (
        ("as many key/value heads as query heads: plain causal attention", 3, 3),
        ("six query heads share two key/value heads", 6, 2),
        ("all query heads share one key/value head", 4, 1),
    ):
        q, k, v = draw(heads), draw(kv_heads), draw(kv_heads)
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        yield equals(name, answer(q, k, v), expected, misconceptions=_wrong_attentions(q, k, v))
    right = F.scaled_dot_product_attention(*few, is_causal=True, enable_gqa=True)
    yield equals("few numbers", answer(*few), right, misconceptions=_wrong_attentions(*few))
    q, k, v = draw(2), draw(1), draw(1)
    before = answer(q, k, v)
    k[:, :, -1], v[:, :, -1] = 9.0, 9.0
    after = answer(q, k, v)
    yield holds(
        "a later token changes nothing for the earlier ones",
        torch.allclose(before[:, :, :-1], after[:, :, :-1], atol=1e-5),
        f"largest difference {(before[:, :, :-1] - after[:, :, :-1]).abs().max():.3g}",
        "tokens look ahead: set the scores of later tokens to minus infinity before the softmax",
    )


def _wrong_attentions(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    group, tokens, width = q.shape[1] // k.shape[1], q.shape[-2], q.shape[-1]
    keys, values = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ keys.mT / width**0.5
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    masked = scores.masked_fill(future, -torch.inf)
    right = masked.softmax(-1) @ values

    def tiled(tensor: Tensor) -> Tensor:
        return tensor.repeat(1, group, 1, 1)

    tiled_scores = (q @ tiled(k).mT / width**0.5).masked_fill(future, -torch.inf)
    after = scores.softmax(-1).masked_fill(future, 0.0)
    upside_down, zeros = scores.masked_fill(future.mT, -torch.inf), scores.masked_fill(future, 0.0)
    return {
        "the scores are not scaled: divide by the root of the head's width": (masked * width**0.5).softmax(-1) @ values,
        "the scores are divided by the width, not by its root": (masked / width**0.5).softmax(-1) @ values,
        "the causal mask is missing: no token may look ahead": scores.softmax(-1) @ values,
        "the mask is upside down: it hides the past and shows the future": upside_down.softmax(-1) @ values,
        "masked scores were set to 0, which still gets weight: minus infinity gets none": zeros.softmax(-1) @ values,
        "the mask came after the softmax, so the weights of a row no longer sum to 1": after @ values,
        "the softmax runs over the queries: it belongs on the last axis, the keys": masked.softmax(-2) @ values,
        "the heads were tiled (0, 1, 0, 1, …): neighbours share a head, so repeat each one (0, 0, 1, 1, …)": (
            tiled_scores.softmax(-1) @ tiled(v)
        ),
        "v was tiled but k was not: both must repeat each head (0, 0, 1, 1, …)": masked.softmax(-1) @ tiled(v),
        "the heads are joined already: return (batch, heads, tokens, width), o_proj comes later": right.transpose(
            1, 2
        ).flatten(2),
    }


@problem(
    "02.4",
    "count an adapter",
    hints=(
        "Write down (out, in) of each of the seven matrices. Are k_proj and v_proj as wide as q_proj?",
        "One matrix costs rank * (in + out). k_proj and v_proj make num_key_value_heads * head_dim numbers, "
        "q_proj makes num_attention_heads * head_dim, and every layer has its own adapters.",
        "Width 576, 9 heads of 64, 3 key heads: q_proj has 576 + 576 = 1,152 on its two sides, k_proj 576 + 192 = "
        "768. Each counts once for every rank and every layer.",
    ),
)
def adapter_parameters(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """adapter_parameters(config, rank, targets) against the layers of a real model with adapters injected."""
    # Sizes for which no two mistakes give the same count: 1 / layers, 1 / rank and A's or B's share all differ.
    kv_heads, layers = integer(2, 3, generator), integer(7, 9, generator)
    heads, head_dim = kv_heads * integer(2, 4, generator), 2 * integer(4, 8, generator)
    sizes = _sizes(layers, heads, kv_heads, head_dim, heads * head_dim)
    first, second = 6, integer(3, 5, generator)
    for name, rank, targets in (
        ("adapters on k_proj", first, ("k_proj",)),
        ("adapters on q_proj and v_proj, the LoRA article's choice", first, ("q_proj", "v_proj")),
        ("adapters on the three matrices of the MLP", first, MLP),
        ("adapters on all seven, at another rank", second, ATTENTION + MLP),
    ):
        yield _count(name, answer, sizes, rank, targets)
    wide = _sizes(layers, heads, kv_heads, head_dim + 2, heads * head_dim)
    yield _count("heads * head_dim need not be hidden_size", answer, wide, first, ATTENTION)


def _sizes(layers: int, heads: int, kv_heads: int, head_dim: int, hidden: int) -> dict[str, int]:
    return {
        "vocab_size": 32,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden + 1,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


def _count(name: str, answer: Callable, sizes: dict[str, int], rank: int, targets: Sequence[str]) -> Property:
    config = LlamaConfig(**sizes)
    with torch.device("meta"):  # shapes without numbers; one layer, since all are alike
        model = LlamaForCausalLM(LlamaConfig(**sizes | {"num_hidden_layers": 1}))
    adapters.inject(model, LoRAConfig(rank=rank, target_modules=tuple(targets)), seed=0)
    expected = config.num_hidden_layers * adapters.count_parameters(model).adapter
    d, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    q, kv = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))

    def total(q: int, kv: int, chosen: Sequence[str] = targets) -> int:
        sides = dict(zip(ATTENTION + MLP, (d + q, d + kv, d + kv, q + d, d + f, d + f, f + d), strict=True))
        return layers * rank * sum(sides[target] for target in chosen)

    ins = dict(zip(ATTENTION + MLP, (d, d, d, q, d, d, f), strict=True))
    outs = dict(zip(ATTENTION + MLP, (q, kv, kv, d, f, f, d), strict=True))
    full = sum(ins[t] * outs[t] for t in targets)
    return equals(
        name,
        answer(there(answer, LlamaConfig, **sizes), rank, targets),
        expected,
        misconceptions={
            "only one layer was counted: every layer has its own adapters": expected // layers,
            "k_proj and v_proj were taken as wide as q_proj: they have num_key_value_heads only": total(q, q),
            "hidden_size stands where num_attention_heads * head_dim belongs": total(d, kv),
            "only A was counted: B has out * rank numbers more": layers * rank * sum(ins[t] for t in targets),
            "only B was counted: A has rank * in numbers more": layers * rank * sum(outs[t] for t in targets),
            "these are the full matrices, in * out: an adapter has rank * (in + out)": layers * full,
            "rank * in * out was counted: A and B have rank * (in + out) numbers": layers * rank * full,
            "the rank is missing: A has rank rows and B has rank columns": expected // rank,
            "all seven matrices were counted: take the targets only": total(q, kv, ATTENTION + MLP),
        },
    )
