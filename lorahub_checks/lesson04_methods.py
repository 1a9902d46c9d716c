"""Checks of lesson 04's assignment on what methods compute: a prefix, IA3's scales, DoRA's weight, a soft prompt.

Sources: Li and Liang 2021, arXiv 2101.00190; Liu et al. 2022, arXiv 2205.05638; Liu et al. 2024, arXiv 2402.09353;
Lester et al. 2021, arXiv 2104.08691.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lorahub_checks.draws import integer, normal
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds

IGNORED = -100


@problem(
    "04.4",
    "attention with a prefix",
    hints=(
        "The prefix has keys and values, but asks nothing. How many rows does the result have?",
        "Put the prefix in front of keys and of values. Every token sees the whole prefix, and of the text what came "
        "before it: one softmax over both.",
        "P = 2, T = 3: the mask is (3, 5). Its first two columns are all True, the other three are a lower triangle. "
        "Keys and values are longer by 2, queries are not.",
    ),
    trains=(3, 4),
)
def prefix_attention(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """prefix_attention(q, k, v, prefix_k, prefix_v) -> (heads, T, d); the prefix's are (heads, P, d)."""
    heads, width = 2, 3
    for name, (length, prefix) in {"a short prefix": (4, 2), "a prefix longer than the text": (3, 6)}.items():
        q, k, v = (normal(generator, heads, length, width) for _ in range(3))
        before_k, before_v = (normal(generator, heads, prefix, width) for _ in range(2))
        keys, values = torch.cat([before_k, k], 1), torch.cat([before_v, v], 1)
        seen_by_all, triangle = torch.ones(length, prefix), torch.ones(length, length).tril()

        mask = torch.cat([seen_by_all, triangle], 1)
        right = _attend(q, keys, values, mask)
        alone = _attend(q, k, v, triangle)
        two_softmaxes = alone + _attend(q, before_k, before_v, seen_by_all)
        late, ahead = torch.ones(length, prefix + length).tril(), torch.ones(length, prefix + length)
        wrong = {
            "the prefix is not seen: its keys and values are missing": alone,
            "the triangle starts at the prefix, so early tokens don't see all of it": _attend(q, keys, values, late),
            "tokens look ahead in the text: the prefix is seen by all, the text only backwards": _attend(
                q, keys, values, ahead
            ),
            "the prefix has a softmax of its own, as in LLaMA-Adapter: here one softmax runs over both": two_softmaxes,
            "the scores are not divided by the root of the head's width": _attend(q * width**0.5, keys, values, mask),
            "the prefix's keys and values are exchanged": _attend(
                q, torch.cat([before_v, k], 1), torch.cat([before_k, v], 1), mask
            ),
            "the prefix stands behind the text while its values stand in front": _attend(
                q, torch.cat([k, before_k], 1), values, torch.cat([triangle, seen_by_all], 1)
            ),
            "the prefix asks as well: only the text has queries, so T rows come back": _attend(
                torch.cat([before_k, q], 1), keys, values, torch.ones(prefix + length, prefix + length).tril()
            ),
        }
        seen = answer(q, k, v, before_k, before_v)
        yield equals(name, seen, right, misconceptions=wrong)


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """torch's attention where a 1 in `allowed`, (queries, keys), lets a token be seen."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed.bool())


@problem(
    "04.5",
    "merge IA3",
    hints=(
        "Scaling what a layer puts out, or what it takes in: which side of W does each act on?",
        "W is (out, in). A factor for each output multiplies a row of W; a factor for each input multiplies a column.",
        "W is (2, 3). A vector of 2 as scale[:, None] multiplies rows, a vector of 3 multiplies columns as it is. In "
        "the feed-forward the factors stand before the layer.",
    ),
)
def merge_ia3(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """merge_ia3(W, scale, feedforward) -> the weight that scales its outputs, or with feedforward its inputs."""
    size, other = integer(5, 6, generator), integer(7, 8, generator)
    for words, feedforward, inputs, outputs in (
        ("keys and values: outputs are scaled", False, size, other),
        ("feed-forward: inputs are scaled", True, size, other),
        ("a square weight, outputs scaled", False, size, size),
        ("a square weight, inputs scaled", True, size, size),
    ):
        W, x = normal(generator, outputs, inputs), normal(generator, 9, inputs)
        scale = 0.5 + torch.rand(inputs if feedforward else outputs, generator=generator, dtype=torch.float64)
        right = (
            (x * scale) @ W.T if feedforward else (x @ W.T) * scale
        )  # what the layer computes with the scale beside it
        wrong = {
            "nothing is scaled": x @ W.T,
            "the scale is added: IA3 multiplies": x @ (W + (scale if feedforward else scale[:, None])).T,
            "1 + scale is used: the scale starts at 1 and is the factor itself": right + x @ W.T,
            "divided by the scale": (x / scale) @ W.T if feedforward else (x @ W.T) / scale,
            "the scale is applied twice": (x * scale**2) @ W.T if feedforward else (x @ W.T) * scale**2,
        }
        if inputs == outputs:
            wrong["rows and columns changed places: a row of W makes one output, a column reads one input"] = (
                (x @ W.T) * scale if feedforward else (x * scale) @ W.T
            )
            wrong["W is transposed"] = x @ (scale[:, None] * W if not feedforward else W * scale)
        merged = answer(W, scale, feedforward)
        same_shape = isinstance(merged, Tensor) and merged.shape == W.shape
        advice = "return a weight of W's shape: a factor for each row is scale[:, None] * W"
        yield holds(f"{words}: a weight of W's shape", same_shape, getattr(merged, "shape", merged), advice)
        if not same_shape:
            return
        yield equals(f"{words}: it does what the scale did", x.to(merged.dtype) @ merged.T, right, misconceptions=wrong)


@problem(
    "04.6",
    "DoRA's weight",
    hints=(
        "A vector is a direction times a length. Which vectors are meant, and where do their lengths come from now?",
        "V = W + alpha / r * B A. Each row of V, the weights of one output, is made one long and then given its own "
        "trained length from `magnitude`.",
        "A row (3, 4) of V has the length 5. With the magnitude 10 it becomes (6, 8). V.norm with dim=1 and keepdim "
        "gives the lengths as (out, 1).",
    ),
)
def dora_weight(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """dora_weight(W, A, B, magnitude, alpha) -> (out, in): row i has V's direction and the length magnitude[i]."""
    rank, alpha = integer(2, 4, generator), float(integer(5, 9, generator))
    for name, (inputs, outputs) in {"a wide weight": (6, 4), "a square weight": (6, 6)}.items():
        W, A, B = normal(generator, outputs, inputs), normal(generator, rank, inputs), normal(generator, outputs, rank)
        magnitude = 0.5 + torch.rand(outputs, generator=generator, dtype=torch.float64)
        lengths, delta = magnitude[:, None], B @ A
        V = W + alpha / rank * delta
        only_update = lengths * F.normalize(delta, dim=1)
        wrong = {
            "every column is made one long: in torch's (out, in) a row holds the weights of one output": (
                lengths * F.normalize(V, dim=0)
            ),
            "divided by the lengths of W's rows: those of W + ΔW count": lengths * V / W.norm(dim=1, keepdim=True),
            "the whole matrix was divided by one norm: each row has its own": lengths * V / V.norm(),
            "the rows are one long: the magnitude is missing": F.normalize(V, dim=1),
            "the rows were not made one long before the magnitude": lengths * V,
            "only the update got a direction and a length: W belongs in there too": W + only_update,
            "the scaling alpha / r is left out": lengths * F.normalize(W + delta, dim=1),
            "the update is multiplied by alpha, not by alpha / r": lengths * F.normalize(W + alpha * delta, dim=1),
            "the update is missing": lengths * F.normalize(W, dim=1),
        }
        right = lengths * F.normalize(V, dim=1)
        yield equals(name, answer(W, A, B, magnitude, alpha), right, misconceptions=wrong)
    start = answer(W, A, torch.zeros_like(B), W.norm(dim=1), alpha)
    yield equals("with B = 0 and W's own lengths nothing changes", start, W)


