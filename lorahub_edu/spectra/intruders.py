"""How many intruder dimensions an update has, matrix by matrix, and a page of tables that says so.

Source: Shuttleworth et al. 2024, arXiv 2410.21228, algorithm 1. The definition in plain code is in `measures`.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lorahub_edu.errors import CourseError
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.results import Table
from lorahub_edu.spectra import measures
from lorahub_edu.spectra.bases import BaseSpectra, BaseSpectrum
from lorahub_edu.spectra.solver.decide import Cosines, largest_cosines
from lorahub_edu.spectra.updates import Update, base_of, base_weights, iter_updates, of_folder

UNCHANGED = "unchanged"
MATRIX_PATH = re.compile(r"(?P<stack>.*?)\.(?P<layer>\d+)\.(?P<projection>.*)")
HEADER = ("spike ratio, median", "largest", "‖ΔW‖/‖W₀‖, mean", "effective rank, mean")


@dataclass(frozen=True)
class MatrixReport:
    """One matrix: `cosines` are the largest |cosine| of each of its k strongest left vectors, strongest first.

    Attributes:
        uncertainty: the largest error of a cosine; 0 where nothing was proven.
        intruders: how many of the cosines are below each ε.
        spike_ratio: σ₁(ΔW)/σₖ(W₀), the strength of the update against the k-th singular value of the base.
        relative_size: ‖ΔW‖/‖W₀‖ in the Frobenius norm.
        decided: "certified" by a search and its proof, "decomposed", by "two SVDs", or "unchanged" for an update of
            zero.
    """

    name: str
    shape: tuple[int, int]
    cosines: tuple[float, ...]
    uncertainty: float
    intruders: tuple[int, ...]
    spike_ratio: float
    relative_size: float
    effective_rank: float
    stable_rank: float
    nuclear_norm: float
    decided: str


@dataclass(frozen=True)
class IntruderCounts:
    """The intruders of every matrix among its k strongest vectors, at each ε; `left_out` names smaller matrices."""

    rows: tuple[MatrixReport, ...]
    k: int
    epsilons: tuple[float, ...]
    left_out: tuple[str, ...] = ()

    @property
    def intruders(self) -> tuple[int, ...]:
        """How many intruders there are in all matrices, for each ε."""
        return tuple(sum(row.intruders[i] for row in self.rows) for i in range(len(self.epsilons)))

    @property
    def unchanged(self) -> bool:
        return all(row.decided == UNCHANGED for row in self.rows)


@torch.no_grad()
def count(
    updates: Iterable[Update],
    bases: BaseSpectra,
    k: int = 10,
    epsilons: Sequence[float] = (0.5,),
    device: torch.device | str = "cpu",
) -> IntruderCounts:
    """Count the intruder dimensions of an update, one matrix in memory at a time.

    Of a matrix's k strongest left singular vectors, an intruder's largest |cosine| with a pretrained one is below ε;
    `epsilons` give one count each. Every count is the one that two full SVDs give.
    Raises CourseError: k or an ε makes no sense, no matrix has k singular vectors, or one holds NaN or infinity.
    Source: arXiv 2410.21228, algorithm 1.
    """
    for epsilon in epsilons:
        measures.check_epsilon(epsilon)
    rows, left_out = [], []
    for update in updates:
        update.check_finite()
        try:
            measures.check_k(k, tuple(update.base.shape))
            rows.append(_row(update.to(device), bases.get(update.base).to(device), k, tuple(epsilons)))
        except measures.TooFewVectorsError as error:  # such as a router of 8 experts
            left_out.append(f"{update.name}: {error}")
    if left_out and not rows:
        raise CourseError(left_out[0])
    return IntruderCounts(tuple(rows), k, tuple(epsilons), tuple(left_out))


def _row(update: Update, spectrum: BaseSpectrum, k: int, epsilons: tuple[float, ...]) -> MatrixReport:
    if update.is_zero():
        ones = torch.ones(k, dtype=torch.float64)
        cosines, decided = Cosines(ones, ones, ones), UNCHANGED
    else:
        cosines, decided = largest_cosines(update, spectrum, k, epsilons)
    changed = update.singular_values()
    return MatrixReport(
        name=update.name,
        shape=tuple(update.base.shape),
        cosines=tuple(cosines.values.tolist()),
        uncertainty=float((cosines.upper - cosines.lower).max()) / 2,
        intruders=tuple(int((cosines.values < epsilon).sum()) for epsilon in epsilons),
        spike_ratio=float(changed[0] / spectrum.values[k - 1]) if spectrum.values[k - 1] > 0 else float("inf"),
        relative_size=float(changed.norm() / spectrum.values.norm()),
        effective_rank=measures.effective_rank(changed),
        stable_rank=measures.stable_rank(changed),
        nuclear_norm=measures.nuclear_norm(changed),
        decided=decided,
    )


def examine(
    source: AdapterFile | Path,
    *,
    name: str = "",
    base: str = "",
    k: int = 10,
    epsilons: Sequence[float] = (0.5,),
    profile: str | None = None,
    device: str = "cpu",
) -> tuple[IntruderCounts, str]:
    """Count the intruder dimensions of an adapter, or of a fine-tuned model in a folder: the counts, and a page.

    `name` stands in the tables; "" takes the folder. `base` is a base model of the course or a folder; "" takes the
    base that the adapter names, else the profile's. The other settings are as for `count`.
    Raises CourseError: source and base don't belong together, or as `count`.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CourseError(f"There is no {device!r} here: torch finds no NVIDIA GPU. Take --device cpu.")
    model = base_weights(base or base_of(source, profile))
    computed: list[float] = []
    spectra = BaseSpectra(device=device, report=computed.append)
    started = time.perf_counter()
    report = count(iter_updates(source, model), spectra, k, epsilons, device)
    seconds = f"{time.perf_counter() - started:.1f} s"
    if computed:
        seconds += f", {sum(computed):.1f} s of it for {len(computed)} spectra of the base, now kept"
    label = name or str(source.path if isinstance(source, AdapterFile) else source)
    summary = [f"{label} on {model.label}: {len(report.rows)} matrices, the {k} strongest vectors of each"]
    if report.unchanged:
        summary.append("The update is zero: no matrix changes, so there are no intruder dimensions.")
    else:
        for i, (epsilon, total) in enumerate(zip(report.epsilons, report.intruders, strict=True)):
            touched = sum(row.intruders[i] > 0 for row in report.rows)
            intruders = f"{total} intruder dimension{'' if total == 1 else 's'}"
            summary.append(f"ε = {epsilon}: {intruders}, in {touched} {'matrix' if touched == 1 else 'matrices'}")
    ways = Counter(row.decided for row in report.rows)
    summary.append(f"{', '.join(f'{matrices} {way}' for way, matrices in ways.items())}; {seconds}")
    no_matrices = () if isinstance(source, AdapterFile) else of_folder(source).unread
    left_out = (*report.left_out, *(f"{name}: it is no matrix and has no singular vectors." for name in no_matrices))
    summary += [f"left out: {why}" for why in left_out]
    return report, "\n\n".join([str(by_layer(report)), str(by_projection(report)), "\n".join(summary)])


