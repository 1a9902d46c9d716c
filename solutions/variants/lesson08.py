"""Right and wrong answers to the problems of lesson 08."""

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from lorahub_edu.spectra import measures


def left(matrix: Tensor) -> Tensor:
    return torch.linalg.svd(matrix, full_matrices=False).U


def cosines(W0: Tensor, W: Tensor) -> Tensor:
    return (left(W).T @ left(W0)).abs()


def by_numpy(W0: Tensor, W: Tensor, k: int) -> Tensor:
    U0, U = (np.linalg.svd(matrix.numpy(), full_matrices=False)[0] for matrix in (W0, W))
    return torch.tensor(np.array([max(abs(U[:, i] @ U0[:, j]) for j in range(U0.shape[1])) for i in range(k)]))


def by_eigenvectors(W0: Tensor, W: Tensor, k: int) -> Tensor:
    rank = min(W0.shape)
    before, after = (torch.linalg.eigh(M @ M.T).eigenvectors.flip(1)[:, :rank] for M in (W0, W))
    return (after[:, :k].T @ before).abs().amax(1)


def count_in_a_loop(picture: Tensor, k: int, epsilon: float) -> int:
    return sum(1 for row in picture[:k] if all(cosine < epsilon for cosine in row))


def by_the_package(values: Tensor) -> float:
    return measures.effective_rank(values)


RIGHT = {
    "08.1": {
        "reference": lambda W0, W, k: cosines(W0, W)[:k].max(1).values,
        "numpy": by_numpy,
        "eigenvectors": by_eigenvectors,
        "the package": lambda W0, W, k: measures.largest_cosines(W0, W, k),
        "float32": lambda W0, W, k: cosines(W0.double(), W.double())[:k].amax(1).float(),
    },
    "08.2": {
        "reference": lambda S, k, e: int((S[:k].max(1).values < e).sum()),
        "loop": count_in_a_loop,
        "tensor": lambda S, k, e: (S[:k] < e).all(1).sum(),
    },
    "08.3": {
        "reference": lambda v: torch.special.entr(v / v.sum()).sum().exp(),
        "scipy": lambda v: np.exp(stats.entropy(v.numpy())),
        "bits": lambda v: 2 ** stats.entropy(v.numpy(), base=2),
        "the package": by_the_package,
    },
}


def shares(v: Tensor) -> Tensor:
    return v / v.sum()


def entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum()


def in_place(W0: Tensor, W: Tensor, k: int) -> Tensor:
    found = cosines(W0, W)[:k].max(1).values
    W -= W0
    return found


def clipped_in_place(S: Tensor, k: int, epsilon: float) -> int:
    count = int((S[:k].max(1).values < epsilon).sum())
    S.clamp_(min=epsilon)
    return count


def right_vectors(W0: Tensor, W: Tensor, k: int) -> Tensor:
    V0, V = (torch.linalg.svd(matrix, full_matrices=False).Vh for matrix in (W0, W))
    return (V[:k] @ V0.T).abs().max(1).values


def all_left_vectors(W0: Tensor, W: Tensor, k: int) -> Tensor:
    U0, U = (torch.linalg.svd(matrix).U for matrix in (W0, W))
    return (U[:, :k].T @ U0).abs().max(1).values


def rows_of_u(W0: Tensor, W: Tensor, k: int) -> Tensor:
    U0, U = left(W0), left(W)
    return (U[:k] @ U0.T).abs().max(1).values if U.shape[0] == U.shape[1] else cosines(W0, W)[:k].max(1).values


