"""What right answers of lesson 08 must satisfy: largest cosines, the count of intruders, the effective rank.

Source: Shuttleworth et al. 2024, arXiv 2410.21228, algorithm 1 and figure 6; Roy and Vetterli 2007 for the rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lorahub_checks.draws import few_numbers
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds

SIGNED = "the sign was kept: u and −u are the same direction, so take the absolute value first"
SQUARED_SHARES = "the shares are of σ², not of σ: that is another measure, and a smaller number here"
ALL_LEFT = (
    "torch.linalg.svd gives a tall matrix more left vectors than singular values, any that fit: they are none of "
    "its own, so pass full_matrices=False"
)
OFTEN = 200  # draws after which it is no accident that a mistake gives the right value


def _changed(rows: int, columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A matrix with a falling spectrum, and the same with a new direction, its weakest one made strong, and noise.

    Where there is one more row than columns, the new direction lies outside the span of the left singular vectors.
    """

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    p = min(rows, columns)
    left, right = torch.linalg.qr(random(rows, rows)).Q, torch.linalg.qr(random(columns, columns)).Q
    base = (left[:, :p] * torch.linspace(6, 1, p, dtype=torch.float64)) @ right[:, :p].T
    new = left[:, -1] + 0.1 * random(rows) if rows > columns else random(rows)
    strange = torch.outer(new, random(columns))
    known = torch.outer(left[:, p - 1], right[:, p - 1])
    return base, base + 5.5 * strange / strange.norm() + 4.2 * known + 0.08 * random(rows, columns)


def _left(matrix: Tensor, full: bool = False) -> Tensor:
    return torch.linalg.svd(matrix, full_matrices=full).U


def _likeness_mistakes(base: Tensor, tuned: Tensor, k: int) -> dict[str, Tensor]:
    before, after, whole = _left(base), _left(tuned), _left(base, full=True)
    right = [torch.linalg.svd(matrix, full_matrices=False).Vh.T for matrix in (base, tuned)]
    cosines = (after.T @ before).abs()  # (tuned, pretrained)
    change = _left(tuned - base)

    def best(U: Tensor, U0: Tensor) -> Tensor:
        """The largest cosine of each of the first k vectors in U with one in U0."""
        return (U[:, :k].T @ U0).abs().max(1).values

    weak, diagonal = cosines[:k, :k].max(1).values, cosines.diagonal()[:k]
    exchanged, summed = cosines.max(0).values[:k], cosines[:k].square().sum(1)
    return {
        SIGNED: (after[:, :k].T @ before).max(1).values,
        "each vector is compared with the one of the same number only: it may have moved to another place": diagonal,
        "the two matrices have changed places: that says how well each pretrained vector is found again": exchanged,
        "only the k strongest pretrained vectors are looked at: a vector that was weak before counts as known": weak,
        "these are the right singular vectors (V): the definition takes the left ones (U)": best(right[1], right[0]),
        "these are the singular vectors of the change ΔW, not of the tuned matrix": best(change, before),
        "that is the mean over the pretrained vectors: the best match counts": cosines[:k].mean(1),
        "that is the smallest cosine: the best match counts": cosines[:k].min(1).values,
        "these are the k weakest vectors: svd gives the strongest first": cosines[-k:].max(1).values,
        "rows of U were taken: its singular vectors are the columns": best(after.T, before.T),
        ALL_LEFT: best(after, whole),
        "these are squared cosines": cosines[:k].square().max(1).values,
        "these are sums of squared cosines: each vector must be compared with single ones": summed,
    }


