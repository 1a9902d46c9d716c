"""What right answers of lesson 09 must satisfy: forgetting in nats a token, weaker intruders, the control.

Source: Shuttleworth et al., arXiv 2410.21228, the sections on forgetting (figure 9) and, in version 3, on scaling
intruder dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from lorahub_checks.draws import between, few_numbers, normal
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals

OFTEN = 400  # draws after which it is no accident that a mistake gives the right value


def _forgetting_mistakes(before: list[Tensor], after: list[Tensor]) -> dict[str, Tensor | float]:
    """What plausible mistakes give for forgetting."""
    rise, texts = torch.cat(after) - torch.cat(before), len(before)
    of_texts = torch.stack([b.mean() - a.mean() for a, b in zip(before, after, strict=True)])
    first, last = torch.cat(before).mean(), torch.cat(after).mean()
    return {
        "that is the mean of the texts' means: a token of a short text then counts more than one of a long one; take "
        "one mean over all tokens": of_texts.mean(),
        "the sign is turned: forgetting is positive when the loss has risen": -rise.mean(),
        "that is the difference of two perplexities: the question was about losses, in nats": last.exp() - first.exp(),
        "that is the ratio of the two perplexities: its logarithm is the difference in nats": (last - first).exp(),
        "that is relative to the loss before: forgetting here is a difference in nats": (last - first) / first,
        "that is the loss after fine-tuning alone: take the loss before off": last,
        "that is the sum over the tokens: divide by their number": rise.sum(),
        "divided by the number of texts: divide by the number of tokens": rise.sum() / texts,
        "the texts' means are summed: take one mean over all tokens": of_texts.sum(),
        "that is in bits: the losses are in nats, leave them so": (last - first) / math.log(2),
        "absolute differences were taken: a token that has become easier counts against forgetting": rise.abs().mean(),
        "only tokens that have become harder are counted": rise.clamp(min=0).mean(),
        "only the first text is looked at": of_texts[0],
        "that is the median: every token counts, also the few that have become much harder": rise.median(),
    }


@problem(
    "09.1",
    "forgetting of plain text",
    hints=(
        "Two texts of 10 and 100 tokens: how much should each count?",
        "Every token counts alike: put the losses of all texts in one row before you take a mean.",
        "Before: a text with the losses 1, 1, 1 and one with 3. The mean over tokens is 1.5; the mean of the means, "
        "2, would be wrong.",
    ),
)
def forgetting(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of forgetting(before, after) -> number, from lists of a tensor (tokens,) a text."""
    for name, texts in {"six texts of different lengths": 6, "two texts": 2}.items():
        before, after = _texts(texts, generator)
        tokens = [len(tensor) for tensor in before]
        means = [[float(tensor.mean()) for tensor in tensors] for tensors in (before, after)]
        expected = np.average(means[1], weights=tokens) - np.average(means[0], weights=tokens)
        seen = answer(before, after)
        yield equals(name, seen, expected, misconceptions=_forgetting_mistakes(before, after))
    moved = [[tensor + 0.7 for tensor in tensors] for tensors in (before, after)]
    yield equals(
        "the same amount on every loss, before and after, changes nothing",
        answer(*moved),
        expected,
        misconceptions=_forgetting_mistakes(*moved),
    )
    yield equals("a model that has become better has forgotten less than nothing", answer(after, before), -expected)
    same = answer(before, [tensor.clone() for tensor in before])
    yield equals("a model that has not changed has forgotten nothing", same, 0.0)


