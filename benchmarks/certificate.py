"""Matrices that try to break the certificate of an intruder count: none may be called proven and be wrong.

    python benchmarks/certificate.py [--matrices 5600] [--first 0] [--save]

The reference is two full SVDs in float64 by another LAPACK driver (gesvd), of W₀ and of W from a product in long
double. Each is decomposed in four ways that differ in rounding alone. Where the ways disagree about a count, vectors
are tied and the definition depends on the basis. Nothing may be proven there. The count is the one of
`measures.largest_cosines`, LAPACK's gesdd. Small matrices are searched like large ones. Some minutes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import common
import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from lorahub_edu import results
from lorahub_edu.errors import CourseError
from lorahub_edu.spectra import bases, measures
from lorahub_edu.spectra.solver import decide
from lorahub_edu.spectra.solver.bounds import Rounding
from lorahub_edu.spectra.updates import Update

BASES = ("plain", "decaying", "repeated", "clustered", "null directions", "condition 1e12")
CHANGES = (
    "random", "equal values", "as strong as the base", "along the base", "null direction", "cancels the base",
    "factors cancel", "duplicated columns", "zero parts", "disjoint", "close to ε", "zero",
)  # fmt: skip
SIZES = {1e-2: "1e-6 to 1e-2", 1e2: "1e-2 to 1e2", 1e6: "1e2 to 1e6", 1e10: "1e6 to 1e9"}
gesvd = partial(scipy.linalg.svd, full_matrices=False, lapack_driver="gesvd")
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
FLAWS = ("wrong", "proven_though_tied", "bounds_broken", "refused_though_counted", "two_svds_differ")
PROVEN = (decide.CERTIFIED, decide.DECOMPOSED)


@dataclass(frozen=True)
class Case:
    """An update and what is asked of it, with the kinds that it belongs to."""

    update: Update
    k: int
    epsilons: tuple[float, ...]
    kinds: tuple[str, ...]


def draw(seed: int) -> Case:
    """The adversarial matrix of a seed."""
    generator = np.random.default_rng(seed)
    p, q = int(generator.integers(8, 97)), int(generator.integers(8, 97))
    shape = {0: (p, p), 1: (min(p, q), max(p, q)), 2: (max(p, q), min(p, q))}[seed % 3]
    kind, change = BASES[generator.integers(len(BASES))], CHANGES[seed // 3 % len(CHANGES)]
    k = int(generator.integers(1, min(10, min(shape) - 1) + 1))
    rank = int(generator.integers(1, k + 1) if generator.random() < 0.6 else generator.integers(k, min(shape) + 1))
    ratio = 10.0 ** (0 if change == "as strong as the base" else generator.uniform(-6, 9))
    if generator.random() < 0.4:  # about as strong as the base: where intruders begin
        ratio = 10.0 ** generator.uniform(-0.7, 0.7)
    base = _base(generator, kind, shape)
    base = base.to(DTYPES[generator.integers(len(DTYPES))])
    epsilons = (0.5,) if seed % 2 else (0.3, 0.5, 0.7)
    A, B, scaling = _change(generator, change, base, rank, ratio)
    dtype = torch.float64 if change in ("close to ε", "factors cancel") else DTYPES[generator.integers(len(DTYPES))]
    if change not in ("close to ε", "cancels the base"):
        scaling *= float(torch.linalg.matrix_norm(base.double(), 2))
    if change not in ("cancels the base", "along the base"):
        A, B = A.to(dtype), B.to(dtype)
    update = Update(change, base, A, B, scaling)
    whole = bool(generator.random() < 0.25)
    if whole:
        exact = update.dense(torch.float64)
        update = Update(change, base, delta=exact if generator.random() < 0.5 else exact.float())
    size = next(words for most, words in SIZES.items() if ratio < most)
    if change in ("close to ε", "cancels the base", "zero"):
        size = "as the change needs"
    kinds = (
        f"base: {kind}",
        f"base: in {str(base.dtype).removeprefix('torch.')}",
        f"change: {change}",
        f"change: {'whole' if whole else 'factors'}",
        f"σ₁ of change / of base: {size}",
        f"shape: {('square', 'wide', 'tall')[seed % 3]}",
        f"rank: {'above k' if rank > k else 'up to k'}",
    )
    return Case(update, k, epsilons, kinds)


def _base(generator: np.random.Generator, kind: str, shape: tuple[int, int]) -> Tensor:
    p = min(shape)
    if kind == "plain":
        return torch.from_numpy(generator.standard_normal(shape))
    if kind == "null directions" and generator.random() < 0.5:  # exact ones: rows and columns of zeros
        matrix = generator.standard_normal(shape)
        matrix[generator.permutation(shape[0])[: shape[0] // 4]] = 0
        matrix[:, generator.permutation(shape[1])[: shape[1] // 5]] = 0
        return torch.from_numpy(matrix)
    place = np.arange(p)
    values = {
        "decaying": lambda: 10 / (1 + place) ** 0.7,
        "repeated": lambda: 2.0 ** -(place // generator.integers(2, 6)),
        "clustered": lambda: 1.5 ** -(place // 4) * (1 + 10.0 ** -generator.uniform(3, 15) * generator.random(p)),
        "null directions": lambda: np.where(place < max(3, p - generator.integers(1, 6)), 3.0 / (1 + place), 0),
        "condition 1e12": lambda: np.logspace(0, -12, p),
    }[kind]()
    if kind == "repeated" and generator.random() < 0.5:  # exactly repeated, on the axes
        matrix = np.zeros(shape)
        matrix[generator.permutation(shape[0])[:p], generator.permutation(shape[1])[:p]] = values
        return torch.from_numpy(matrix)
    left, right = (_orthonormal(generator, n, p) for n in shape)
    return torch.from_numpy((left * values) @ right.T)


def _orthonormal(generator: np.random.Generator, n: int, many: int) -> np.ndarray:
    return np.linalg.qr(generator.standard_normal((n, many)))[0]


def _change(
    generator: np.random.Generator, kind: str, base: Tensor, rank: int, ratio: float
) -> tuple[Tensor, Tensor, float]:
    """A (r, in), B (out, r) and a scaling, to be multiplied by σ₁ of the base where it is a ratio."""
    out, columns = base.shape
    left, values, right = np.linalg.svd(base.double().numpy(), full_matrices=False)
    B, A = generator.standard_normal((out, rank)), generator.standard_normal((rank, columns))
    if kind in ("equal values", "as strong as the base"):
        A, B = _orthonormal(generator, columns, rank).T, _orthonormal(generator, out, rank)
        if kind == "as strong as the base" and values[0] > 0:
            B = B * (values[:rank] / values[0])  # ties between the change and the base
    elif kind == "along the base":
        some = generator.permutation(len(values))[:rank]
        A, B = right[some], left[:, some] * generator.choice([-1.0, 1.0, 0.5], rank)
    elif kind == "null direction":
        A, B = right[-rank:], left[:, -rank:]
    elif kind == "cancels the base":
        kept = 1 - 10.0 ** -generator.uniform(0, 16)
        return torch.from_numpy(right[:rank]), torch.from_numpy(-left[:, :rank] * values[:rank]), float(kept)
    elif kind == "factors cancel":
        A = np.concatenate([A, -A + 10.0 ** -generator.uniform(2, 9) * generator.standard_normal(A.shape)])
        B = np.concatenate([B, B], axis=1)
    elif kind == "duplicated columns":
        A, B = np.concatenate([A, A[:1]]), np.concatenate([B, B[:, :1]], axis=1)
        B[:, 0] = B[:, -2]
    elif kind == "zero parts":
        A[rank // 2 :], B[:, : rank // 3] = 0, 0
    elif kind == "disjoint":  # each direction of one factor meets zeros in the other
        A, B = np.concatenate([A, 0 * A]), np.concatenate([0 * B, B], axis=1)
    elif kind == "close to ε" and len(values) >= 12:
        # The strongest left vector turned in a plane with a mean of weak ones, none of which it comes to resemble.
        cosine = 0.5 + generator.choice([-1, 1]) * 10.0 ** -generator.uniform(4, 13)
        plane = np.stack([left[:, 0], left[:, -6:].sum(1) / 6**0.5], 1)
        sine = (1 - cosine**2) ** 0.5
        turned = plane @ np.array([[cosine, -sine], [sine, cosine]])
        return torch.from_numpy(plane.T @ base.double().numpy()), torch.from_numpy(turned - plane), 1.0
    A, B = torch.from_numpy(np.ascontiguousarray(A)), torch.from_numpy(np.ascontiguousarray(B))
    size = float(torch.linalg.matrix_norm(B @ A, 2)) or 1.0
    return A, B, 0.0 if kind == "zero" else ratio / size


def references(matrix: np.ndarray, generator: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Left vectors and values, decomposed in four ways that differ in rounding alone."""
    left, values, _ = gesvd(matrix)
    _, again, right = gesvd(matrix.T)
    ways = [(left, values), (right.T, again)]
    for _ in range(2):
        turn, order = _orthonormal(generator, matrix.shape[1], matrix.shape[1]), generator.permutation(len(matrix))
        left, values, _ = gesvd((matrix @ turn)[order])
        ways.append((left[np.argsort(order)], values))
    return ways