def _telling(rows: int, columns: int, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Two matrices at which every mistake shows (the signs of an SVD often agree by accident), and the right answer."""
    for _ in range(OFTEN):
        base, tuned = _changed(rows, columns, generator)
        expected = (_left(tuned)[:, :k].T @ _left(base)).abs().max(1).values
        mistakes = _likeness_mistakes(base, tuned, k)
        if rows <= columns:
            mistakes.pop(ALL_LEFT)
        if not any(torch.allclose(wrong, expected, atol=1e-2) for wrong in mistakes.values()):
            break
    return base, tuned, expected


def _sorted(seen: object, expected: Tensor) -> bool:
    if not torch.is_tensor(seen) or seen.shape != expected.shape or torch.allclose(seen.double(), expected, atol=1e-6):
        return False
    return torch.allclose(seen.double().sort().values, expected.sort().values, atol=1e-6)


@problem(
    "08.1",
    "the largest cosine of each strong vector",
    hints=(
        "Singular vectors have length 1. What is then the cosine of two of them, and what does its sign mean?",
        "U₀ and U from two SVDs; one product holds all cosines; take absolute values, then one maximum a tuned vector.",
        "k = 2: two columns of U. Their product with U₀ has two rows, with a cosine for every pretrained vector. "
        "Signs mean nothing, so absolute values come before the maximum of a row.",
    ),
)
def largest_cosines(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of largest_cosines(W0, W, k) -> (k,), strongest vector first."""
    for name, (rows, columns, k) in {"a wide matrix": (16, 28, 6), "a tall matrix": (15, 14, 5)}.items():
        base, tuned, expected = _telling(rows, columns, k, generator)
        seen = answer(base, tuned, k)
        if _sorted(seen, expected):
            yield holds(f"{name}: the strongest vector comes first", False, "", "the cosines were sorted: leave them")
            continue
        mistakes = _likeness_mistakes(base, tuned, k)
        yield equals(f"{name}, k = {k}", seen, expected, misconceptions=mistakes)
    base, tuned = few_numbers(generator)
    expected = torch.tensor([0.5**0.5, 1.0, 0.5**0.5], dtype=torch.float64)
    yield equals("few numbers", answer(base, tuned, 3), expected, misconceptions=_likeness_mistakes(base, tuned, 3))
    yield equals("a matrix that did not change is like itself", answer(base, base, 4), torch.ones(4))


def _counting_mistakes(picture: Tensor, k: int, epsilon: float) -> dict[str, Tensor | float]:
    best = picture.max(1).values

    def below(cosines: Tensor) -> Tensor:
        return (cosines < epsilon).sum()

    right, diagonal = int(below(best[:k])), picture.diagonal()[:k]
    return {
        "these are the vectors that are like a pretrained one: an intruder is like none": k - right,
        "every pair with a small cosine is counted: a vector is an intruder when its largest one is small": below(
            picture[:k]
        ),
        "vectors with any small cosine are counted: it is the largest one that must be small": below(
            picture[:k].min(1).values
        ),
        "all tuned vectors are counted, not the k strongest": below(best),
        "one vector too few is looked at: picture[:k] has k rows": below(best[: k - 1]),
        "one vector too many is looked at: rows 0 to k − 1 are the k strongest": below(best[: k + 1]),
        "the maximum runs along the wrong side: rows are the tuned vectors": below(picture.max(0).values[:k]),
        "only the k strongest pretrained vectors are looked at: a tuned one may be like a weak one": below(
            picture[:k, :k].max(1).values
        ),
        "only the diagonal is looked at: a vector may have moved to another place": below(diagonal),
        "that is the share of the k vectors: count them": right / k,
        "the weakest k are looked at: the first rows are the strongest": below(best[-k:]),
    }


def _picture(k: int, epsilon: float, generator: torch.Generator) -> tuple[Tensor, int]:
    """A similarity picture in which every mistake gives another count, and the right count."""
    tuned, pretrained = 2 * k + 9, 2 * k + 12
    for _ in range(50 * OFTEN):
        picture = epsilon * torch.rand(tuned, pretrained, generator=generator, dtype=torch.float64)
        known = torch.rand(tuned, generator=generator) < 0.6
        known[k - 1 : k + 1] = False  # so that looking at one vector more or less shows
        same = torch.rand(tuned, generator=generator) < 0.5
        places = torch.where(same, torch.arange(tuned), torch.randint(pretrained, (tuned,), generator=generator))
        high = epsilon + (1 - epsilon) * torch.rand(tuned, generator=generator, dtype=torch.float64)
        picture[known, places[known]] = high[known]
        right = int((picture[:k].max(1).values < epsilon).sum())
        counts = [right, *map(float, _counting_mistakes(picture, k, epsilon).values())]
        if len(set(counts)) == len(counts):
            break
    return picture, right


@problem(
    "08.2",
    "count the intruders",
    hints=(
        "Which rows of the picture have no bright field at all?",
        "The first k rows are the k strongest tuned vectors. Take the maximum of each, compare with ε, count.",
        "Rows with the maxima 0.9, 0.2, 0.7, k = 2, ε = 0.5: of the first two, one lies below, so the count is 1.",
    ),
)
def count_intruders(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of count_intruders(picture, k, epsilon) -> int."""
    for k, epsilon in ((20, 0.5), (16, 0.8)):
        picture, expected = _picture(k, epsilon, generator)
        seen = answer(picture, k, epsilon)
        mistakes = _counting_mistakes(picture, k, epsilon)
        yield equals(f"k = {k}, ε = {epsilon}", seen, expected, misconceptions=mistakes)
    edge = torch.tensor([[0.5, 0.1], [0.25, 0.125], [0.75, 0.0]], dtype=torch.float64)
    yield equals(
        "a largest cosine of exactly ε is no intruder",
        answer(edge, 3, 0.5),
        1,
        misconceptions={"≤ was used: an intruder lies below ε": 2},
    )
    yield equals("a model that was not changed has none", answer(torch.eye(6), 4, 0.9), 0)


def _rank_mistakes(values: Tensor) -> dict[str, Tensor | float]:
    shares = values / values.sum()
    squares = values.square() / values.square().sum()
    entropy = torch.special.entr(shares).sum()
    bits = entropy / torch.log(torch.tensor(2.0, dtype=values.dtype))
    return {
        "that is the entropy in nats: its exponential is the effective rank": entropy,
        "that is the entropy in bits: 2 to its power is the effective rank": bits,
        "the entropy is in bits, but e was raised to it": bits.exp(),
        "the entropy is in nats, but 2 was raised to it": 2**entropy,
        SQUARED_SHARES: torch.special.entr(squares).sum().exp(),
        "the values were not divided by their sum": torch.special.entr(values).sum().exp(),
        "that is the rank: the number of values that are not zero": float((values > 0).sum()),
        "that is the stable rank, Σσ²/σ₁²": (values / values.max()).square().sum(),
        "that is the participation ratio, (Σσ)²/Σσ²": values.sum().square() / values.square().sum(),
        "the sign of the entropy is wrong: Σ p log p is negative": (-entropy).exp(),
        "that is the nuclear norm by σ₁, another measure of the same kind": values.sum() / values.max(),
        "a softmax was taken: the shares are the values by their sum": torch.special.entr(values.softmax(0))
        .sum()
        .exp(),
    }


@problem(
    "08.3",
    "the effective rank",
    hints=(
        "Divide the singular values by their sum: they become shares. How would one say that few of them hold it all?",
        "The entropy of the shares, −Σ p log p, is log r when r values share equally. So its exponential is a rank.",
        "Values (1, 1): p = (0.5, 0.5), the entropy is log 2, the effective rank 2. torch.special.entr knows that 0 "
        "log 0 is 0.",
    ),
)
def effective_rank(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of effective_rank(values) -> number."""
    drawn = torch.rand(9, generator=generator, dtype=torch.float64) + 0.02
    falling = 3 * torch.exp(-1.5 * torch.arange(9, dtype=torch.float64)) * drawn
    for name, values in {"nine values": drawn.sort(descending=True).values, "values that fall fast": falling}.items():
        values = values.sort(descending=True).values
        expected = torch.special.entr(values / values.sum()).sum().exp()
        seen = answer(values)
        yield equals(name, seen, expected, misconceptions=_rank_mistakes(values))
        larger = equals(f"{name}, twice as large, have the same rank", answer(2 * values), expected)
        grows = not larger.passed and not equals("", larger.value, seen).passed
        yield replace(larger, misconception="it grows with the update: take shares of the sum" if grows else "")
    yield _with_zeros(answer(torch.cat([values, torch.zeros(4, dtype=values.dtype)])), expected)
    yield equals("five equal values have rank 5", answer(torch.full((5,), 0.3, dtype=torch.float64)), 5.0)
    yield equals("a single value has rank 1", answer(torch.tensor([2.5], dtype=torch.float64)), 1.0)


def _with_zeros(seen: object, expected: Tensor) -> Property:
    result = equals("zeros change nothing", seen, expected)
    undefined = isinstance(seen, float | Tensor) and bool(torch.as_tensor(seen).isnan().any())
    words = "0 · log 0 came out as NaN: its limit is 0, which torch.special.entr knows" if undefined else ""
    return replace(result, misconception=words)
