"""Checks of lesson 07: the objective of a population, the shift of CMA-ES's mean, the break-even.

Source: Huang et al. 2023, arXiv 2307.13269, section 3.3; Hansen 2016, arXiv 1604.00772, equations 41 and 42.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from lorahub_checks.draws import integer
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals


def _numbers(*shape: int, generator: torch.Generator) -> np.ndarray:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).numpy()


@problem(
    "07.1",
    "the objective of a population",
    hints=(
        "How many numbers must come back, and which part of each comes from that candidate's weights?",
        "The penalty is alpha times the mean of |w| over the N modules: one number a candidate, added to its loss.",
        "Losses 1 and 2, weights (1, -1) and (0, 2), alpha 0.1: both means of |w| are 1, so the objectives are 1.1 "
        "and 2.1.",
    ),
)
def objective(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of objective(losses, weights, alpha) -> (P,)."""
    count, dimension = integer(4, 7, generator), integer(9, 14, generator)
    square = 4  # P = N: here the wrong axis has a legal shape
    for name, (p, n) in {
        "loss plus alpha times the mean of |w|, for every candidate": (count, dimension),
        "the same where there are as many candidates as modules": (square, square),
    }.items():
        losses, w = 2 + np.abs(_numbers(p, generator=generator)), _numbers(p, n, generator=generator)
        alpha = 0.05 * integer(1, 6, generator)
        penalty = alpha * np.abs(w).mean(1)
        one, fifth = alpha * np.abs(w).mean(), losses / 5
        wrong = {
            "the penalty is the sum of |w|, as in the paper's formula; the form used here takes the mean, as the "
            "released code does": losses + alpha * np.abs(w).sum(1),
            "the signs are still there: weights of +1 and -1 must not cancel, take |w|": losses + alpha * w.mean(1),
            "w is squared: that is an L2 penalty, L1 takes |w|": losses + alpha * (w**2).mean(1),
            "alpha is missing": losses + np.abs(w).mean(1),
            "the penalty is subtracted: it must make large weights dearer": losses - penalty,
            "one penalty for the whole population: take the mean over the modules only, axis 1": losses + one,
            "the loss is missing": penalty,
            "the penalty is missing": losses,
            "the loss is divided by five, as in the released code; the form used here leaves that out": fifth + penalty,
        }
        if p == n:
            wrong["the mean runs over the candidates (axis 0); each candidate has a penalty of its own (axis 1)"] = (
                losses + alpha * np.abs(w).mean(0)
            )
        yield equals(name, answer(losses, w, alpha), losses + penalty, misconceptions=wrong)


@problem(
    "07.2",
    "shift the mean",
    hints=(
        "Which candidates count, and in which order do the shares belong to them?",
        "Sort the candidates by their loss, lowest first, and keep as many as there are shares.",
        "Losses 3, 1, 2 and two shares: np.argsort gives 1, 2, 0, so candidates 1 and 2 count, in this order. The new "
        "mean is their weighted sum.",
    ),
)
def recombine(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of recombine(candidates, losses, shares) -> (n,)."""
    for name, (p, n) in {
        "the weighted mean of the better half": (2 * integer(4, 7, generator), integer(3, 6, generator)),
        "another generation, as many weights as shares": (6, 3),
    }.items():
        mu = p // 2
        X, losses = _numbers(p, n, generator=generator), _numbers(p, generator=generator)
        shares = np.log((p + 1) / 2) - np.log(np.arange(1, mu + 1))
        shares /= shares.sum()
        order = np.argsort(losses)
        best = order[:mu]
        whole = np.log(p + 1) - np.log(np.arange(1, p + 1))
        first, turned, ranked = shares @ X[:mu], shares @ X[best[::-1]], shares @ X[np.argsort(order)[:mu]]
        by_loss = shares * losses[best] / (shares * losses[best]).sum() @ X[best]
        wrong = {
            "the candidates are not sorted by their loss: the first ones count instead of the best ones": first,
            "the losses are maximised: the worst candidates count": shares @ X[order[::-1][:mu]],
            "the right candidates, but in the order from bad to good: the best one has the largest share": turned,
            "every one of the better half counts alike: the shares are not used": X[best].mean(0),
            "all candidates are averaged: only the better half counts": X.mean(0),
            "all candidates count, with shares of their own": whole / whole.sum() @ X[order],
            "that is the best candidate alone: a mean of several is steadier": X[order[0]],
            "argsort is used as a rank: order[i] is the i-th best candidate, not the rank of candidate i": ranked,
            "the candidates are weighted by their losses; only the order counts": by_loss,
        }
        yield equals(name, answer(X, losses, shares), shares @ X[best], misconceptions=wrong)
        tied = np.where(losses == losses[order[-1]], losses[order[-2]], losses)
        yield equals("two equal losses among the others change nothing", answer(X, tied, shares), shares @ X[best])
        stretched = answer(X, np.exp(3 * losses) - 5, shares)
        yield equals(
            "only the order of the losses counts: stretching them changes nothing",
            stretched,
            shares @ X[best],
            misconceptions=wrong,
        )


@problem(
    "07.3",
    "the break-even",
    hints=(
        "What is paid once, and what is saved with every query?",
        "Once: evaluations times the tokens that one evaluation reads. A query: the longer prompt minus the shorter.",
        "40 evaluations of 100 tokens cost 4,000 once. Prompts of 150 and 50 tokens save 100 a query: 40 queries.",
    ),
)
def break_even(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of break_even(evaluations, example_tokens, in_context_tokens, zero_shot_tokens)."""
    for name in ("paid once over saved a query", "the same for another task"):
        budget, examples = 10 * integer(3, 12, generator), 10 * integer(5, 7, generator) + integer(1, 9, generator)
        short = integer(12, 30, generator)
        long = short + integer(81, 140, generator)
        paid = budget * examples
        right = paid / (long - short)
        yield equals(
            name,
            answer(budget, examples, long, short),
            right,
            misconceptions={
                "divided by the whole in-context prompt: the question itself is read either way": paid / long,
                "divided by the zero-shot prompt: what is saved is the difference of the two": paid / short,
                "the evaluations are missing: the examples are read once a candidate": examples / (long - short),
                "the tokens of the examples are missing: an evaluation reads them all": budget / (long - short),
                "upside down: that is the part that one query pays back": (long - short) / paid,
                "the longer prompt is taken off the shorter one: a negative number of queries": -right,
                "times five once more: example_tokens is for all the examples together": 5 * right,
                "the two prompts are added: what counts is their difference": budget * examples / (long + short),
            },
        )
    doubled = answer(2 * budget, examples, long, short)
    yield equals("twice the evaluations take twice as long to pay back", doubled, 2 * right)
