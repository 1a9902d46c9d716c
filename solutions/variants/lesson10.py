"""Right and wrong answers to the problems of lesson 10: rank correlations, a random twin."""

import numpy as np
import torch
from scipy import stats

from lorahub_studies.composed_spectra import same_spectrum
from lorahub_edu.spectra.updates import Update


def ranks(x):
    return stats.rankdata(x)


def ranks_by_counting(x):
    return np.array([(x < value).sum() + ((x == value).sum() + 1) / 2 for value in x])


def pearson(x, y):
    return float(np.corrcoef(x, y)[0, 1])


def rest(y, given):
    return y - np.polyval(np.polyfit(given, y, 1), given)


def spearman_by_hand(x, y):
    a, b = ranks_by_counting(np.asarray(x)), ranks_by_counting(np.asarray(y))
    a, b = a - a.mean(), b - b.mean()
    return a @ b / np.sqrt((a @ a) * (b @ b))


def partial_by_residuals(x, y, given):
    return pearson(rest(ranks(x), ranks(given)), rest(ranks(y), ranks(given)))


def partial_by_inverse(x, y, given):
    precision = np.linalg.inv(np.corrcoef([ranks(x), ranks(y), ranks(given)]))
    return torch.tensor(-precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1]))


def partial_by_formula(x, y, given):
    xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, given), (y, given)))
    return (xy - xz * yz) / ((1 - xz**2) * (1 - yz**2)) ** 0.5


def basis(size, count, generator):
    return torch.linalg.qr(torch.randn(size, count, generator=generator)).Q


def twin(delta, generator):
    S = torch.linalg.svdvals(delta)
    return (basis(delta.shape[0], len(S), generator) * S) @ basis(delta.shape[1], len(S), generator).T


def twin_by_rotation(delta, generator):
    rows, columns = delta.shape
    return basis(rows, rows, generator) @ delta @ basis(columns, columns, generator)


def twin_of_the_package(delta, generator):
    U, S, V = torch.linalg.svd(delta, full_matrices=False)
    return same_spectrum(Update("q", torch.zeros_like(delta), V, U * S), generator).dense()


def by_order(x, y):
    return pearson(np.argsort(x, kind="stable"), np.argsort(y, kind="stable"))


def by_differences(x, y):
    apart, n = ranks(x) - ranks(y), len(x)
    return 1 - 6 * apart @ apart / (n**3 - n)


def ordinal(x, y):
    return pearson(stats.rankdata(x, "ordinal"), stats.rankdata(y, "ordinal"))


def lowest(x, y):
    return pearson(stats.rankdata(x, "min"), stats.rankdata(y, "min"))


def added(x, y, given):
    xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, given), (y, given)))
    return (xy + xz * yz) / ((1 - xz**2) * (1 - yz**2)) ** 0.5


def numerator(x, y, given):
    xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, given), (y, given)))
    return xy - xz * yz


def same_norm(delta, generator):
    drawn = torch.randn(delta.shape, generator=generator)
    return drawn * delta.norm() / drawn.norm()


def one_side(delta, generator, side):
    U, S, V = torch.linalg.svd(delta, full_matrices=False)
    left = U if side == "left" else basis(delta.shape[0], len(S), generator)
    right = V if side == "right" else basis(delta.shape[1], len(S), generator).T
    return (left * S) @ right


def loose(delta, generator):
    S = torch.linalg.svdvals(delta)
    drawn = (torch.randn(size, len(S), generator=generator) for size in delta.shape)
    return (next(drawn) * S) @ next(drawn).T


def squared(delta, generator):
    S = torch.linalg.svdvals(delta)
    return (basis(delta.shape[0], len(S), generator) * S**2) @ basis(delta.shape[1], len(S), generator).T


def twin_of(draw):
    """A twin whose bases come from other random numbers."""

    def made(delta, generator):
        S = torch.linalg.svdvals(delta)
        U, V = (torch.linalg.qr(draw(size, len(S), generator)).Q for size in delta.shape)
        return (U * S) @ V.T

    return made