WRONG = {
    "08.1": {
        "signed": (lambda A, B, k: (left(B)[:, :k].T @ left(A)).max(1).values, "the sign was kept"),
        "same number": (lambda A, B, k: cosines(A, B).diagonal()[:k], "the one of the same number only"),
        "k by k": (lambda A, B, k: cosines(A, B)[:k, :k].max(1).values, "only the k strongest pretrained"),
        "right vectors": (right_vectors, "the definition takes the left ones"),
        "of the change": (lambda A, B, k: cosines(A, B - A)[:k].max(1).values, "vectors of the change"),
        "swapped": (lambda A, B, k: cosines(B, A)[:k].max(1).values, "have changed places"),
        "mean": (lambda A, B, k: cosines(A, B)[:k].mean(1), "that is the mean"),
        "smallest": (lambda A, B, k: cosines(A, B)[:k].min(1).values, "that is the smallest"),
        "weakest": (lambda A, B, k: cosines(A, B)[-k:].max(1).values, "the k weakest"),
        "rows of U": (rows_of_u, "singular vectors are the columns"),
        "full matrices": (all_left_vectors, "full_matrices=False"),
        "squared": (lambda A, B, k: cosines(A, B)[:k].square().max(1).values, "these are squared cosines"),
        "sums": (lambda A, B, k: cosines(A, B)[:k].square().sum(1), "compared with single ones"),
        "sorted": (lambda A, B, k: cosines(A, B)[:k].max(1).values.sort().values, "the cosines were sorted"),
        "in place": (in_place, "was changed in place"),
        "no return": (lambda A, B, k: None, "is a return missing"),
    },
    "08.2": {
        "alike counted": (lambda S, k, e: int((S[:k].max(1).values >= e).sum()), "an intruder is like none"),
        "pairs": (lambda S, k, e: int((S[:k] < e).sum()), "every pair with a small cosine"),
        "any": (lambda S, k, e: int((S[:k] < e).any(1).sum()), "vectors with any small cosine"),
        "all rows": (lambda S, k, e: int((S.max(1).values < e).sum()), "not the k strongest"),
        "k - 1": (lambda S, k, e: int((S[: k - 1].max(1).values < e).sum()), "one vector too few"),
        "k + 1": (lambda S, k, e: int((S[: k + 1].max(1).values < e).sum()), "one vector too many"),
        "columns": (lambda S, k, e: int((S.max(0).values[:k] < e).sum()), "rows are the tuned vectors"),
        "k by k": (lambda S, k, e: int((S[:k, :k].max(1).values < e).sum()), "may be like a weak one"),
        "diagonal": (lambda S, k, e: int((S.diagonal()[:k] < e).sum()), "only the diagonal"),
        "share": (lambda S, k, e: float((S[:k].max(1).values < e).float().mean()), "that is the share"),
        "weakest": (lambda S, k, e: int((S[-k:].max(1).values < e).sum()), "the weakest k"),
        "up to ε": (lambda S, k, e: int((S[:k].max(1).values <= e).sum()), "below ε"),
        "in place": (clipped_in_place, "was changed in place"),
        "no return": (lambda S, k, e: None, "is a return missing"),
    },
    "08.3": {
        "nats": (lambda v: entropy(shares(v)), "that is the entropy in nats"),
        "in bits": (lambda v: stats.entropy(v.numpy(), base=2), "that is the entropy in bits"),
        "e to bits": (lambda v: np.exp(stats.entropy(v.numpy(), base=2)), "e was raised to it"),
        "2 to nats": (lambda v: 2 ** entropy(shares(v)), "2 was raised to it"),
        "squares": (lambda v: entropy(shares(v.square())).exp(), "shares are of σ²"),
        "no shares": (lambda v: entropy(v).exp(), "not divided by their sum"),
        "rank": (lambda v: int((v > 0).sum()), "that is the rank"),
        "stable rank": (lambda v: measures.stable_rank(v), "that is the stable rank"),
        "participation": (lambda v: v.sum() ** 2 / v.square().sum(), "participation ratio"),
        "sign": (lambda v: (-entropy(shares(v))).exp(), "the sign of the entropy"),
        "nuclear": (lambda v: v.sum() / v.max(), "nuclear norm"),
        "softmax": (lambda v: entropy(v.softmax(0)).exp(), "a softmax was taken"),
        "NaN at zero": (lambda v: torch.exp(-(shares(v) * shares(v).log()).sum()), "came out as NaN"),
        "no return": (lambda v: None, "is a return missing"),
    },
}
