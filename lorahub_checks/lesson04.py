"""What right answers of lesson 04 must satisfy: a bottleneck adapter, a gated prompt, a size for a budget.

Sources: Houlsby et al. 2019, arXiv 1902.00751, section 2.1; Zhang et al. 2023, arXiv 2303.16199, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lorahub_checks.draws import integer, normal
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals


@problem(
    "04.1",
    "a bottleneck adapter",
    hints=(
        "The adapter stands behind a layer. What must come out if both of its matrices are zero?",
        "Down to m, a nonlinearity, up to d again. At the end the input is added.",
        "d = 3, m = 2: down.T leaves 2 numbers, the relu makes the negative ones 0, up.T makes 3 of them. With up at "
        "zero the output is x.",
    ),
    trains=(0,),
)
def bottleneck(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of bottleneck(x, down, up) -> what the next layer sees, (..., d)."""
    for name, (rows, size, middle) in {
        "a narrow middle": (5, 12, 3),
        "a middle as wide as the rest": (5, 7, 7),
        "few numbers": (1, 4, 2),
    }.items():
        x, down, up = normal(generator, 2, rows, size), normal(generator, middle, size), normal(generator, size, middle)
        h = x @ down.T
        added, linear = torch.relu(h) @ up.T, h @ up.T
        right = x + added
        wrong = {
            "the input itself is missing: without it the adapter starts at zero, not at the identity": added,
            "the nonlinearity is missing: this is a LoRA behind the layer, which one matrix could replace": x + linear,
            "the nonlinearity stands behind the second matrix: it belongs in the middle": x + torch.relu(linear),
            "the nonlinearity stands behind the sum: it would cut the model's own stream": torch.relu(right),
            "the input is subtracted: it is added": added - x,
            "a second nonlinearity stands behind the second matrix": x + torch.relu(added),
            "that is another nonlinearity (GELU): take the ReLU": x + torch.nn.functional.gelu(h) @ up.T,
        }
        if middle == size:
            wrong["down and up are exchanged"] = x + torch.relu(x @ up.T) @ down.T
            wrong["a matrix is not transposed: weights are (out, in)"] = x + torch.relu(x @ down) @ up
        yield equals(name, answer(x, down, up), right, misconceptions=wrong)
    zero = torch.zeros_like(up)
    yield equals("with up at zero nothing changes", answer(x, down, zero), x)


def _gated(queries: Tensor, keys: Tensor, values: Tensor, gate: float) -> Tensor:
    weights = torch.softmax(queries @ keys.mT / math.sqrt(queries.shape[-1]), -1)
    return gate * weights @ values


@problem(
    "04.2",
    "what a gated prompt adds",
    hints=(
        "The tokens of the prompt have attention weights of their own. What do these add up to, before the gate?",
        "softmax over the prompt's tokens alone, times the gate, times the values: nothing of the text is in it.",
        "2 heads, T = 3, P = 4: the scores are (2, 3, 4), over the root of the head's size. Each row of their softmax "
        "adds up to 1, whatever the gate is. The gate multiplies what comes out.",
    ),
    trains=(0, 1, 2),
)
def gated_prompt(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of gated_prompt(queries, keys, values, gate) -> what is added to the heads' outputs."""
    for name, (prompt, size) in {"as many tokens as the head is wide": (8, 8), "few numbers": (3, 4)}.items():
        heads, length = (2, 3) if size == 4 else (3, 6)
        queries = normal(generator, heads, length, size)
        keys, values = normal(generator, heads, prompt, size), normal(generator, heads, prompt, size)
        gate = 0.3 + 0.4 * float(torch.rand((), generator=generator))
        scores = queries @ keys.mT
        root = math.sqrt(size)
        by_size, inside = torch.softmax(scores / size, -1), torch.softmax(gate * scores / root, -1)
        over_queries = torch.softmax(scores / root, -2)
        mean = values.mean(-2, keepdim=True).expand(heads, length, size)
        wrong = {
            "the gate is missing": _gated(queries, keys, values, 1.0),
            "the scores are not divided by the root of the head's size": gate * torch.softmax(scores, -1) @ values,
            "the scores are divided by the head's size, not by its root": gate * by_size @ values,
            "the gate stands inside the softmax: at gate 0 that adds the values' mean, not nothing": inside @ values,
            "the softmax runs over the queries: it runs over the prompt's tokens": gate * over_queries @ values,
            "there is no softmax": gate * (scores / root) @ values,
            "the gate is applied twice": _gated(queries, keys, values, gate * gate),
            "keys and values are exchanged": _gated(queries, values, keys, gate),
            "this is the mean of the values, whatever the queries": gate * mean,
        }
        yield equals(
            name, answer(queries, keys, values, gate), _gated(queries, keys, values, gate), misconceptions=wrong
        )
    yield equals("at gate 0 nothing is added", answer(queries, keys, values, 0.0), torch.zeros_like(queries))


def _nearest(width: int, places: int, budget: int) -> int:
    counts = {m: places * (2 * width * m + m + width) for m in range(1, width + 1)}
    return min(counts, key=lambda m: abs(counts[m] - budget))


@problem(
    "04.3",
    "a size for a budget",
    hints=(
        "Count one adapter first: two matrices, and two biases. How many adapters are there?",
        "places · (2·width·m + m + width) = budget: solve for m, then look at the whole numbers next to it.",
        "Width 10, one place, budget 100: 21 m + 10 = 100 gives m = 4.29. 4 trains 94 and 5 trains 115, so 4 is "
        "nearer.",
    ),
)
def size_for(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of size_for(budget, width, places) -> the bottleneck m, a whole number of at least 1."""
    for low in (0.1, 0.6, 0.2, 0.7):  # below and above one half: each way of rounding is wrong somewhere
        width = integer(40, 900, generator)
        places = 2 * integer(2, 40, generator)
        exact = integer(3, 20, generator) + low + 0.2 * float(torch.rand((), generator=generator, dtype=torch.float64))
        budget = round(places * (exact * (2 * width + 1) + width))
        m = (budget / places - width) / (2 * width + 1)
        wrong = {
            "rounded down: the nearest count may lie above the budget": math.floor(m),
            "rounded up, or the biases are missing, which comes to the same here: count them in": math.ceil(m),
            "this is one adapter for the whole model: divide the budget among the places": round(
                (budget - width) / (2 * width + 1)
            ),
            "one of the two matrices is missing": round((budget / places - width) / (width + 1)),
            "a whole number is asked for": m,
        }
        expected = _nearest(width, places, budget)
        yield equals(
            f"width {width}, {places} places, {budget:,} parameters", answer(budget, width, places), expected,
            misconceptions=wrong,
        )  # fmt: skip
    for budget in (7706, 7829, 7789):  # narrow places: here each bias and each parameter counts
        yield equals(f"width 20, 10 places, {budget:,} parameters", answer(budget, 20, 10), _nearest(20, 10, budget))
    yield equals("a budget below the smallest adapter still gives one neuron", answer(10, 64, 8), 1)
    yield equals(
        "SmolLM2's 60 places at LoRA's 460,800 parameters", answer(460_800, 576, 60), _nearest(576, 60, 460_800)
    )