def same_numbers(size, count, generator):
    return torch.randn(size, count, generator=torch.Generator().manual_seed(generator.initial_seed()))


def turned_inside(delta, generator):
    """Delta's own spaces, with other vectors in them."""
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    rank = int((S / S[0] > 1e-3).sum())
    turns = [basis(rank, rank, generator) for _ in range(2)]
    return (U[:, :rank] @ turns[0] * S[:rank]) @ turns[1] @ Vh[:rank]


def global_draw(delta, generator):
    return twin(delta, torch.Generator().manual_seed(int(torch.randint(2**31, (1,)))))


def fixed_draw(delta, generator):
    return twin(delta, torch.Generator().manual_seed(7))


RIGHT = {
    "10.2": {
        "as written": lambda x, y: pearson(ranks(x), ranks(y)),
        "scipy": lambda x, y: stats.spearmanr(x, y).statistic,
        "by hand": spearman_by_hand,
    },
    "10.3": {
        "as written": partial_by_residuals,
        "inverse": partial_by_inverse,
        "formula": partial_by_formula,
    },
    "10.1": {
        "as written": twin,
        "rotation": twin_by_rotation,
        "the package": twin_of_the_package,
    },
}

WRONG = {
    "10.2": {
        "values": (pearson, "correlation of the values"),
        "argsort": (by_order, "argsort is used as a rank"),
        "one ranked": (lambda x, y: pearson(ranks(x), y), "only one of the two"),
        "sign": (lambda x, y: -pearson(ranks(x), ranks(y)), "sign is turned"),
        "squared": (lambda x, y: pearson(ranks(x), ranks(y)) ** 2, "squared correlation"),
        "products": (lambda x, y: np.mean(ranks(x) * ranks(y)), "without taking their means off"),
        "covariance": (lambda x, y: np.cov(ranks(x), ranks(y))[0, 1], "covariance"),
        "Kendall": (lambda x, y: stats.kendalltau(x, y).statistic, "Kendall"),
        "ordinal": (ordinal, "got different ranks"),
        "differences": (by_differences, "holds only without equal values"),
        "lowest": (lowest, "their lowest rank"),
        "no return": (lambda x, y: None, "is a return missing"),
    },
    "10.3": {
        "plain": (lambda x, y, z: pearson(ranks(x), ranks(y)), "not taken out"),
        "values": (lambda x, y, z: pearson(rest(x, z), rest(y, z)), "rank all three first"),
        "x only": (lambda x, y, z: pearson(rest(ranks(x), ranks(z)), ranks(y)), "out of x only"),
        "y only": (lambda x, y, z: pearson(ranks(x), rest(ranks(y), ranks(z))), "out of y only"),
        "numerator": (numerator, "numerator alone"),
        "added": (added, "was added"),
        "swapped": (lambda x, y, z: partial_by_formula(x, z, y), "changed places"),
    },
    "10.1": {
        "same norm": (same_norm, "the norm is delta's"),
        "left kept": (lambda d, g: one_side(d, g, "left"), "the left singular vectors are still delta's"),
        "right kept": (lambda d, g: one_side(d, g, "right"), "the right singular vectors are still delta's"),
        "delta itself": (lambda d, g: d, "still delta's"),
        "not orthonormal": (loose, "not orthonormal"),
        "squared": (squared, "are squared"),
        "global draw": (global_draw, "does not come from the generator"),
        "fixed draw": (fixed_draw, "the generator is not used"),
        "uniform": (
            twin_of(lambda size, count, g: torch.rand(size, count, generator=g)),
            "torch.rand has a mean",
        ),
        "both sides alike": (twin_of(same_numbers), "both sides are made of the same numbers"),
        "turned inside": (turned_inside, "still delta's"),
        "turned": (lambda d, g: twin(d, g).T, "the shape must be that of delta"),
    },
}
