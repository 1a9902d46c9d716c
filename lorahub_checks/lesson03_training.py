"""Checks of lesson 03's assignment on training: the loss, accumulation, the learning rate, clipping, AdamW, the loop.

Sources: Raschka 2023 (the LoRA run and its settings); Loshchilov and Hutter 2019, arXiv 1711.05101 (AdamW).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import get_scheduler

from lorahub_checks.draws import integer, normal
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds

IGNORED = -100


@problem(
    "03.10",
    "the loss on the labels",
    hints=(
        "The logits at a token say which token comes next. Which label belongs to them?",
        "logits[:, :-1] are compared with labels[:, 1:]; positions with -100 are left out; the mean goes over all "
        "labels of all rows together.",
        "For T = 4 the logits 0, 1, 2 predict the tokens 1, 2, 3. F.cross_entropy wants (tokens, vocabulary) and "
        "(tokens,), and its ignore_index leaves out what is masked.",
    ),
)
def label_loss(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """label_loss(logits, labels) -> mean loss of the next token in nats, over all labels but -100, not shifted yet."""
    for name, unlabelled in {"rows with different numbers of labels": (0, 5, 7), "one row": (2,)}.items():
        rows, length, vocabulary = len(unlabelled), 9 if len(unlabelled) > 1 else 5, 6 if len(unlabelled) > 1 else 4
        logits = 2 * normal(generator, rows, length, vocabulary)
        labels = torch.randint(0, vocabulary, (rows, length), generator=generator)
        for row, n in zip(labels, unlabelled, strict=True):
            row[:n] = IGNORED
        log_p = logits.log_softmax(-1)
        following = labels[:, 1:]

        def taken(log_p: Tensor, labels: Tensor) -> Tensor:
            """The loss at each position, 0 where there is no label."""
            picked = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            return torch.where(labels == IGNORED, 0.0, -picked)

        losses, count = taken(log_p[:, :-1], following), (following != IGNORED).sum(-1)
        mean = losses.sum() / count.sum()
        unshifted = taken(log_p, labels).sum() / (labels != IGNORED).sum()
        earlier = labels[:, :-1]
        wrong_way = taken(log_p[:, 1:], earlier).sum() / (earlier != IGNORED).sum().clamp(min=1)
        wrong = {
            "the labels are not shifted: the logits at a token predict the next one": unshifted,
            "the shift goes the wrong way: logits[:, :-1] belong to labels[:, 1:]": wrong_way,
            "the sum was divided by all positions: only labels count": losses.sum() / losses.numel(),
            "every row weighs the same: a row with more labels counts for more": (losses.sum(-1) / count).mean(),
            "this is the sum: divide by the number of labels": losses.sum(),
            "-100 is taken for a token: leave those positions out": taken(log_p[:, :-1], following.clamp(min=0)).mean(),
            "this is the perplexity: leave exp away": mean.exp(),
            "the sign is wrong: a loss is positive": -mean,
        }
        yield equals(name, answer(logits, labels), mean, misconceptions=wrong)
    sharp = 50.0 * F.one_hot(labels.roll(-1, 1).clamp(min=0), vocabulary).double()
    yield equals("a model that is sure and right has no loss", answer(sharp, labels), 0.0)


def _gradient(W: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the summed loss for W, in closed form: (softmax - one-hot)^T x over the rows with a label."""
    x, y = x[y != IGNORED], y[y != IGNORED]
    return ((x @ W.T).softmax(-1) - F.one_hot(y, W.shape[0])).T @ x


