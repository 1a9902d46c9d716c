"""Right and wrong answers to the problems of assignment 08 that lesson 08 does not ask."""

import numpy as np
import torch
from torch.nn.functional import normalize

from lorahub_edu.spectra import measures

svdvals = torch.linalg.svdvals


def product_values(A, B, scaling):
    return svdvals(scaling * B @ A)[: len(A)]


def by_eigenvalues(A, B, scaling):
    """(BA)(BA)ᵀ and (BᵀB)(AAᵀ) have the same eigenvalues other than zero; the second one is (r, r)."""
    eigenvalues = np.linalg.eigvals((B.T @ B @ A @ A.T).numpy()).real
    return abs(scaling) * np.sqrt(np.sort(eigenvalues)[::-1].copy())


def triangles(A, B):
    return torch.linalg.qr(B).R, torch.linalg.qr(A.T).R


def by_diagonal(A, B, scaling):
    R1, R2 = triangles(A, B)
    return scaling * (R1 @ R2.T).diagonal().abs()


def values_in_place(A, B, scaling):
    B *= scaling
    return svdvals(B @ A)[: len(A)]


def signed_values(A, B, scaling):
    R1, R2 = triangles(A, B)
    return scaling * svdvals(R1 @ R2.T)


def ratio(W0, A, B, scaling, k):
    return svdvals(scaling * B @ A)[0] / svdvals(W0)[k - 1]


def ratio_from_factors(W0, A, B, scaling, k):
    values = measures.factored_singular_values(B, A, scaling)
    return float(values.max() / svdvals(W0).sort(descending=True).values[k - 1])


def ratio_by_numpy(W0, A, B, scaling, k):
    return np.linalg.norm(scaling * (B @ A).numpy(), 2) / np.linalg.svd(W0.numpy())[1][k - 1]


def tuned(W0, A, B, scaling):
    return svdvals(W0 + scaling * B @ A)


def largest_of_factors(W0, A, B, scaling, k):
    return scaling * svdvals(A)[0] * svdvals(B)[0] / svdvals(W0)[k - 1]


def right_vectors(A):
    return torch.linalg.svd(A, full_matrices=False).Vh


def cosines(A1, A2, i, j):
    return right_vectors(A1)[:i] @ right_vectors(A2)[:j].T


def similarity(A1, A2, i, j):
    return cosines(A1, A2, i, j).square().sum() / min(i, j)


def by_norm(A1, A2, i, j):
    return torch.linalg.matrix_norm(cosines(A1, A2, i, j)) ** 2 / min(i, j)


def by_gram_matrices(A1, A2, i, j):
    """Right singular vectors are the eigenvectors of AᵀA."""
    first, second = (np.linalg.eigh((A.T @ A).numpy())[1][:, ::-1] for A in (A1, A2))
    return float(((first[:, :i].T @ second[:, :j]) ** 2).sum()) / min(i, j)


def weighted(A1, A2, i, j):
    (_, S1, V1), (_, S2, V2) = (torch.linalg.svd(A, full_matrices=False) for A in (A1, A2))
    return ((S1[:i, None] * V1[:i]) @ (S2[:j, None] * V2[:j]).T).square().sum() / min(i, j)


def unit_rows(A1, A2, i, j):
    return (normalize(A1[:i], dim=1) @ normalize(A2[:j], dim=1).T).square().sum() / min(i, j)


def weakest(A1, A2, i, j):
    return (right_vectors(A1)[-i:] @ right_vectors(A2)[-j:].T).square().sum() / min(i, j)


def every_vector(A1, A2, i, j):
    return (right_vectors(A1) @ right_vectors(A2).T).square().sum() / min(len(A1), len(A2))


RIGHT = {
    "08.4": {
        "of the product": product_values,
        "eigenvalues": by_eigenvalues,
        "the package": lambda A, B, scaling: measures.factored_singular_values(B, A, scaling).float(),
    },
    "08.5": {"product": ratio, "factors": ratio_from_factors, "numpy": ratio_by_numpy},
    "08.6": {"squares": similarity, "norm": by_norm, "Gram matrices": by_gram_matrices},
    "08.7": {"as a float": 6.0, "a sum": 5 + 1},
}

