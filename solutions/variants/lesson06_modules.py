"""Right and wrong answers to the problems of assignment 06 that lesson 06 does not ask."""

import numpy as np
import torch


def weighted(weights, tensors):
    return sum(w * tensor for w, tensor in zip(weights, tensors, strict=True))


def exact(weights, As, Bs):
    return sum(w * B @ A for w, A, B in zip(weights, As, Bs, strict=True))


def squares(weights):
    return [w * w for w in weights]


def whole(As, Bs, w):
    return weighted(w, Bs) @ weighted(w, As)


def terms_left(As, Bs, w):
    return whole(As, Bs, w) - exact(squares(w), As, Bs)


def terms_in_a_loop(As, Bs, w):
    found = torch.zeros_like(Bs[0] @ As[0])
    for i in range(len(w)):
        for j in range(len(w)):
            if i != j:
                found = found + w[i] * w[j] * Bs[i] @ As[j]
    return found


def terms_of_the_others(As, Bs, w):
    """Each module's B with the sum of all other modules' A."""
    total = weighted(w, As)
    return sum(v * B @ (total - v * A) for v, A, B in zip(w, As, Bs, strict=True))


def some_terms(As, Bs, w, wanted):
    places = range(len(w))
    none = torch.zeros_like(Bs[0] @ As[0])
    return sum((w[i] * w[j] * Bs[i] @ As[j] for i in places for j in places if wanted(i, j)), none)


def only_of_a(As, Bs, w):
    places = range(len(w))
    none = torch.zeros_like(Bs[0] @ As[0])
    return sum((w[j] * Bs[i] @ As[j] for i in places for j in places if i != j), none)


def only_of_b(As, Bs, w):
    places = range(len(w))
    none = torch.zeros_like(Bs[0] @ As[0])
    return sum((w[i] * Bs[i] @ As[j] for i in places for j in places if i != j), none)


def terms_in_place(As, Bs, w):
    for v, A, B in zip(w, As, Bs, strict=True):
        A *= v
        B *= v
    return sum(Bs) @ sum(As) - sum(B @ A for A, B in zip(As, Bs, strict=True))


def svd(matrix):
    return torch.linalg.svd(matrix, full_matrices=False)


def cut(A, B, rank):
    U, S, Vh = svd(B @ A)
    return Vh[:rank], U[:, :rank] * S[:rank]


def cut_evenly(A, B, rank):
    U, S, Vh = np.linalg.svd((B @ A).numpy(), full_matrices=False)
    root = np.sqrt(S[:rank])
    return torch.tensor(root[:, None] * Vh[:rank]), torch.tensor(U[:, :rank] * root)


def cut_by_projection(A, B, rank):
    """B A, seen along its own strongest right directions."""
    V = svd(B @ A).Vh[:rank]
    return [V.float(), (B @ A @ V.T).float()]


def cut_each(A, B, rank):
    (_, SA, VA), (UB, SB, VB) = (svd(M) for M in (A, B))
    UA = svd(A).U
    inner = VB[:rank] @ (UA[:, :rank] * SA[:rank])
    return VA[:rank], (UB[:, :rank] * SB[:rank]) @ inner


def largest_rows(A, B, rank):
    order = (A.norm(dim=1) * B.norm(dim=0)).argsort(descending=True)[:rank]
    return A[order], B[:, order]


def weakest(A, B, rank):
    U, S, Vh = svd(B @ A)
    last = slice(len(A) - rank, len(A))
    return Vh[last], U[:, last] * S[last]


def cut_in_place(A, B, rank):
    small, tall = cut(A, B, rank)
    A.zero_()
    return small, tall


def by_einsum(x, As, Bs, weights, scaling):
    A = torch.einsum("pn,nri->pri", weights, torch.stack(As))
    B = torch.einsum("pn,nor->por", weights, torch.stack(Bs))
    return scaling * x @ A.mT @ B.mT


def one_by_one(x, As, Bs, weights, scaling):
    return torch.stack(
        [scaling * rows @ (weighted(w, Bs) @ weighted(w, As)).T for rows, w in zip(x, weights, strict=True)]
    )


