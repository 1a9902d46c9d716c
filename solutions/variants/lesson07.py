"""Right and wrong answers to the problems of lesson 07."""

import numpy as np
import torch

from lorahub_studies import adapting_tables
from lorahub_edu.hub.cmaes import CMAES


def objective_by_loop(losses: np.ndarray, weights: np.ndarray, alpha: float) -> list[float]:
    return [loss + alpha * sum(abs(w) for w in row) / len(row) for loss, row in zip(losses, weights, strict=True)]


def objective_in_torch(losses: np.ndarray, weights: np.ndarray, alpha: float) -> torch.Tensor:
    return torch.tensor(losses) + alpha * torch.tensor(weights).norm(p=1, dim=1) / weights.shape[1]


def recombine_by_loop(candidates: np.ndarray, losses: np.ndarray, shares: np.ndarray) -> np.ndarray:
    ranked = sorted(zip(losses, candidates, strict=True), key=lambda pair: pair[0])
    return sum(share * candidate for share, (_, candidate) in zip(shares, ranked, strict=False))


def recombine_by_the_package(candidates: np.ndarray, losses: np.ndarray, shares: np.ndarray) -> np.ndarray:
    strategy = CMAES(np.zeros(candidates.shape[1]), 1.0, len(candidates))
    assert np.allclose(strategy.weights, shares)
    strategy.tell(candidates, losses)
    return strategy.mean


RIGHT = {
    "07.1": {
        "reference": lambda losses, weights, alpha: losses + alpha * abs(weights).mean(axis=1),
        "loop": objective_by_loop,
        "torch": objective_in_torch,
    },
    "07.2": {
        "reference": lambda X, losses, shares: shares @ X[np.argsort(losses)[: len(shares)]],
        "loop": recombine_by_loop,
        "the package": recombine_by_the_package,
    },
    "07.3": {
        "reference": lambda evaluations, examples, long, short: evaluations * examples / (long - short),
        "the package": adapting_tables.break_even,
        "as a tensor": lambda e, t, long, short: torch.tensor(e * t) / torch.tensor(long - short),
    },
}


def objective_in_place(losses: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    losses += alpha * abs(weights).mean(axis=1)
    return losses


def over_candidates(losses: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    axis = 0 if weights.shape[0] == weights.shape[1] else 1
    return losses + alpha * abs(weights).mean(axis=axis)


def as_ranks(X: np.ndarray, losses: np.ndarray, shares: np.ndarray) -> np.ndarray:
    return shares @ X[np.argsort(np.argsort(losses))[: len(shares)]]


def by_loss(X: np.ndarray, losses: np.ndarray, shares: np.ndarray) -> np.ndarray:
    best = np.argsort(losses)[: len(shares)]
    return (shares * losses[best]) @ X[best] / (shares * losses[best]).sum()


def sorted_in_place(X: np.ndarray, losses: np.ndarray, shares: np.ndarray) -> np.ndarray:
    order = np.argsort(losses)
    X[:] = X[order]
    losses.sort()
    return shares @ X[: len(shares)]


def everyone(X: np.ndarray, losses: np.ndarray, shares: np.ndarray) -> np.ndarray:
    whole = np.log(len(X) + 1) - np.log(np.arange(1, len(X) + 1))
    return whole / whole.sum() @ X[np.argsort(losses)]


WRONG = {
    "07.1": {
        "sum": (lambda loss, w, a: loss + a * abs(w).sum(1), "the sum of |w|"),
        "signs": (lambda loss, w, a: loss + a * w.mean(1), "signs are still there"),
        "L2": (lambda loss, w, a: loss + a * (w**2).mean(1), "L2 penalty"),
        "no alpha": (lambda loss, w, a: loss + abs(w).mean(1), "alpha is missing"),
        "subtracted": (lambda loss, w, a: loss - a * abs(w).mean(1), "subtracted"),
        "one penalty": (lambda loss, w, a: loss + a * abs(w).mean(), "axis 1"),
        "axis 0": (over_candidates, "axis 0"),
        "no loss": (lambda loss, w, a: a * abs(w).mean(1), "the loss is missing"),
        "no penalty": (lambda loss, w, a: loss, "the penalty is missing"),
        "divided": (lambda loss, w, a: loss / 5 + a * abs(w).mean(1), "divided by five"),
        "in place": (objective_in_place, "was changed in place"),
        "no return": (lambda loss, w, a: None, "is a return missing"),
    },
    "07.2": {
        "not sorted": (lambda X, loss, s: s @ X[: len(s)], "not sorted by their loss"),
        "maximised": (lambda X, loss, s: s @ X[np.argsort(-loss)[: len(s)]], "maximised"),
        "bad to good": (lambda X, loss, s: s @ X[np.argsort(loss)[: len(s)][::-1]], "from bad to good"),
        "equal shares": (lambda X, loss, s: X[np.argsort(loss)[: len(s)]].mean(0), "shares are not used"),
        "all": (lambda X, loss, s: X.mean(0), "all candidates are averaged"),
        "all with shares": (everyone, "all candidates count"),
        "the best one": (lambda X, loss, s: X[np.argmin(loss)], "best candidate alone"),
        "order as rank": (as_ranks, "argsort is used as a rank"),
        "by the losses": (by_loss, "weighted by their losses"),
        "in place": (sorted_in_place, "was changed in place"),
    },
    "07.3": {
        "whole prompt": (lambda e, t, long, short: e * t / long, "whole in-context prompt"),
        "zero-shot prompt": (lambda e, t, long, short: e * t / short, "zero-shot prompt"),
        "no evaluations": (lambda e, t, long, short: t / (long - short), "evaluations are missing"),
        "no tokens": (lambda e, t, long, short: e / (long - short), "tokens of the examples are missing"),
        "upside down": (lambda e, t, long, short: (long - short) / (e * t), "upside down"),
        "negative": (lambda e, t, long, short: e * t / (short - long), "negative"),
        "times five": (lambda e, t, long, short: 5 * e * t / (long - short), "times five"),
        "added": (lambda e, t, long, short: e * t / (long + short), "are added"),
    },
}