WRONG = {
    "08.4": {
        "values multiplied": (lambda A, B, s: s * svdvals(A) * svdvals(B), "are multiplied in pairs"),
        "no scaling": (lambda A, B, s: product_values(A, B, 1.0), "the scaling is left out"),
        "scaling squared": (lambda A, B, s: s * product_values(A, B, s), "counts squared"),
        "squared": (lambda A, B, s: product_values(A, B, s) ** 2, "these are squared singular values"),
        "R1 R2": (lambda A, B, s: s * svdvals(triangles(A, B)[0] @ triangles(A, B)[1]), "R1 @ R2 is another"),
        "R2ᵀ R1": (lambda A, B, s: s * svdvals(triangles(A, B)[1].T @ triangles(A, B)[0]), "R2ᵀ R1 is another"),
        "B alone": (lambda A, B, s: s * svdvals(B), "these are B's alone"),
        "A alone": (lambda A, B, s: s * svdvals(A), "these are A's alone"),
        "ascending": (lambda A, B, s: product_values(A, B, s).sort().values, "the weakest comes first"),
        "with zeros": (lambda A, B, s: svdvals(s * B @ A), "an update of rank r has r"),
        "diagonal": (by_diagonal, "holds no singular values"),
        "signed": (signed_values, "never negative"),
        "in place": (values_in_place, "was changed in place"),
        "no return": (lambda A, B, s: None, "is a return missing"),
    },
    "08.5": {
        "strongest": (lambda W, A, B, s, k: ratio(W, A, B, s, 1), "compared with the strongest pretrained"),
        "too far": (lambda W, A, B, s, k: ratio(W, A, B, s, k + 1), "one place too far"),
        "too early": (lambda W, A, B, s, k: ratio(W, A, B, s, k - 1), "one place too early"),
        "no scaling": (lambda W, A, B, s, k: ratio(W, A, B, 1.0, k), "the scaling is left out"),
        "upside down": (lambda W, A, B, s, k: 1 / ratio(W, A, B, s, k), "upside down"),
        "tuned": (lambda W, A, B, s, k: tuned(W, A, B, s)[0] / svdvals(W)[k - 1], "the tuned matrix's strongest"),
        "tuned bar": (
            lambda W, A, B, s, k: svdvals(s * B @ A)[0] / tuned(W, A, B, s)[k - 1],
            "the tuned matrix's k-th value",
        ),
        "norm": (lambda W, A, B, s, k: (s * B @ A).norm() / svdvals(W)[k - 1], "the update's norm"),
        "norm of W0": (lambda W, A, B, s, k: svdvals(s * B @ A)[0] / W.norm(), "with the norm of W0"),
        "weakest": (lambda W, A, B, s, k: ratio(W, A, B, s, min(W.shape)), "the weakest pretrained"),
        "squared": (lambda W, A, B, s, k: ratio(W, A, B, s, k) ** 2, "that is squared"),
        "of the factors": (largest_of_factors, "the largest values of A and of B"),
        "sum": (lambda W, A, B, s, k: svdvals(s * B @ A).sum() / svdvals(W)[k - 1], "the sum of the update's"),
    },
    "08.6": {
        "not squared": (lambda A1, A2, i, j: cosines(A1, A2, i, j).norm() / min(i, j), "is not squared"),
        "larger": (lambda A1, A2, i, j: similarity(A1, A2, i, j) * min(i, j) / max(i, j), "the larger of i and j"),
        "mean": (lambda A1, A2, i, j: cosines(A1, A2, i, j).square().mean(), "a mean over all pairs"),
        "not divided": (lambda A1, A2, i, j: cosines(A1, A2, i, j).square().sum(), "not divided"),
        "rows": (lambda A1, A2, i, j: (A1[:i] @ A2[:j].T).square().sum() / min(i, j), "are used as they are"),
        "unit rows": (unit_rows, "not at right angles"),
        "absolute": (lambda A1, A2, i, j: cosines(A1, A2, i, j).abs().sum() / min(i, j), "absolute cosines"),
        "signed": (lambda A1, A2, i, j: cosines(A1, A2, i, j).sum() / min(i, j), "with their signs"),
        "best pair": (lambda A1, A2, i, j: cosines(A1, A2, i, j).abs().max(), "the best pair alone"),
        "weighted": (weighted, "weighted by their singular values"),
        "weakest": (weakest, "the weakest vectors"),
        "all": (every_vector, "all vectors are taken"),
        "swapped": (lambda A1, A2, i, j: similarity(A1, A2, j, i), "have changed places"),
        "same number": (
            lambda A1, A2, i, j: cosines(A1, A2, i, j).diagonal().square().sum() / min(i, j),
            "of the same number",
        ),
    },
    "08.7": {
        "sixth": (5, "the sixth strongest"),
        "strongest": (10, "need not be the strongest"),
        "any": (1, "a weak one is not looked at"),
        "by epsilon": (3, "a threshold for the cosine"),
        "the value": (5.5, "the fifth value itself"),
        "the sum": (13, "the sum of those below"),
    },
}