def by_flattening(x, As, Bs, weights, scaling):
    people, inputs = len(weights), x.shape[-1]
    A = (weights @ torch.stack(As).flatten(1)).view(people, -1, inputs)
    B = (weights @ torch.stack(Bs).flatten(1)).view(people, Bs[0].shape[0], -1)
    return torch.bmm(torch.bmm(x, A.transpose(1, 2)), scaling * B.transpose(1, 2)).float()


def factor_by_factor(x, As, Bs, of_a, of_b, scaling):
    A = torch.einsum("pn,nri->pri", of_a, torch.stack(As))
    B = torch.einsum("pn,nor->por", of_b, torch.stack(Bs))
    return scaling * x @ A.mT @ B.mT


def everybody(x, As, Bs, weights, scaling):
    return scaling * x @ sum(weighted(w, As).T @ weighted(w, Bs).T for w in weights)


def exact_updates(x, As, Bs, weights, scaling):
    return torch.stack([scaling * rows @ exact(w, As, Bs).T for rows, w in zip(x, weights, strict=True)])


def population_in_place(x, As, Bs, weights, scaling):
    made = by_einsum(x, As, Bs, weights, scaling)
    x *= scaling
    return made


def around_the_mean(task, modules):
    mean = modules.mean(0)
    return torch.cosine_similarity(task - mean, modules - mean)


def first(scores, count):
    return scores.argsort(descending=True)[:count].tolist()


def nearest(task, modules, count):
    return first(around_the_mean(task, modules), count)


def nearest_by_numpy(task, modules, count):
    task, modules = task.numpy(), modules.numpy()
    mean = modules.mean(axis=0)
    cosines = [
        np.dot(task - mean, m - mean) / (np.linalg.norm(task - mean) * np.linalg.norm(m - mean)) for m in modules
    ]
    return np.argsort(cosines)[::-1][:count].copy()


def nearest_sorted(task, modules, count):
    cosines = around_the_mean(task, modules)
    return tuple(sorted(range(len(modules)), key=lambda i: -float(cosines[i]))[:count])


def without_the_mean(task, modules, count):
    return first(torch.cosine_similarity(task[None], modules), count)


def inner_products(task, modules, count):
    mean = modules.mean(0)
    return first((modules - mean) @ (task - mean), count)


def modules_only(task, modules, count):
    return first(torch.cosine_similarity(task, modules - modules.mean(0)), count)


RIGHT = {
    "06.4": {"what is left": terms_left, "loop": terms_in_a_loop, "of the others": terms_of_the_others},
    "06.5": {"svd": cut, "evenly": cut_evenly, "projection, float32": cut_by_projection},
    "06.6": {"einsum": by_einsum, "one by one": one_by_one, "flattening, float32": by_flattening},
    "06.7": {"torch": nearest, "numpy": nearest_by_numpy, "sorted": nearest_sorted},
    "06.8": {"small": "b", "in brackets": "(B)"},
}

