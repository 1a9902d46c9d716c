"""Checks of lesson 08: right answers pass in whatever form, and each plausible mistake is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lorahub_edu.checks import check
from lorahub_edu.spectra import measures

SEEDS = range(3)


def stub(*_arguments: object) -> None:
    raise NotImplementedError


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


RIGHT: dict[str, dict[str, Callable]] = {
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


# Named wrong answers: problem, the mistake, the answer, and words of the message that must name it.
WRONG: list[tuple[str, str, Callable, str]] = [
    ("08.1", "signed", lambda A, B, k: (left(B)[:, :k].T @ left(A)).max(1).values, "the sign was kept"),
    ("08.1", "same number", lambda A, B, k: cosines(A, B).diagonal()[:k], "the one of the same number only"),
    ("08.1", "k by k", lambda A, B, k: cosines(A, B)[:k, :k].max(1).values, "only the k strongest pretrained"),
    ("08.1", "right vectors", right_vectors, "the definition takes the left ones"),
    ("08.1", "of the change", lambda A, B, k: cosines(A, B - A)[:k].max(1).values, "vectors of the change"),
    ("08.1", "swapped", lambda A, B, k: cosines(B, A)[:k].max(1).values, "have changed places"),
    ("08.1", "mean", lambda A, B, k: cosines(A, B)[:k].mean(1), "that is the mean"),
    ("08.1", "smallest", lambda A, B, k: cosines(A, B)[:k].min(1).values, "that is the smallest"),
    ("08.1", "weakest", lambda A, B, k: cosines(A, B)[-k:].max(1).values, "the k weakest"),
    ("08.1", "rows of U", rows_of_u, "singular vectors are the columns"),
    ("08.1", "full matrices", all_left_vectors, "full_matrices=False"),
    ("08.1", "squared", lambda A, B, k: cosines(A, B)[:k].square().max(1).values, "these are squared cosines"),
    ("08.1", "sums", lambda A, B, k: cosines(A, B)[:k].square().sum(1), "compared with single ones"),
    ("08.1", "sorted", lambda A, B, k: cosines(A, B)[:k].max(1).values.sort().values, "the cosines were sorted"),
    ("08.1", "in place", in_place, "a tensor that was passed in has changed"),
    ("08.1", "no return", lambda A, B, k: None, "is a return missing"),
    ("08.2", "alike counted", lambda S, k, e: int((S[:k].max(1).values >= e).sum()), "an intruder is like none"),
    ("08.2", "pairs", lambda S, k, e: int((S[:k] < e).sum()), "every pair with a small cosine"),
    ("08.2", "any", lambda S, k, e: int((S[:k] < e).any(1).sum()), "vectors with any small cosine"),
    ("08.2", "all rows", lambda S, k, e: int((S.max(1).values < e).sum()), "not the k strongest"),
    ("08.2", "k - 1", lambda S, k, e: int((S[: k - 1].max(1).values < e).sum()), "one vector too few"),
    ("08.2", "k + 1", lambda S, k, e: int((S[: k + 1].max(1).values < e).sum()), "one vector too many"),
    ("08.2", "columns", lambda S, k, e: int((S.max(0).values[:k] < e).sum()), "rows are the tuned vectors"),
    ("08.2", "k by k", lambda S, k, e: int((S[:k, :k].max(1).values < e).sum()), "may be like a weak one"),
    ("08.2", "diagonal", lambda S, k, e: int((S.diagonal()[:k] < e).sum()), "only the diagonal"),
    ("08.2", "share", lambda S, k, e: float((S[:k].max(1).values < e).float().mean()), "that is the share"),
    ("08.2", "weakest", lambda S, k, e: int((S[-k:].max(1).values < e).sum()), "the weakest k"),
    ("08.2", "up to ε", lambda S, k, e: int((S[:k].max(1).values <= e).sum()), "below ε"),
    ("08.2", "in place", clipped_in_place, "a tensor that was passed in has changed"),
    ("08.2", "no return", lambda S, k, e: None, "is a return missing"),
    ("08.3", "nats", lambda v: entropy(shares(v)), "that is the entropy in nats"),
    ("08.3", "in bits", lambda v: stats.entropy(v.numpy(), base=2), "that is the entropy in bits"),
    ("08.3", "e to bits", lambda v: np.exp(stats.entropy(v.numpy(), base=2)), "e was raised to it"),
    ("08.3", "2 to nats", lambda v: 2 ** entropy(shares(v)), "2 was raised to it"),
    ("08.3", "squares", lambda v: entropy(shares(v.square())).exp(), "shares are of σ²"),
    ("08.3", "no shares", lambda v: entropy(v).exp(), "not divided by their sum"),
    ("08.3", "rank", lambda v: int((v > 0).sum()), "that is the rank"),
    ("08.3", "stable rank", lambda v: measures.stable_rank(v), "that is the stable rank"),
    ("08.3", "participation", lambda v: v.sum() ** 2 / v.square().sum(), "participation ratio"),
    ("08.3", "sign", lambda v: (-entropy(shares(v))).exp(), "the sign of the entropy"),
    ("08.3", "nuclear", lambda v: v.sum() / v.max(), "nuclear norm"),
    ("08.3", "softmax", lambda v: entropy(v.softmax(0)).exp(), "a softmax was taken"),
    ("08.3", "NaN at zero", lambda v: torch.exp(-(shares(v) * shares(v).log()).sum()), "came out as NaN"),
    ("08.3", "no return", lambda v: None, "is a return missing"),
]


@pytest.mark.parametrize(
    ("problem", "answer"),
    [pytest.param(p, answer, id=f"{p}-{name}") for p, answers in RIGHT.items() for name, answer in answers.items()],
)
def test_right_answers_pass(problem: str, answer: Callable) -> None:
    for seed in SEEDS:
        report = check(problem, answer, seed)
        assert report.passed, str(report)
        assert len(report.properties) >= 5


@pytest.mark.parametrize(
    ("problem", "answer", "words"), [pytest.param(p, a, words, id=f"{p}-{name}") for p, name, a, words in WRONG]
)
def test_wrong_answers_are_named(problem: str, answer: Callable, words: str) -> None:
    for seed in SEEDS:
        report = check(problem, answer, seed)
        assert not report.passed
        assert any(words in p.misconception for p in report.properties if not p.passed), str(report)


@pytest.mark.parametrize("problem", RIGHT)
def test_the_stub_is_told_apart_from_a_wrong_answer(problem: str) -> None:
    report = check(problem, stub)
    assert not report.passed and "still empty" in str(report) and report.hint


def test_an_answer_that_grows_with_the_update_is_named() -> None:
    def grows(values: Tensor) -> Tensor:
        return entropy(shares(values)).exp() * values.sum() / values.sum().round()

    report = check("08.3", grows, 0)
    assert any("grows with the update" in p.misconception for p in report.properties if not p.passed), str(report)