def largest(case: Case, seed: int) -> tuple[list[np.ndarray], int, int]:
    """The k largest cosines by every pair of decompositions; the least and the most rank of W, within a factor of 2."""
    one, generator = case.update, np.random.default_rng(seed + 10**9)
    parts = (one.up, one.down) if one.factored else (one.delta,)
    parts = [part.double().numpy().astype(np.longdouble) for part in parts]
    change = np.longdouble(one.scaling) * (parts[0] @ parts[1]) if one.factored else parts[0]
    tuned = (one.base.double().numpy().astype(np.longdouble) + change).astype(np.float64)
    known = references(one.base.double().numpy(), generator)
    known = [left[:, values > measures.NEGLIGIBLE * values[0]].T for left, values in known]
    spectrum = bases.compute(one.base)
    found, ranks = [], []
    for left, values in references(tuned, generator):
        least = Rounding.of(one, spectrum).least or measures.NEGLIGIBLE * values[0]
        ranks += [int((values > factor * least).sum()) for factor in (0.5, 2)]
        parts = [np.abs(u @ left[:, : case.k]) for u in known]
        found += [part.max(axis=0) if len(part) else np.zeros(case.k) for part in parts]
    return found, min(ranks), max(ranks)


@contextmanager
def small_ones_searched() -> Iterator[None]:
    """Where a decomposition becomes the slower way is a matter of speed alone."""
    before = decide.SMALL, decide.SPARE, decide.LOW_RANK
    decide.SMALL, decide.SPARE, decide.LOW_RANK = 1, 4, 2
    try:
        yield
    finally:
        decide.SMALL, decide.SPARE, decide.LOW_RANK = before