WRONG = {
    "06.4": {
        "all terms": (whole, "the own terms are still there"),
        "once": (lambda As, Bs, w: some_terms(As, Bs, w, lambda i, j: i < j), "counted once, i before j"),
        "backwards": (lambda As, Bs, w: some_terms(As, Bs, w, lambda i, j: i > j), "the pairs with j before i"),
        "exact taken off": (lambda As, Bs, w: whole(As, Bs, w) - exact(w, As, Bs), "was taken off"),
        "no weights taken off": (
            lambda As, Bs, w: whole(As, Bs, w) - exact([1.0] * len(w), As, Bs),
            "own terms without weights",
        ),
        "exact": (lambda As, Bs, w: exact(w, As, Bs), "that is the exact composition"),
        "own": (lambda As, Bs, w: exact(squares(w), As, Bs), "these are the own terms"),
        "only of A": (only_of_a, "the weights of B are missing"),
        "only of B": (only_of_b, "the weights of A are missing"),
        "no weights": (lambda As, Bs, w: terms_left(As, Bs, [1.0] * len(w)), "the weights are not used"),
        "turned": (lambda As, Bs, w: -terms_left(As, Bs, w), "the sign is turned"),
        "no signs": (lambda As, Bs, w: some_terms(As, Bs, [abs(v) for v in w], int.__ne__), "lost their signs"),
        "in place": (terms_in_place, "was changed in place"),
        "no return": (lambda As, Bs, w: None, "is a return missing"),
    },
    "06.5": {
        "first rows": (lambda A, B, r: (A[:r], B[:, :r]), "the first rows of A"),
        "largest rows": (largest_rows, "the largest rows of A"),
        "weakest": (weakest, "the weakest directions"),
        "no values": (lambda A, B, r: (svd(B @ A).Vh[:r], svd(B @ A).U[:, :r]), "the singular values are left out"),
        "values twice": (
            lambda A, B, r: (svd(B @ A).S[:r, None] * cut(A, B, r)[0], cut(A, B, r)[1]),
            "they count squared",
        ),
        "one root": (
            lambda A, B, r: (cut(A, B, r)[0], cut(A, B, r)[1] / svd(B @ A).S[:r].sqrt()),
            "only the root",
        ),
        "each by itself": (cut_each, "each by its own SVD"),
        "swapped": (lambda A, B, r: cut(A, B, r)[::-1], "A and B are swapped"),
        "transposed": (lambda A, B, r: [M.T for M in cut(A, B, r)], "both are transposed"),
        "not cut": (lambda A, B, r: cut(A, B, len(A)), "nothing was cut off"),
        "the product": (lambda A, B, r: B @ A, "return the pair"),
        "in place": (cut_in_place, "was changed in place"),
    },
    "06.6": {
        "exact": (exact_updates, "the updates were added"),
        "first weights": (
            lambda x, As, Bs, w, s: by_einsum(x, As, Bs, w[:1].expand_as(w), s),
            "the weights of the first one",
        ),
        "mean weights": (
            lambda x, As, Bs, w, s: by_einsum(x, As, Bs, w.mean(0, keepdim=True).expand_as(w), s),
            "the mean of all weights",
        ),
        "one before": (lambda x, As, Bs, w, s: by_einsum(x, As, Bs, w.roll(1, 0), s), "of the one before it"),
        "no scaling": (lambda x, As, Bs, w, s: by_einsum(x, As, Bs, w, 1.0), "the scaling is left out"),
        "scaling twice": (lambda x, As, Bs, w, s: by_einsum(x, As, Bs, w, s * s), "the scaling counts squared"),
        "only A": (
            lambda x, As, Bs, w, s: factor_by_factor(x, As, Bs, w, torch.ones_like(w), s),
            "only A is weighted",
        ),
        "only B": (
            lambda x, As, Bs, w, s: factor_by_factor(x, As, Bs, torch.ones_like(w), w, s),
            "only B is weighted",
        ),
        "no weights": (lambda x, As, Bs, w, s: by_einsum(x, As, Bs, torch.ones_like(w), s), "weights are not used"),
        "all for all": (everybody, "the sum of all candidates"),
        "first rows": (
            lambda x, As, Bs, w, s: by_einsum(x[:1].expand_as(x), As, Bs, w, s),
            "the rows of the first one",
        ),
        "in place": (population_in_place, "was changed in place"),
        "no return": (lambda x, As, Bs, w, s: None, "is a return missing"),
    },
    "06.7": {
        "with the mean": (without_the_mean, "the mean is still in there"),
        "modules only": (modules_only, "off the modules only"),
        "inner products": (inner_products, "these are inner products"),
        "least": (lambda t, M, n: first(-around_the_mean(t, M), n), "the least alike"),
        "by number": (lambda t, M, n: sorted(nearest(t, M, n)), "sorted by their number"),
        "backwards": (lambda t, M, n: nearest(t, M, n)[::-1], "the most alike last"),
        "absolute": (lambda t, M, n: first(around_the_mean(t, M).abs(), n), "absolute values"),
        "distance": (lambda t, M, n: first(-(M - t).norm(dim=1), n), "by distance"),
        "all": (lambda t, M, n: nearest(t, M, len(M)), "all are there"),
        "one too many": (lambda t, M, n: nearest(t, M, n + 1), "one too many"),
        "from one": (lambda t, M, n: nearest(t, M, n + 1)[1:], "counting begins with 0"),
        "no return": (lambda t, M, n: None, "is a return missing"),
    },
    "06.8": {
        "both turn": ("A", "in LoRAHub's product there are two"),
        "neither": ("C", "its sign comes through"),
        "swapped": ("d", "have changed places"),
        "another letter": ("E", "write one letter"),
        "a word": ("both", "write one letter"),
        "a number": (2, "write one letter"),
    },
}