@problem(
    "03.11",
    "one step from many micro-batches",
    hints=(
        "The step must be the same, however the rows are cut. What must each micro-batch's loss be divided by?",
        "Sum the loss in each micro-batch, divide it by the labels of the *whole* step, and let the gradients add up.",
        "Micro-batches with 3 and 1 labels make a step of 4. The first gives the sum of its three losses over 4, the "
        "second its one loss over 4. torch.autograd.grad(loss, W) gives the gradient of each.",
    ),
)
def step_gradient(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """step_gradient(W, micro_batches) -> gradient of the mean loss over all labels of all micro-batches, (V, d)."""
    vocabulary, width = 5, 4
    W = normal(generator, vocabulary, width)
    batches = []
    for rows, ignored in ((6, 0), (5, 3), (2, 1)):
        y = torch.randint(0, vocabulary, (rows,), generator=generator)
        y[:ignored] = IGNORED
        batches.append((normal(generator, rows, width), y))
    sums = torch.stack([_gradient(W, x, y) for x, y in batches])  # (micro-batches, V, d)
    labels = torch.tensor([(y != IGNORED).sum() for _, y in batches]).double()[:, None, None]
    positions = sum(len(y) for _, y in batches)
    right = sums.sum(0) / labels.sum()
    wrong = {
        "every micro-batch weighs the same: divide each sum by the labels of the whole step": (sums / labels).mean(0),
        "the micro-batches' means are added up and never divided": (sums / labels).sum(0),
        "this is the gradient of the sum: divide by the number of labels": sums.sum(0),
        "only the last micro-batch is left: gradients must add up over all of them": sums[-1] / labels[-1],
        "the last micro-batch is all that is left of the sum": sums[-1] / labels.sum(),
        "divided by all positions: those with -100 take no loss": sums.sum(0) / positions,
        "the gradient points the other way": -right,
        "divided by the micro-batches as well, which is once too often": right / len(batches),
    }
    seen = answer(W, batches)
    yield equals("three micro-batches with 6, 2 and 1 labels", seen, right, misconceptions=wrong)
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    yield equals("the same rows in one batch", answer(W, [(x, y)]), right, misconceptions=wrong)
    ones = [(row[None], label[None]) for row, label in zip(x, y, strict=True) if label != IGNORED]
    yield equals("the same rows one by one", answer(W, ones), right, misconceptions=wrong)


@problem(
    "03.12",
    "warm up, then cool down",
    hints=(
        "Two pieces. Where does the second one begin, and what share of it is done at step s?",
        "Before `warmup` the rate is peak * step / warmup. After it the share done is (step - warmup) / "
        "(total - warmup), and half a cosine wave goes from 1 to 0.",
        "peak 1, warmup 10, total 110: step 5 gives 0.5. Step 60 is halfway down, and cos(π / 2) = 0 makes it 0.5. "
        "Step 110 gives 0.",
    ),
)
def learning_rate(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """learning_rate(step, warmup, total, peak): linear from 0 to the peak, then half a cosine wave down to 0."""
    peak = 1e-4 * integer(1, 9, generator)
    for name, warmup in {"with a warm-up": integer(5, 10, generator), "without a warm-up": 0}.items():
        total = warmup + integer(20, 40, generator)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
        factor = get_scheduler("cosine", optimizer, warmup, total).lr_lambdas[0]
        right = peak * torch.tensor([factor(step) for step in range(total + 1)], dtype=torch.float64)
        seen = [float(answer(step, warmup, total, peak)) for step in range(total + 1)]
        wrong = _wrong_rates(warmup, total, peak)
        steps = torch.tensor(seen, dtype=torch.float64)
        yield equals(f"{name}: steps 0 to {total}", steps, right, misconceptions=wrong)


def _wrong_rates(warmup: int, total: int, peak: float) -> dict[str, Tensor]:
    """The rates of all steps under each mistake, (total + 1,)."""

    def curve(cool: Callable[[float], float], warm: Callable[[int], float], begin: int = warmup) -> Tensor:
        """Up to `warmup` what `warm` gives, then what `cool` gives for the share done since `begin`."""
        rates = [warm(s) if s < warmup else cool((s - begin) / (total - begin)) for s in range(total + 1)]
        return peak * torch.tensor(rates, dtype=torch.float64)

    def rise(step: int) -> float:
        return step / warmup

    def cosine(done: float) -> float:
        return (1 + math.cos(math.pi * done)) / 2

    return {
        "the cosine's share is step / total: it begins when the warm-up ends": curve(cosine, rise, begin=0),
        "there is no warm-up": curve(cosine, lambda s: cosine(s / total), begin=0),
        "the rate falls in a straight line: half a cosine wave is asked for": curve(lambda done: 1 - done, rise),
        "the wave isn't halved: 1 + cos goes from 2 to 0": curve(lambda done: 2 * cosine(done), rise),
        "this is a quarter of a wave: the angle goes up to pi": curve(lambda done: math.cos(math.pi / 2 * done), rise),
        "the rate stays at the peak after the warm-up": curve(lambda done: 1.0, rise),
        "the warm-up is one step ahead: at step 0 the rate is 0": curve(cosine, lambda s: (s + 1) / warmup),
        "the peak is missing: this is the factor in front of it": curve(cosine, rise) / peak,
    }


@problem(
    "03.13",
    "clip the gradient",
    hints=(
        "A gradient is one long vector, however many tensors it is stored in. How long is it?",
        "norm = root of the sum of all squares of all tensors. If it is above the limit, multiply every tensor by "
        "limit / norm; else leave them as they are.",
        "Two gradients, (3) and (4), have the norm 5. At a limit of 1 both are multiplied by 1 / 5; at a limit of 10 "
        "they stay. The norm that is given back is 5 either way.",
    ),
)
def clip(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """clip(gradients, limit) -> (clipped gradients, the norm before), by the norm of all tensors together."""
    gradients = [normal(generator, 3, 4), 3 * normal(generator, 5), 0.1 * normal(generator, 2, 2)]
    whole = torch.cat([g.flatten() for g in gradients])
    norm = float(whole.norm())
    norms = torch.stack([g.norm() for g in gradients])
    for name, limit in {"above the limit": norm * 0.3, "below the limit": norm * 2.5}.items():
        parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        nn.utils.clip_grad_norm_(parameters, limit)
        right = torch.cat([p.grad.flatten() for p in parameters])
        added_up = float(norms.sum())
        by_sum = whole * min(1.0, limit / added_up)
        own = torch.cat([g.flatten() * min(1.0, limit / float(g.norm())) for g in gradients])
        wrong = {
            "every tensor is clipped by its own norm, which turns the gradient: take the norm of all together": own,
            "every number is clamped to the limit, which turns the gradient": whole.clamp(-limit, limit),
            "the gradient is made as long as the limit although it is shorter: leave it then": whole * limit / norm,
            "the gradient is made one long: multiply by limit / norm": whole / norm,
            "nothing is clipped": whole,
            "the norms of the tensors were added up: add their squares and take the root": by_sum,
            "the root is missing: this is clipped by the squared norm": whole * min(1.0, limit / norm**2),
            "the factor is upside down: limit / norm shortens": whole * max(1.0, norm / limit),
        }
        seen = answer(gradients, limit)
        pair = isinstance(seen, list | tuple) and len(seen) == 2 and isinstance(seen[0], list | tuple)
        shapes = pair and [tuple(g.shape) for g in seen[0]] == [tuple(g.shape) for g in gradients]
        words = "return the list of clipped gradients, in their shapes and order, and the norm"
        yield holds(f"{name}: a list of gradients and a number", shapes, type(seen).__name__, words)
        if not shapes:
            return
        flat = torch.cat([g.flatten() for g in seen[0]])
        yield equals(f"{name}: the gradients", flat, right, misconceptions=wrong)
        lengths = {
            "the root is missing": norm**2,
            "the norms were added up": added_up,
            "this is the norm after clipping: give the one before": min(norm, limit),
            "this is the largest number": float(whole.abs().max()),
        }
        yield equals(f"{name}: the norm before", seen[1], norm, misconceptions=lengths)