def judge(seed: int) -> tuple[Case, str, Counter]:
    """The matrix of a seed, how its count was decided, and its flaws."""
    case, flaws = draw(seed), Counter()
    one, spectrum = case.update, bases.compute(case.update.base)
    found, least_rank, most_rank = largest(case, seed)
    counts = [[int((cosines < e).sum()) for e in case.epsilons] for cosines in found]
    tied = any(count != counts[0] for count in counts)
    if one.is_zero():
        return case, "unchanged", flaws
    with small_ones_searched():
        for way in _ways(one, spectrum, case.k) if seed % 5 == 0 else ():  # bounds hold where they decide nothing, too
            flaws["bounds_broken"] += way is not None and _broken(way, found)
        try:
            cosines, decided = decide.largest_cosines(one, spectrum, case.k, case.epsilons)
        except measures.TooFewVectorsError:
            flaws["refused_though_counted"] += least_rank >= case.k
            return case, "refused", flaws
    mine = [int((cosines.values < e).sum()) for e in case.epsilons]
    if decided in PROVEN:
        flaws["bounds_broken"] += _broken(cosines, found)
        flaws["proven_though_tied"] += tied
        flaws["wrong"] += most_rank < case.k or (not tied and mine != counts[0])
        flaws["wrong"] += bool((cosines.values > 1 + bases.ROUNDING).any())
    else:
        tied = tied or max(float(np.abs(np.sort(way) - np.sort(found[0])).max()) for way in found) > 1e-6
        flaws["two_svds_differ"] += not tied and mine != counts[0]
        decided += " (tied)" if tied else ""
    return case, decided, flaws


def _broken(cosines: decide.Cosines, found: list[np.ndarray]) -> bool:
    """Whether a reference lies outside of bounds that do not contradict each other."""
    low, high = cosines.lower.numpy(), cosines.upper.numpy()
    return bool((low <= high).all()) and any(bool(((c < low - 1e-9) | (c > high + 1e-9)).any()) for c in found)


def _ways(one: Update, spectrum: bases.BaseSpectrum, k: int) -> Iterator[decide.Cosines | None]:
    yield decide.decomposed(one, spectrum, k)
    if one.factored and k + decide.SPARE <= min(one.base.shape):
        yield decide.searched(one, spectrum, k)


def main() -> None:
    options = common.arguments(__doc__, matrices=5600, first=0, threads=1)
    torch.set_num_threads(options.threads)
    ways, by_kind, flaws, examples = Counter(), {}, Counter(), []
    for seed in range(options.first, options.first + options.matrices):
        try:
            case, decided, found = judge(seed)
        except (CourseError, RuntimeError, ValueError) as error:
            raise SystemExit(f"seed {seed}: {error}") from error
        ways[decided] += 1
        for kind in case.kinds:
            by_kind.setdefault(kind, Counter())[decided] += 1
        flaws += found
        if found.total():
            examples.append((seed, decided, dict(found), case.kinds))
            print(examples[-1], flush=True)
        if seed % 500 == 499:
            print(seed + 1, dict(ways), dict(flaws), flush=True)
    shares = {}
    for kind, counts in sorted(by_kind.items()):
        counted = sum(many for way, many in counts.items() if way not in ("unchanged", "refused"))
        fallen = sum(many for way, many in counts.items() if way.startswith(decide.DEFINITION))
        shares[kind] = {"matrices": counts.total(), "two_svds": round(fallen / counted, 3) if counted else None}
    line = {
        "matrices": options.matrices,
        "first_seed": options.first,
        "decided": dict(ways),
        **{flaw: flaws[flaw] for flaw in FLAWS},
        "by_kind": shares,
        "versions": results.library_versions(),
        "device": results.describe_device(),
    }
    if options.save:
        results.write_json(results.committed_folder() / "certificate.json", line)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
