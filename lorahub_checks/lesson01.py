"""What right answers of lesson 01 must satisfy: counting, the forward pass, the start, merging.

Notation: W (out, in), A (r, in), B (out, r), ΔW = (alpha / r) · B @ A. Source: Hu et al. 2021, arXiv 2106.09685, §4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from lorahub_checks.draws import integer, normal
from lorahub_checks.predictions import number
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds
from lorahub_edu.show import objects
from lorahub_edu.show.objects import there

SCALING_LEFT_OUT = "the scaling alpha / r is left out"
ALPHA_ONLY = "the update is multiplied by alpha, not by alpha / r"
SQUARE_ROOT = "the update is divided by sqrt(r): that is rank-stabilised LoRA, a variant; here it is alpha / r"
RANK_UPSIDE_DOWN = "the scaling is r / alpha, upside down: it is alpha / r"
WRONG_ORDER = "the product is A @ B; the update is B @ A, because B (out, r) maps back to the outputs"
ONLY_THE_UPDATE = "the update is right, but the base weight W is missing"
NO_UPDATE = "only the base weight acts: the update is missing"


def _matrices(inputs: int, outputs: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random W (out, in), A (r, in) and B (out, r) in float64."""
    return normal(generator, outputs, inputs), normal(generator, rank, inputs), normal(generator, outputs, rank)


def _wrong_scalings(delta: Tensor, alpha: float, rank: int) -> dict[str, Tensor]:
    """The update B @ A under each mistaken scaling, by the words that describe the mistake."""
    return {
        SCALING_LEFT_OUT: delta,
        ALPHA_ONLY: alpha * delta,
        SQUARE_ROOT: alpha / math.sqrt(rank) * delta,
        RANK_UPSIDE_DOWN: rank / alpha * delta,
    }