@problem(
    "04.7",
    "a soft prompt in front",
    hints=(
        "The same vectors stand in front of every row. What do labels and mask say about them?",
        "They are seen, so the mask is 1; they are no tokens, so they take no loss: -100.",
        "3 rows, P = 2: expand repeats the prompt for each row. new_full and new_ones make the two blocks of labels "
        "and mask, (3, 2), in the dtype that fits. What is new stands in front.",
    ),
    trains=(1,),
)
def with_prompt(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """with_prompt(embeddings, prompt, labels, mask) -> the three with P vectors in front of every row."""
    rows, length, size, width = 3, integer(5, 7, generator), integer(2, 4, generator), 4
    embeddings, prompt = normal(generator, rows, length, width), normal(generator, size, width)
    labels = torch.randint(3, 99, (rows, length), generator=generator)
    labels[:, :2] = IGNORED
    mask = (torch.arange(length) < torch.tensor([[length], [length - 1], [length - 2]])).long()
    many = prompt.expand(rows, -1, -1)
    nothing = labels.new_full((rows, size), IGNORED)
    right = [
        torch.cat([many, embeddings], 1),
        torch.cat([nothing, labels], 1),
        torch.cat([mask.new_ones(rows, size), mask], 1),
    ]
    seen = answer(embeddings, prompt, labels, mask)
    three = isinstance(seen, list | tuple) and len(seen) == 3
    yield holds("three tensors come back", three, type(seen).__name__, "return embeddings, labels and mask")
    if not three:
        return
    first_row = torch.cat([many[:1], torch.zeros_like(many[1:])])
    behind = "the prompt stands behind the text: a causal model would never see it there"
    short = "this is as long as before: the prompt has a place here too"
    wrong = {
        "embeddings": {
            behind: torch.cat([embeddings, many], 1),
            short: embeddings,
            "the prompt took the place of the first tokens: it comes in addition": torch.cat(
                [many, embeddings[:, size:]], 1
            ),
            "only the first row got the prompt": torch.cat([first_row, embeddings], 1),
            "the prompt stands in reverse": torch.cat([many.flip(1), embeddings], 1),
        },
        "labels": {
            behind: torch.cat([labels, nothing], 1),
            short: labels,
            "0 is a token's label: use -100, which takes no loss": torch.cat([torch.zeros_like(nothing), labels], 1),
            "nothing takes a loss any more": torch.full_like(right[1], IGNORED),
        },
        "mask": {
            behind: torch.cat([mask, mask.new_ones(rows, size)], 1),
            short: mask,
            "the prompt is hidden: it must be seen": torch.cat([mask.new_zeros(rows, size), mask], 1),
            "everything is visible, padding too": torch.ones_like(right[2]),
        },
    }
    for part, tensor, expected in zip(wrong, seen, right, strict=True):
        yield equals(f"the {part}", tensor, expected, misconceptions=wrong[part])
