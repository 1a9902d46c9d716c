"""Checks of lesson 03's assignment on training, second part: one step of AdamW, the loop, and how many steps there are.

Sources: Loshchilov and Hutter 2019, arXiv 1711.05101; Raschka 2023 (settings of the LoRA run).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorahub_checks.draws import integer, normal
from lorahub_checks.predictions import number
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds
from lorahub_edu.show import objects
from lorahub_edu.show.objects import there


@problem(
    "03.14",
    "a step of AdamW",
    hints=(
        "Two running averages, of the gradient and of its square, both too small at first. And the decay: on what?",
        "m = b1 m + (1 - b1) g and v = b2 v + (1 - b2) g². Divide them by 1 - b1**t and 1 - b2**t. The decay shrinks "
        "the parameter itself by lr * decay; it never enters m or v.",
        "t = 1, g = 2, betas 0.9 and 0.99, m and v at zero: m = 0.2, v = 0.04. Divided by 0.1 and 0.01 they are 2 and "
        "4, so p moves by lr * 2 / (√4 + eps), after the decay has shrunk it.",
    ),
    in_place=True,  # as an optimizer does
)
def adamw_step(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """adamw_step(p, g, m, v, t, lr, betas, eps, decay) -> (p, m, v) after step t, which counts from 1."""
    lr, eps, decay, (b1, b2) = 0.05, 0.02, 0.3, (0.8, 0.95)  # far apart, so that each mistake shows
    for name, t in {"the first step": 1, "a later step": integer(3, 6, generator)}.items():
        p, g = normal(generator, 3, 4), normal(generator, 3, 4)
        m, v = (torch.zeros_like(p),) * 2 if t == 1 else (0.3 * normal(generator, 3, 4), normal(generator, 3, 4) ** 2)
        parameter = nn.Parameter(p.clone())
        optimizer = torch.optim.AdamW([parameter], lr, (b1, b2), eps, decay, foreach=False)
        averages = {"exp_avg": m.clone(), "exp_avg_sq": v.clone()}
        optimizer.state[parameter] = {"step": torch.tensor(float(t - 1))} | averages
        parameter.grad = g.clone()
        optimizer.step()
        right = (parameter.detach(), averages["exp_avg"], averages["exp_avg_sq"])
        wrong = _wrong_steps(p, g, m, v, t, lr, (b1, b2), eps, decay)
        seen = answer(p, g, m, v, t, lr, (b1, b2), eps, decay)
        three = isinstance(seen, list | tuple) and len(seen) == 3
        yield holds(f"{name}: three tensors", three, type(seen).__name__, "return p, m and v: the next step needs all")
        if not three:
            return
        squares = {"v is the average of g², not of g": b2 * v + (1 - b2) * g, "v was left out": v}
        means = {"m is the average of g with weight 1 - b1": m + g, "m was left out": m}
        with_l2, corrected = b1 * m + (1 - b1) * (g + decay * p), right[1] / (1 - b1**t)
        both = {
            "the decay was added to the gradient: that is Adam with L2, here it shrinks the parameter itself": with_l2,
            "m comes back divided by 1 - b1**t: keep it as it is, and divide only where it is used": corrected,
            "b1 and b2 are exchanged": b2 * m + (1 - b2) * g,
        }
        yield equals(f"{name}: m", seen[1], right[1], misconceptions=both | means)
        yield equals(f"{name}: v", seen[2], right[2], misconceptions=squares)
        yield equals(f"{name}: the parameter", seen[0], right[0], misconceptions=wrong)


def _wrong_steps(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, betas: tuple[float, float], eps: float, decay: float
) -> dict[str, Tensor]:
    b1, b2 = betas
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    mean, square = m / (1 - b1**t), v / (1 - b2**t)
    shrunk = p * (1 - lr * decay)
    wrong = {
        "the averages are not corrected: divide m by 1 - b1**t and v by 1 - b2**t": shrunk - lr * m / (v.sqrt() + eps),
        "the decay is missing": p - lr * mean / (square.sqrt() + eps),
        "the decay isn't multiplied by the learning rate": p * (1 - decay) - lr * mean / (square.sqrt() + eps),
        "eps stands inside the root: it is added to the root": shrunk - lr * mean / (square + eps).sqrt(),
        "the root is missing: divide by the root of v": shrunk - lr * mean / (square + eps),
        "the step goes uphill: subtract it": shrunk + lr * mean / (square.sqrt() + eps),
        "the learning rate is missing": shrunk - mean / (square.sqrt() + eps),
        "the gradient itself is used instead of its average": shrunk - lr * g / (square.sqrt() + eps),
    }
    if t > 1:  # at the first step this would divide by zero
        early = (m / (1 - b1 ** (t - 1)), v / (1 - b2 ** (t - 1)))
        wrong["steps count from 0 in the correction: the first is t = 1"] = shrunk - lr * early[0] / (
            early[1].sqrt() + eps
        )
    return wrong


@problem(
    "03.15",
    "the loop",
    hints=(
        "Four lines for each batch: which of them forgets what the last batch left behind?",
        "loss, backward, step, and gradients back to nothing: backward adds to what is there. Note the loss before "
        "the step. What requires no gradient must stay.",
        "One turn of the loop: the loss F.mse_loss of model(x) and y, its item() into the list, gradients to nothing, "
        "backward, step. The optimizer gets the parameters that require a gradient, and no others.",
    ),
)
def train(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """train(model, batches, lr) -> the losses; plain gradient descent on the mean squared error, in place."""
    lr = 0.05 * integer(2, 4, generator)
    sizes = ((3, 4), (4, 2))
    weights = {}
    for i, (n, k) in enumerate(sizes):
        weights |= {f"{i}.weight": normal(generator, k, n), f"{i}.bias": normal(generator, k)}
    batches = [(normal(generator, 5, 3), normal(generator, 5, 2)) for _ in range(4)]
    layers = [there(answer, nn.Linear, n, k, dtype=torch.float64) for n, k in sizes]
    there(answer, nn.Module.requires_grad_, layers[0], False)
    model = there(answer, nn.Sequential, *layers)
    there(answer, objects.assign, model, weights)
    losses = answer(model, batches, lr)
    after = there(answer, objects.state, model)
    right = _descend(weights, batches, lr)
    listed = isinstance(losses, list | tuple) and len(losses) == len(batches)
    words = "return a list with one loss for each batch"
    yield holds("one loss for each batch", listed, losses, words)
    if not listed:
        return
    frozen = all(torch.equal(after[name], weights[name]) for name in weights if name.startswith("0."))
    words = "what requires no gradient was changed: hand only the others to the optimizer"
    yield holds("the frozen layer stays", frozen, misconception=words)
    others = {
        "nothing was learnt: is there a step after backward?": _descend(weights, batches, 0.0),
        "gradients of earlier batches were never taken away: zero_grad before each backward": _descend(
            weights, batches, lr, forget=False
        ),
        "the step goes uphill": _descend(weights, batches, -lr),
        "this is the loss after the step: note the one before": _descend(weights, batches, lr, late=True),
        "the squares were summed, not averaged": _descend(weights, batches, lr, reduction="sum"),
        "the learning rate is not the given one": _descend(weights, batches, 0.01),
    }
    seen = torch.tensor([float(loss) for loss in losses], dtype=torch.float64)
    guesses = {words: wrong[0] for words, wrong in others.items()}
    yield equals("the losses, each before its step", seen, right[0], misconceptions=guesses)
    trained = torch.cat([after["1.weight"].flatten(), after["1.bias"]])
    guesses = {words: wrong[1] for words, wrong in others.items() if not wrong[1].equal(right[1])}
    yield equals("the trained layer afterwards", trained, right[1], misconceptions=guesses)
    model = there(answer, nn.Sequential, there(answer, nn.Linear, 3, 2, dtype=torch.float64))
    alone = {"0.weight": normal(generator, 2, 3), "0.bias": normal(generator, 2)}
    there(answer, objects.assign, model, alone)
    answer(model, batches, lr)
    after = torch.cat([tensor.flatten() for tensor in there(answer, objects.state, model).values()])
    behind = {"0.weight": torch.eye(3).double(), "0.bias": torch.zeros(3), "1.weight": alone["0.weight"]}
    right = _descend(behind | {"1.bias": alone["0.bias"]}, batches, lr)
    yield equals("a model whose first layer trains", after, right[1])


def _descend(
    weights: dict[str, Tensor],
    batches: list,
    lr: float,
    forget: bool = True,
    late: bool = False,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Losses and the last layer's numbers after gradient descent with gradients in closed form."""
    W, b = weights["1.weight"].clone(), weights["1.bias"].clone()
    step_W, step_b = torch.zeros_like(W), torch.zeros_like(b)
    losses = []
    for x, y in batches:
        h = x @ weights["0.weight"].T + weights["0.bias"]
        error = h @ W.T + b - y
        factor = 2 / error.numel() if reduction == "mean" else 2.0
        losses.append(F.mse_loss(h @ W.T + b, y, reduction=reduction))
        keep = 0.0 if forget else 1.0
        step_W, step_b = keep * step_W + factor * error.T @ h, keep * step_b + factor * error.sum(0)
        W, b = W - lr * step_W, b - lr * step_b
        if late:
            losses[-1] = F.mse_loss(h @ W.T + b, y, reduction=reduction)
    return torch.stack(losses), torch.cat([W.flatten(), b])


@problem(
    "03.16",
    "how many steps a run has",
    hints=(
        "One step of the optimizer uses one whole batch. How many micro-batches is that?",
        "A batch of 128 rows is 128 / 4 = 32 micro-batches, and after each 32 of them the optimizer takes one step.",
        "With batches of 64 rows it would be 62,400 / 16 = 3,900.",
    ),
)
def steps_of(answer: object, _generator: torch.Generator) -> Iterator[Property]:
    """Specification of optimizer_steps, a number: 62,400 micro-batches of 4 rows in batches of 128."""
    mistakes = {
        "each micro-batch is taken for a step: gradients add up until the batch is whole": 62_400,
        "divided by the rows of a micro-batch: divide by the number of micro-batches in a batch": 15_600,
        "divided by the rows of a batch, but these are micro-batches: a batch has 32 of them": 487.5,
        "multiplied, but many micro-batches make one step": 62_400 * 32,
        "this is the number of micro-batches in one batch": 32,
    }
    yield from number(answer, "one step for each whole batch", 1950, mistakes)