def matrix_place(name: str) -> tuple[str, int, str]:
    """The stack, the layer's number and the projection of a matrix: ("model.layers", 3, "self_attn.q_proj")."""
    parts = MATRIX_PATH.match(name)
    return (parts["stack"], int(parts["layer"]), parts["projection"]) if parts else ("", 0, name)


def by_layer(report: IntruderCounts) -> Table:
    """Intruders of every matrix at the first ε: a row a layer, a column a projection; · is none."""
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for row in report.rows:
        stack, layer, projection = matrix_place(row.name)
        cells.setdefault((stack, layer), {})[projection] = str(row.intruders[0] or "·")
    projections = list(dict.fromkeys(matrix_place(row.name)[2] for row in report.rows))
    stacks = {stack for stack, _ in cells}
    lines = [
        (str(layer) if len(stacks) == 1 else f"{stack}.{layer}", *(counts.get(p, "") for p in projections))
        for (stack, layer), counts in sorted(cells.items())
    ]
    header = ("layer", *(projection.rpartition(".")[2] for projection in projections))
    return Table(header, tuple(lines), f"intruder dimensions at ε = {report.epsilons[0]}")


def by_projection(report: IntruderCounts) -> Table:
    """Sums over the layers: a row a projection, and one for all."""
    groups: dict[str, list[MatrixReport]] = {}
    for row in report.rows:
        groups.setdefault(matrix_place(row.name)[2], []).append(row)
    lines = [
        (
            name,
            str(len(rows)),
            *(str(sum(counts)) for counts in zip(*(row.intruders for row in rows), strict=True)),
            f"{statistics.median(row.spike_ratio for row in rows):.2f}",
            f"{max(row.spike_ratio for row in rows):.2f}",
            f"{statistics.mean(row.relative_size for row in rows):.3f}",
            f"{statistics.mean(row.effective_rank for row in rows):.1f}",
        )
        for name, rows in [*groups.items(), ("all", report.rows)]
    ]
    header = ("projection", "matrices", *(f"intruders, ε = {epsilon}" for epsilon in report.epsilons), *HEADER)
    return Table(header, tuple(lines))
