"""Right and wrong answers to the problems of lesson 09."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lorahub_edu.spectra import measures


def by_weights(before: list[Tensor], after: list[Tensor]) -> float:
    rises = [float((b - a).mean()) for a, b in zip(before, after, strict=True)]
    return float(np.average(rises, weights=[len(text) for text in before]))


def by_loop(before: list[Tensor], after: list[Tensor]) -> float:
    total = sum(float(loss) for text in after for loss in text) - sum(float(loss) for text in before for loss in text)
    return total / sum(len(text) for text in before)


def in_one_row(before: list[Tensor], after: list[Tensor]) -> Tensor:
    return torch.cat(after).mean() - torch.cat(before).mean()


def rise(before: list[Tensor], after: list[Tensor]) -> Tensor:
    return torch.cat(after) - torch.cat(before)


def of_texts(before: list[Tensor], after: list[Tensor]) -> Tensor:
    return torch.stack([b.mean() - a.mean() for a, b in zip(before, after, strict=True)])


def in_place_rise(before: list[Tensor], after: list[Tensor]) -> float:
    for first, last in zip(before, after, strict=True):
        last -= first
    return float(torch.cat(after).mean())


def perplexities(before: list[Tensor], after: list[Tensor]) -> Tensor:
    return torch.cat(after).mean().exp() - torch.cat(before).mean().exp()


def relative(before: list[Tensor], after: list[Tensor]) -> Tensor:
    return torch.cat(after).mean() / torch.cat(before).mean() - 1


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(matrix, full_matrices=False)


def cosines(W0: Tensor, W: Tensor) -> Tensor:
    return svd(W)[0].T @ svd(W0)[0]


def weakened(W: Tensor, chosen: Tensor, factor: float) -> Tensor:
    U, S, Vh = svd(W)
    return (U * torch.where(chosen, factor * S, S)) @ Vh


def among(count: int, k: int) -> Tensor:
    return torch.arange(count) < k


def unlike(picture: Tensor, k: int, epsilon: float) -> Tensor:
    return (picture.max(1).values < epsilon) & among(len(picture), k)


def scaled_values(W0: Tensor, W: Tensor, k: int, epsilon: float, factor: float) -> Tensor:
    return weakened(W, unlike(cosines(W0, W).abs(), k, epsilon), factor)


def taken_off_in_a_loop(W0: Tensor, W: Tensor, k: int, epsilon: float, factor: float) -> np.ndarray:
    U0 = np.linalg.svd(W0.numpy(), full_matrices=False)[0]
    U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    changed = W.numpy().copy()
    for i in range(k):
        if max(abs(U[:, i] @ U0)) < epsilon:
            changed -= (1 - factor) * S[i] * np.outer(U[:, i], Vh[i])
    return changed


def by_projection(W0: Tensor, W: Tensor, k: int, epsilon: float, factor: float) -> Tensor:
    intruders = svd(W)[0][:, :k][:, measures.largest_cosines(W0, W, k) < epsilon]
    return (W - (1 - factor) * intruders @ (intruders.T @ W)).float()


def scaled_vectors(W0: Tensor, W: Tensor, k: int, epsilon: float, factor: float) -> Tensor:
    U, S, Vh = svd(W)
    chosen = unlike(cosines(W0, W).abs(), k, epsilon)
    sizes = torch.where(chosen, factor, 1.0)
    return (U * sizes * S) @ (sizes[:, None] * Vh)


def scaled_in_place(W0: Tensor, W: Tensor, k: int, epsilon: float, factor: float) -> Tensor:
    W.copy_(scaled_values(W0, W, k, epsilon, factor))
    return W


def in_the_update_only(W0: Tensor, W: Tensor, k: int, epsilon: float, factor: float) -> Tensor:
    vectors = svd(W)[0][:, unlike(cosines(W0, W).abs(), k, epsilon)]
    return W - (1 - factor) * vectors @ (vectors.T @ (W - W0))


def by_right_vectors(W0: Tensor, W: Tensor, k: int, epsilon: float, factor: float) -> Tensor:
    return weakened(W, unlike(cosines(W0.T, W.T).abs(), k, epsilon), factor)


def cut_to_k(W0: Tensor, W: Tensor, k: int, epsilon: float, factor: float) -> Tensor:
    U, S, Vh = svd(scaled_values(W0, W, k, epsilon, factor))
    U, S, Vh = svd(W)
    S = torch.where(unlike(cosines(W0, W).abs(), k, epsilon), factor * S, S)
    return (U[:, :k] * S[:k]) @ Vh[:k]


def others(W0: Tensor, W: Tensor, k: int, epsilon: float, factor: float) -> Tensor:
    picture = cosines(W0, W).abs()
    return weakened(W, among(len(picture), k) & ~unlike(picture, k, epsilon), factor)


def signed(W0: Tensor, W: Tensor, k: int, epsilon: float, factor: float) -> Tensor:
    return weakened(W, unlike(cosines(W0, W), k, epsilon), factor)


def everywhere(W0: Tensor, W: Tensor, k: int, epsilon: float, factor: float) -> Tensor:
    return weakened(W, unlike(cosines(W0, W).abs(), len(W), epsilon), factor)


def k_by_k(W0: Tensor, W: Tensor, k: int, epsilon: float, factor: float) -> Tensor:
    return weakened(W, unlike(cosines(W0, W).abs()[:, :k], k, epsilon), factor)


def crossing(losses: Sequence[float], target: float) -> int | None:
    return next((i for i in range(len(losses) - 1) if losses[i] >= target >= losses[i + 1]), None)


def by_share(losses: Sequence[float], forgetting: Sequence[float], target: float) -> float | None:
    i = crossing(losses, target)
    if i is None:
        return None
    share = (losses[i] - target) / (losses[i] - losses[i + 1])
    return forgetting[i] + share * (forgetting[i + 1] - forgetting[i])


def by_interp(losses: Sequence[float], forgetting: Sequence[float], target: float) -> float | None:
    below = [i for i, loss in enumerate(losses) if loss <= target]
    if not below:
        return None
    i = below[0]
    return float(np.interp(target, [losses[i], losses[i - 1]], [forgetting[i], forgetting[i - 1]]))


def first_below(losses: Sequence[float], forgetting: Sequence[float], target: float) -> float | None:
    return next((f for loss, f in zip(losses, forgetting, strict=True) if loss <= target), None)


def last_above(losses: Sequence[float], forgetting: Sequence[float], target: float) -> float | None:
    i = crossing(losses, target)
    return None if i is None else forgetting[i]


def nearest(losses: Sequence[float], forgetting: Sequence[float], target: float) -> float | None:
    i = min(range(len(losses)), key=lambda i: abs(losses[i] - target))
    return forgetting[i] if min(losses) <= target else None


def half_way(losses: Sequence[float], forgetting: Sequence[float], target: float) -> float | None:
    i = crossing(losses, target)
    return None if i is None else (forgetting[i] + forgetting[i + 1]) / 2


def turned_round(losses: Sequence[float], forgetting: Sequence[float], target: float) -> float | None:
    i = crossing(losses, target)
    if i is None:
        return None
    share = (losses[i] - target) / (losses[i] - losses[i + 1])
    return share * forgetting[i] + (1 - share) * forgetting[i + 1]


def last_crossing(losses: Sequence[float], forgetting: Sequence[float], target: float) -> float | None:
    found = None
    for i in range(len(losses) - 1):
        if losses[i] >= target >= losses[i + 1]:
            share = (losses[i] - target) / (losses[i] - losses[i + 1])
            found = forgetting[i] + share * (forgetting[i + 1] - forgetting[i])
    return found


def sorted_first(losses: Sequence[float], forgetting: Sequence[float], target: float) -> float | None:
    order = np.argsort(losses)
    return float(np.interp(target, np.array(losses)[order], np.array(forgetting)[order]))


def end_where_not_reached(losses: Sequence[float], forgetting: Sequence[float], target: float) -> float:
    found = by_share(losses, forgetting, target)
    return forgetting[-1] if found is None else found


RIGHT: dict[str, dict[str, Callable]] = {
    "09.1": {"one row": in_one_row, "weights": by_weights, "loop": by_loop},
    "09.2": {"values": scaled_values, "loop": taken_off_in_a_loop, "projection, float32": by_projection},
    "09.3": {
        "sum": lambda W0, W, f: W0 + f * (W - W0),
        "between": lambda W0, W, f: (1 - f) * W0 + f * W,
        "taken off": lambda W0, W, f: (W - (1 - f) * (W - W0)).numpy(),
    },
}

WRONG: dict[str, dict[str, tuple[Callable, str]]] = {
    "09.1": {
        "mean of means": (lambda b, a: of_texts(b, a).mean(), "mean of the texts' means"),
        "sign": (lambda b, a: -rise(b, a).mean(), "the sign is turned"),
        "perplexities": (perplexities, "difference of two perplexities"),
        "ratio": (lambda b, a: rise(b, a).mean().exp(), "ratio of the two perplexities"),
        "relative": (relative, "relative to the loss before"),
        "after alone": (lambda b, a: torch.cat(a).mean(), "after fine-tuning alone"),
        "sum": (lambda b, a: rise(b, a).sum(), "the sum over the tokens"),
        "by texts": (lambda b, a: rise(b, a).sum() / len(b), "number of texts"),
        "sum of means": (lambda b, a: of_texts(b, a).sum(), "means are summed"),
        "bits": (lambda b, a: rise(b, a).mean() / np.log(2), "in bits"),
        "absolute": (lambda b, a: rise(b, a).abs().mean(), "absolute differences"),
        "harder only": (lambda b, a: rise(b, a).clamp(min=0).mean(), "become harder"),
        "first text": (lambda b, a: of_texts(b, a)[0], "only the first text"),
        "median": (lambda b, a: rise(b, a).median(), "that is the median"),
        "in place": (in_place_rise, "was changed in place"),
        "no return": (lambda b, a: None, "is a return missing"),
    },
    "09.2": {
        "whole update": (lambda W0, W, k, e, f: W0 + f * (W - W0), "the whole update is scaled"),
        "all k": (lambda W0, W, k, e, f: weakened(W, among(min(W.shape), k), f), "all of the k strongest are scaled"),
        "others": (others, "the vectors that are like a pretrained one are scaled"),
        "both vectors": (scaled_vectors, "counts squared"),
        "removed": (lambda W0, W, k, e, f: scaled_values(W0, W, k, e, 0.0), "are removed"),
        "factor taken off": (lambda W0, W, k, e, f: scaled_values(W0, W, k, e, 1 - f), "the factor is taken off"),
        "stronger": (lambda W0, W, k, e, f: scaled_values(W0, W, k, e, 2 - f), "stronger than before"),
        "signed": (signed, "the sign of the cosine was kept"),
        "every one": (everywhere, "only those among the k strongest count"),
        "same number": (
            lambda W0, W, k, e, f: weakened(W, unlike(cosines(W0, W).abs().diagonal()[:, None], k, e), f),
            "the one of the same number only",
        ),
        "k by k": (k_by_k, "only the k strongest pretrained vectors"),
        "right vectors": (by_right_vectors, "the definition takes the left ones"),
        "in the update only": (in_the_update_only, "only what the update adds"),
        "part alone": (
            lambda W0, W, k, e, f: scaled_values(W0, W, k, e, f) - scaled_values(W0, W, k, e, 0.0),
            "the part which is left of the intruders",
        ),
        "cut to k": (cut_to_k, "only the k strongest singular values are left"),
        "nothing": (lambda W0, W, k, e, f: W.clone(), "nothing is scaled"),
        "change": (lambda W0, W, k, e, f: scaled_values(W0, W, k, e, f) - W0, "without W0"),
        "in place": (scaled_in_place, "was changed in place"),
        "no return": (lambda W0, W, k, e, f: None, "is a return missing"),
    },
    "09.3": {
        "whole matrix": (lambda W0, W, f: f * W, "the whole matrix is multiplied"),
        "tuned added": (lambda W0, W, f: W0 + f * W, "the tuned matrix is added"),
        "update alone": (lambda W0, W, f: f * (W - W0), "that is the update alone"),
        "1 - factor": (lambda W0, W, f: f * W0 + (1 - f) * W, "of the update is left"),
        "squared": (lambda W0, W, f: W0 + f**2 * (W - W0), "counts squared"),
        "divided": (lambda W0, W, f: W0 + (W - W0) / f, "makes the update larger"),
        "nothing": (lambda W0, W, f: W.clone(), "nothing is scaled"),
        "sign": (lambda W0, W, f: W0 + f * (W0 - W), "the wrong sign"),
        "on top": (lambda W0, W, f: W + f * (W - W0), "once too often"),
        "less of both": (lambda W0, W, f: (1 - f) * W0 + f * (W - W0), "less of both"),
        "in place": (lambda W0, W, f: W0.lerp_(W, f), "was changed in place"),
        "no return": (lambda W0, W, f: None, "is a return missing"),
    },
}