def _texts(count: int, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Losses of each text's tokens: short texts are hit harder, and some tokens become easier."""
    lengths = [3, 12, *torch.randint(2, 12, (count - 2,), generator=generator).tolist()]

    def random(length: int) -> Tensor:
        return torch.rand(length, generator=generator, dtype=torch.float64)

    before = [1 + 2 * random(length) for length in lengths]
    return before, [text + 0.9 / len(text) + 0.6 * random(len(text)).square() - 0.1 for text in before]


def _tuned(rows: int, columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A matrix W0 with a falling spectrum, and a W that differs from it in every way that matters here.

    Two strong new directions (one of them only on the left side), a weak new one, W0's weakest one made strong, noise.
    """

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    p = min(rows, columns)
    whole, right = torch.linalg.qr(random(rows, rows)).Q, torch.linalg.qr(random(columns, columns)).Q[:, :p]
    left, outside = whole[:, :p], whole[:, p:]  # a full SVD of a tall W0 has vectors outside of its span
    values = torch.cat([torch.tensor([14.0, 12.0]), torch.linspace(5, 1, p - 2)]).double()
    base = (left * values) @ right.T
    new_left = torch.linalg.qr(torch.cat([outside[:, :1], random(rows, 3)], 1)).Q[:, :3]
    new_right = torch.cat([torch.linalg.qr(random(columns, 2)).Q, right[:, -2:-1]], 1)
    new = (new_left * torch.tensor([9.0 if rows < columns else 16.0, 3.5, 7.0], dtype=torch.float64)) @ new_right.T
    return base, base + new + 8 * torch.outer(left[:, -1], right[:, -1]) + 0.05 * random(rows, columns)


def _other_choices(W0: Tensor, W: Tensor, k: int, epsilon: float) -> dict[str, Tensor]:
    """Which singular vectors plausible mistakes take for intruders, as masks (p,)."""
    (U0, _, V0), (U, _, V) = (torch.linalg.svd(matrix, full_matrices=False) for matrix in (W0, W))
    signed = U.T @ U0
    cosines = signed.abs()
    best, strong = cosines.max(1).values, torch.arange(len(cosines)) < k
    signs, of_V = signed.max(1).values, (V @ V0.T).abs().max(1).values
    diagonal, weak = cosines.diagonal(), cosines[:, :k].max(1).values
    found = {
        "the sign of the cosine was kept: u and −u are the same direction, so take the absolute value first": signs,
        "each vector is compared with the one of the same number only: it may have moved to another place": diagonal,
        "only the k strongest pretrained vectors are looked at: a vector that was weak before counts as known": weak,
        "the right singular vectors (V) were compared: the definition takes the left ones (U)": of_V,
    }
    return {
        "all of the k strongest are scaled: only those of them that resemble no pretrained vector": strong,
        "the vectors that are like a pretrained one are scaled: an intruder is like none": (best >= epsilon) & strong,
        "every intruder of the matrix is scaled: only those among the k strongest count": best < epsilon,
    } | {words: (cosine < epsilon) & strong for words, cosine in found.items()}


def _telling(rows: int, columns: int, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float, Tensor]:
    """W0, W and ε at which every wrong choice of vectors shows, and the right choice, (p,)."""
    for _ in range(OFTEN):
        epsilon = between(0.6, 0.75, generator)
        W0, W = _tuned(rows, columns, generator)
        U0, (U, values, _) = torch.linalg.svd(W0).U[:, : min(W0.shape)], torch.linalg.svd(W, full_matrices=False)
        best = (U.T @ U0).abs().max(1).values
        found = (best < epsilon) & (torch.arange(len(best)) < k)
        choices = (found, torch.zeros_like(found), *_other_choices(W0, W, k, epsilon).values())
        clear = (best - epsilon).abs().min() > 3e-3 and values[k - 1] - values[k] > 0.02
        if clear and len({tuple(mask.tolist()) for mask in choices}) == len(choices):
            break
    return W0, W, epsilon, found


def _scaling_mistakes(W0: Tensor, W: Tensor, k: int, epsilon: float, factor: float) -> dict[str, Tensor]:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    strong = torch.arange(len(S)) < k
    found = ((U.T @ torch.linalg.svd(W0, full_matrices=False).U).abs().max(1).values < epsilon) & strong
    update, share, part = W - W0, 1 - factor, (U * S * found) @ Vh
    whole, squared, kept = W0 + factor * update, W - (1 - factor**2) * part, factor * part
    added, strongest = W - share * (U * found) @ (U.T @ update), (U * S * strong) @ Vh - share * part
    others = {words: W - share * (U * S * chosen) @ Vh for words, chosen in _other_choices(W0, W, k, epsilon).items()}
    return others | {
        "the whole update is scaled, W0 + factor · (W − W0): that is the control, not the intruders": whole,
        "the factor counts squared: scale the singular value, or one of its two vectors, but not both": squared,
        "the intruders are removed: they keep the factor of their singular values": W - part,
        "the factor is taken off: what is left has to be factor, so take off 1 − factor": W - factor * part,
        "the intruders are stronger than before: their values have to be multiplied by the factor": W + share * part,
        "only what the update adds along the intruders is scaled: their whole singular value has to be": added,
        "that is the part which is left of the intruders: the other singular values belong to the matrix, too": kept,
        "only the k strongest singular values are left: the others belong to the matrix, too": strongest,
        "nothing is scaled": W,
        "that is the change, without W0": W - share * part - W0,
    }


@problem(
    "09.2",
    "weaker intruders",
    hints=(
        "Which singular values change, and which stay? Everything else about W stays.",
        "Find the intruders as in lesson 08. A part σuvᵀ that should count factor instead of 1 is lessened by "
        "(1 − factor) σuvᵀ.",
        "k = 2, cosines 0.9 and 0.3, ε = 0.5, factor 0: the second singular value becomes 0. The first stays, and all "
        "beyond k stay.",
    ),
)
def scale_intruders(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of scale_intruders(W0, W, k, epsilon, factor) -> (out, in)."""
    k = 7
    for name, (rows, columns) in {"a wide matrix": (22, 30), "a tall matrix": (22, 21)}.items():
        W0, W, epsilon, found = _telling(rows, columns, k, generator)
        factor = between(0.15, 0.4, generator)
        U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
        expected = torch.from_numpy((U * np.where(found.numpy(), factor * S, S)) @ Vh)
        seen = answer(W0, W, k, epsilon, factor)
        yield equals(name, seen, expected, misconceptions=_scaling_mistakes(W0, W, k, epsilon, factor))
    yield equals("factor 1 changes nothing", answer(W0, W, k, epsilon, 1.0), W)
    base, tuned = few_numbers(generator)
    weaker = tuned.clone()
    weaker[:, 0] *= 0.25  # the first direction alone: the third is an intruder, too, but not among the two strongest
    mistakes = _scaling_mistakes(base, tuned, 2, 0.8, 0.25)
    yield equals("few numbers", answer(base, tuned, 2, 0.8, 0.25), weaker, misconceptions=mistakes)
    yield equals("a matrix without intruders stays as it is", answer(W0, W0.clone(), k, epsilon, 0.3), W0)


@problem(
    "09.3",
    "the control: shrink the whole update",
    hints=(
        "Which matrix should come out for factor 0, and which for factor 1?",
        "The tuned matrix is the pretrained one plus an update. Only the update is multiplied.",
        "W₀ = 1, W = 3: the update is 2. With the factor 0.5 the result is 2, not 1.5.",
    ),
)
def shrink_update(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of shrink_update(W0, W, factor) -> (out, in)."""
    W0, update = normal(generator, 4, 5), normal(generator, 4, 5)
    W, factor = W0 + update, between(0.15, 0.4, generator)
    seen, mixed = answer(W0, W, factor), (1 - factor) * W0 + factor * update
    yield equals(
        "the update multiplied, the rest as it was",
        seen,
        torch.lerp(W0, W, factor),
        misconceptions={
            "the whole matrix is multiplied: that shrinks the pretrained weights, too": factor * W,
            "the tuned matrix is added: the update is W − W0": W0 + factor * W,
            "that is the update alone: it belongs on top of W0": factor * update,
            "1 − factor of the update is left: factor of it should be": W0 + (1 - factor) * update,
            "the factor counts squared": W0 + factor**2 * update,
            "divided by the factor: that makes the update larger": W0 + update / factor,
            "W0 counts only in part, so that less of both is left: only the update is multiplied": mixed,
            "nothing is scaled": W,
            "the update has the wrong sign: W is W0 plus the update": W0 - factor * update,
            "added on top of W: the update is counted once too often": W + factor * update,
        },
    )
    yield equals("factor 0 gives the pretrained matrix", answer(W0, W, 0.0), W0)
    yield equals("factor 1 gives the tuned matrix", answer(W0, W, 1.0), W)