@problem(
    "01.1",
    "count the parameters of an adapter",
    hints=(
        "How many numbers does each of the two thin matrices hold?",
        "A is (r, in) and B is (out, r). A matrix of shape (a, b) holds a * b numbers, and both are trained.",
        "For 100 inputs, 500 outputs and r = 5, A holds 5 * 100 = 500 numbers. Count B in the same way, and add.",
    ),
)
def count_parameters(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of count(in_features, out_features, rank)."""
    inputs, outputs = integer(40, 90, generator), integer(100, 200, generator)
    for name, (i, o, r) in {
        "the source's example: 100 inputs, 500 outputs, rank 5": (100, 500, 5),
        "a freshly drawn layer": (inputs, outputs, integer(3, 9, generator)),
    }.items():
        yield equals(
            name,
            answer(i, o, r),
            r * (i + o),
            misconceptions={
                "this is the full matrix, in * out: LoRA trains A and B instead": i * o,
                "rank times the full matrix: the thin matrices have one long side each": r * i * o,
                "only A is counted: B is trained too": r * i,
                "only B is counted: A is trained too": r * o,
                "the long sides are added up, but each has r numbers beside it: the rank is missing": i + o,
                "the two counts are multiplied, but two matrices lie side by side: add them": (r * i) * (r * o),
                "the full matrix is counted as well, but it is frozen": i * o + r * (i + o),
            },
        )
    doubled = answer(inputs, outputs, 8) == 2 * answer(inputs, outputs, 4)
    yield holds("twice the rank is twice the parameters", doubled, misconception="the count must be linear in the rank")


@problem(
    "01.2",
    "the LoRA forward pass",
    hints=(
        "Two paths lead from x to the output, and their results are added.",
        "The first path is x @ W.T. The second goes through the narrow middle: first A.T, then B.T, times alpha / r.",
        "One row, in = 3, r = 2, out = 4: x meets A.T first and becomes 2 numbers. These meet B.T and become 4. The "
        "factor multiplies these 4, not those of the first path.",
    ),
    trains=(0,),
)
def lora_forward(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of lora_forward(x, W, A, B, alpha)."""
    rank, alpha = integer(3, 6, generator), float(integer(10, 20, generator))
    square = 7  # rank = in = out: here A @ B has a legal shape, so that the mistake shows as a value
    for name, (i, o, r) in {
        "W x + (alpha / r) B A x on freshly drawn matrices": (12, 17, rank),
        "the same where in = out = r, so that no shape error protects you": (square, square, square),
        "few numbers": (4, 3, 2),
    }.items():
        W, A, B = _matrices(i, o, r, generator)
        x = normal(generator, *((2, 5) if i > 4 else (1, 2)), i)  # (rows, tokens, in)
        base, update = x @ W.T, x @ A.T @ B.T  # both (rows, tokens, out)
        wrong = {words: base + u for words, u in _wrong_scalings(update, alpha, r).items()}
        wrong |= {ONLY_THE_UPDATE: alpha / r * update, NO_UPDATE: base}
        if i == o == r:
            wrong[WRONG_ORDER] = base + alpha / r * (x @ (A @ B).T)
            wrong["x meets A and B without the transposes, which applies A @ B"] = x @ W + alpha / r * (x @ A @ B)
            wrong["x @ W uses W as (in, out); torch stores it as (out, in), so it is x @ W.T"] = (
                x @ W + alpha / r * update
            )
        yield equals(name, answer(x, W, A, B, alpha), base + alpha / r * update, misconceptions=wrong)


@problem(
    "01.3",
    "the start: A random, B zero",
    hints=(
        "What must B @ A be at the first step, and which of the two matrices is free to be anything then?",
        "B is zero, so the update is zero. A must not be zero as well, or no gradient would reach either of them.",
        "For in = 3, out = 4, r = 2: A is (2, 3), made empty and filled by nn.init.kaiming_uniform_ with a = √5. B is "
        "(4, 2). Which value do all its 8 entries have?",
    ),
)
def init_lora(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of init_lora(in_features, out_features, rank) -> (A, B)."""
    inputs, outputs, rank = 16 * integer(20, 30, generator), integer(200, 300, generator), integer(8, 12, generator)
    made = answer(inputs, outputs, rank)
    pair = isinstance(made, tuple | list) and len(made) == 2 and all(isinstance(m, Tensor) for m in made)
    yield holds("two tensors come back", pair, type(made).__name__, "return the pair A, B (is the return missing?)")
    if not pair:
        return
    A, B = (m.detach() for m in made)
    shapes, wanted = (tuple(A.shape), tuple(B.shape)), ((rank, inputs), (outputs, rank))
    guess = {
        (wanted[1], wanted[0]): "A and B are swapped: return A first",
        (
            wanted[0][::-1],
            wanted[1][::-1],
        ): "these are the article's transposed shapes; here A is (r, in), B is (out, r)",
    }.get(shapes, "A is (r, in) and B is (out, r)")
    yield holds("A is (r, in) and B is (out, r)", shapes == wanted, f"A {shapes[0]}, B {shapes[1]}", guess)
    if shapes != wanted:
        return
    a_is_zero, b_is_zero = not A.any(), not B.any()
    words = "B is random, so training would not start at the pretrained model"
    if a_is_zero and not b_is_zero:
        words = "A and B changed places: in LoRA A is the random one and B the zero one"
    yield holds("B is exactly zero", b_is_zero, f"largest |B| = {B.abs().max():.3g}", words)
    yield holds(
        "A is not zero",
        not a_is_zero,
        "all zeros",
        "with A and B both zero, the gradient of each is zero as well and nothing is ever learnt",
    )
    if a_is_zero:
        return
    bound, largest = 1 / math.sqrt(inputs), A.abs().max().item()
    words = "A's entries lie beyond the bound 1/sqrt(in) of kaiming_uniform_ with a = sqrt(5)"
    if abs(largest * math.sqrt(rank) - 1) < 0.02:
        words = (
            "the bound is 1/sqrt(r): kaiming_uniform_ reads the fan-in from the second axis, so fill A as (r, in), "
            "not as (in, r) and then transposed"
        )
    elif abs(largest / bound - math.sqrt(6)) < 0.05:
        words = "a = sqrt(5) is missing: the default a = 0 gives a bound sqrt(6) times as wide"
    yield holds("A stays within 1/sqrt(in)", largest <= bound * 1.0001, f"{largest:.3g}, bound {bound:.3g}", words)
    spread = A.std().item() / (bound / math.sqrt(3))
    yield holds(
        "A fills the range evenly",
        0.93 < spread < 1.07 and abs(A.mean().item()) < 0.1 * bound and largest > 0.97 * bound,
        f"standard deviation {A.std().item():.3g}, a uniform draw has {bound / math.sqrt(3):.3g}",
        "A is not uniform between -1/sqrt(in) and 1/sqrt(in)",
    )
    again = answer(inputs, outputs, rank)[0].detach()
    yield holds(
        "a second call draws another A",
        not torch.equal(A, again),
        misconception="a seed is set inside the function: every layer would get the same A",
    )


@problem(
    "01.4",
    "merge an adapter into the weight",
    hints=(
        "W' x must equal what the two paths give together, for every x.",
        "Distribute x: W x + (alpha / r) B A x = (W + (alpha / r) B A) x. The bracket is W'.",
        "W is (4, 3), A (2, 3), B (4, 2): the product of B and A has W's shape. With alpha = 4 it counts twice. A sum "
        "is a new tensor; += writes into the old one.",
    ),
)
def merge(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of merge(W, A, B, alpha) -> W'."""
    rank, alpha = integer(3, 6, generator), float(integer(10, 20, generator))
    square = 7
    for name, (i, o, r) in {
        "W' = W + (alpha / r) B A": (12, 17, rank),
        "the same where in = out = r, so that no shape error protects you": (square, square, square),
        "few numbers": (4, 3, 2),
    }.items():
        W, A, B = _matrices(i, o, r, generator)
        delta = B @ A  # (out, r) @ (r, in) -> (out, in)
        wrong = {words: W + d for words, d in _wrong_scalings(delta, alpha, r).items()}
        wrong |= {
            ONLY_THE_UPDATE: alpha / r * delta,
            NO_UPDATE: W,
            "the update is subtracted: that is how you would unmerge": W - alpha / r * delta,
        }
        if i == o == r:
            wrong[WRONG_ORDER] = W + alpha / r * (A @ B)
        yield equals(name, answer(W, A, B, alpha), W + alpha / r * delta, misconceptions=wrong)


@problem(
    "01.5",
    "the LoRA layer as a module",
    hints=(
        "What must the optimizer see, and what must it not see?",
        "The base is frozen with requires_grad_(False); A and B are nn.Parameter attributes named lora_A and lora_B, "
        "so that module.parameters() finds them. The forward pass adds two paths, as in lora_forward.",
        "An attribute self.lora_A = nn.Parameter(torch.empty(rank, base.in_features)) is found by "
        "module.parameters(). lora_B is made in the same way, of zeros. In forward the shapes go (rows, in), (rows, "
        "r), (rows, out).",
    ),
)
def lora_layer(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of LoRALayer(base, rank, alpha), an nn.Module; its parts are looked at where it lives."""
    inputs, outputs, rank = integer(8, 12, generator), integer(13, 17, generator), integer(2, 4, generator)
    alpha = float(integer(5, 9, generator))
    W, A, B = (matrix.float() for matrix in _matrices(inputs, outputs, rank, generator))  # nn.Linear's own type
    base, bias = there(answer, nn.Linear, inputs, outputs), normal(generator, outputs).float()
    there(answer, objects.assign, base, {"weight": W, "bias": bias})
    layer = answer(base, rank, alpha)
    found = there(answer, objects.parameters, layer)
    trained = {name.rpartition(".")[2]: shape for name, (shape, trains) in found.items() if trains}
    wanted = {"lora_A": (rank, inputs), "lora_B": (outputs, rank)}
    words = "lora_A and lora_B must be nn.Parameter attributes of these shapes: a plain tensor is seen by no optimizer"
    if set(wanted) < set(trained):
        words = "something else is trained too: freeze the base with requires_grad_(False)"
    yield holds("trained are lora_A (r, in) and lora_B (out, r), nothing else", trained == wanted, trained, words)
    if trained != wanted:
        return
    x = torch.randn(2, 5, inputs, generator=generator)  # (rows, tokens, in)
    name_A, name_B = (next(name for name in found if name.endswith(end)) for end in ("lora_A", "lora_B"))
    start = there(answer, objects.state, layer)
    yield holds(
        "B starts at zero and A does not",
        bool(start[name_A].any() and start[name_A].isfinite().all()) and not start[name_B].any(),
        f"largest |A| {start[name_A].abs().max():.3g}, largest |B| {start[name_B].abs().max():.3g}",
        "training must start at the pretrained model, and learn from the first step",
    )
    there(answer, objects.assign, layer, {name_A: A, name_B: B})
    output = x @ W.T + bias
    update = x @ A.T @ B.T
    wrong = {"the base's bias is left out: call the base layer itself": x @ W.T + alpha / rank * update}
    wrong |= {words: output + u for words, u in _wrong_scalings(update, alpha, rank).items()}
    stale = "the update is missing, or it was computed once, when B was still zero"
    wrong |= {ONLY_THE_UPDATE: alpha / rank * update, stale: output}
    right = output + alpha / rank * update
    yield equals(
        "the output is W x + (alpha / r) B A x, for the A and B it has now",
        there(answer, objects.output, layer, x),
        right,
        misconceptions=wrong,
    )
    gradients = there(answer, objects.gradients, layer, x)
    back = (2 * alpha / rank * right).flatten(0, 1)  # of the sum of squares for B A x, (rows, out)
    flat = x.flatten(0, 1)
    cut = "no gradient, or half of one, reaches it: leave out detach(), .data and no_grad() in the forward pass"
    for name, expected in {name_A: B.T @ back.T @ flat, name_B: back.T @ (flat @ A.T)}.items():
        found = equals(f"the gradient of {name} is that of the sum of both paths", gradients[name], expected)
        yield found if found.passed else replace(found, misconception=cut)


@problem(
    "01.6",
    "the break-even rank of a square layer",
    hints=(
        "Write down both counts, the layer's and the adapter's, with the rank as the unknown.",
        "The layer has d * d numbers, the adapter r * (d + d). At which r are the two equal?",
        "For d = 8 the layer has 64 numbers and the adapter 16 for each rank. They are equal at rank 4.",
    ),
)
def break_even_rank(answer: object, _generator: torch.Generator) -> Iterator[Property]:
    """Specification of break_even_rank, a number: where an adapter on a 4096 x 4096 layer is as large as the layer."""
    mistakes = {
        "only one of A and B is counted: together they have r * (in + out) numbers": 4096,
        "this is the root of the side: solve r * (in + out) = in * out for r": 64,
        "this is a usual rank: it has far fewer numbers than the layer": 8,
        "at this rank the adapter has half as many numbers as the layer": 1024,
        "this is the number of weights, not a rank": 4096**2,
    }
    yield from number(answer, "the adapter has as many numbers as the layer", 2048, mistakes)
