"""Intruder dimensions of any adapter or fine-tuned checkpoint, as tables by layer and by projection."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapter_files
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.results import Table
from lorahub_edu.spectra import interventions, updates, weights
from lorahub_edu.spectra.bases import BaseSpectra
from lorahub_edu.spectra.intruders import IntruderCounts, MatrixReport, count

MATRIX_PATH = re.compile(r"(?P<stack>.*?)\.(?P<layer>\d+)\.(?P<projection>.*)")
HEADER = ("spike ratio, median", "largest", "‖ΔW‖/‖W₀‖, mean", "effective rank, mean")


@dataclass(frozen=True)
class Examined:
    """The intruder dimensions of one adapter or checkpoint; prints itself as tables.

    `seconds` are those of the count. Of these, `base_seconds` went to `base_matrices` spectra that were not on disk.
    """

    source: str
    base: str
    report: IntruderCounts
    seconds: float
    base_seconds: float
    base_matrices: int

    def tables(self) -> tuple[Table, Table]:
        """The counts by layer, and by projection."""
        return by_layer(self.report), by_projection(self.report)

    def __str__(self) -> str:
        return "\n\n".join(map(str, (*self.tables(), self.summary())))

    def _repr_markdown_(self) -> str:
        return "\n\n".join([*(table._repr_markdown_() for table in self.tables()), self.summary()])

    def summary(self) -> str:
        """The settings and the counts, in a few lines."""
        report = self.report
        lines = [f"{self.source} on {self.base}: {len(report.rows)} matrices, the {report.k} strongest vectors of each"]
        if report.unchanged:
            lines.append("The update is zero: no matrix changes, so there are no intruder dimensions.")
        else:
            for i, epsilon in enumerate(report.epsilons):
                touched = sum(row.intruders[i] > 0 for row in report.rows)
                total = report.intruders[i]
                intruders = f"{total} intruder dimension{'' if total == 1 else 's'}"
                lines.append(f"ε = {epsilon}: {intruders}, in {touched} {'matrix' if touched == 1 else 'matrices'}")
        decided = [row.decided for row in report.rows]
        ways = ", ".join(f"{decided.count(way)} {way}" for way in sorted(set(decided), key=decided.index))
        time_text = f"{self.seconds:.1f} s"
        if self.base_matrices:
            time_text += f", {self.base_seconds:.1f} s of it for {self.base_matrices} spectra of the base, now kept"
        lines.append(f"{ways}; {time_text}")
        return "\n".join(lines)

    def rows(self) -> list[dict]:
        """Every matrix as a dictionary that JSON can hold."""
        return [asdict(row) for row in self.report.rows]


def examine(
    source: AdapterFile | Path,
    *,
    name: str = "",
    base: str = "",
    k: int = 10,
    epsilons: Sequence[float] = (0.5,),
    certified: bool = True,
    profile: str | None = None,
    device: str = "cpu",
) -> Examined:
    """Count the intruder dimensions of an adapter or a fine-tuned checkpoint.

    Args:
        source: an adapter, or the folder of a fine-tuned model in safetensors.
        name: for the tables; "" takes the folder.
        base: a base model of the course or a folder; "" takes the base that the adapter names, else the profile's.
        k: as for `intruders.count`, and so are `epsilons`, `certified` and `device`.
        profile: names the base of a checkpoint, or of an adapter that names none.

    Raises:
        CourseError: source and base don't belong together, or as `intruders.count`.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CourseError(f"There is no {device!r} here: torch finds no NVIDIA GPU. Take --device cpu.")
    model = weights.of_base(base or base_of(source, profile))
    computed: list[float] = []
    spectra = BaseSpectra(device=device, report=computed.append)
    started = time.perf_counter()
    report = count(updates.iter_updates(source, model), spectra, k, epsilons, certified, device)
    seconds = time.perf_counter() - started
    label = name or str(source.path if isinstance(source, AdapterFile) else source)
    return Examined(label, model.label, report, seconds, sum(computed), len(computed))


def base_of(source: AdapterFile | Path, profile: str | None = None) -> str:
    """The name or folder of the base that a source was made from.

    Raises:
        CourseError: the adapter names a base that is neither one of the course's nor a folder here.
    """
    named = source.base_model if isinstance(source, AdapterFile) else None
    if named is None:
        return get_profile(profile).base_model
    known = {base.repo or base.name: base.name for base in pretrained.BASE_MODELS.values()}
    if named in known or named in pretrained.BASE_MODELS or Path(named).is_dir():
        return known.get(named, named)
    raise CourseError(
        f"{source.path} was made for {named!r}, which is none of this course's base models and no folder here. Give "
        f"the folder that holds it with --base."
    )


def save_scaled(
    file: AdapterFile | Path,
    out: str | Path,
    factor: float,
    kind: str = "intruders",
    *,
    base: str = "",
    k: int = 10,
    epsilon: float = 0.5,
    profile: str | None = None,
) -> AdapterFile:
    """Scale a part of an adapter's spectrum and save the result as an adapter in PEFT's layout.

    Args:
        factor: λ, as for `interventions.scaled`, and so are `kind`, `k` and `epsilon`.
        base: as for `examine`, and so is `profile`.

    Raises:
        CourseError: the source is no adapter, or as `examine` and `interventions.scaled`.
    """
    if not isinstance(file, AdapterFile):
        raise CourseError(f"{file} is a whole model: only an adapter can be saved as an adapter.")
    name = base or base_of(file, profile)
    changed = interventions.scaled(
        updates.iter_updates(file, weights.of_base(name)), BaseSpectra(), factor, kind, k, epsilon
    )
    adapter = interventions.as_adapter(file, changed)
    adapter_files.write_adapter(adapter, out)
    return adapter


def matrix_place(name: str) -> tuple[str, int, str]:
    """The stack, the layer's number and the projection of a matrix: ("model.layers", 3, "self_attn.q_proj")."""
    parts = MATRIX_PATH.match(name)
    return (parts["stack"], int(parts["layer"]), parts["projection"]) if parts else ("", 0, name)


def by_layer(report: IntruderCounts) -> Table:
    """Intruders of every matrix at the first ε: a row a layer, a column a projection; · is none."""
    stacks = {matrix_place(row.name)[0] for row in report.rows}
    projections = list(dict.fromkeys(matrix_place(row.name)[2] for row in report.rows))
    cells: dict[tuple[str, int], dict[str, int]] = {}
    for row in report.rows:
        stack, layer, projection = matrix_place(row.name)
        cells.setdefault((stack, layer), {})[projection] = row.intruders[0]
    lines = []
    for (stack, layer), counts in sorted(cells.items()):
        label = str(layer) if len(stacks) == 1 else f"{stack}.{layer}"
        lines.append((label, *(str(counts[p] or "·") if p in counts else "" for p in projections)))
    header = ("layer", *(projection.rpartition(".")[2] for projection in projections))
    return Table(header, tuple(lines), f"intruder dimensions at ε = {report.epsilons[0]}")


def by_projection(report: IntruderCounts) -> Table:
    """Sums over the layers: a row a projection, and one for all."""
    header = ("projection", "matrices", *(f"intruders, ε = {epsilon}" for epsilon in report.epsilons), *HEADER)
    groups: dict[str, list[MatrixReport]] = {}
    for row in report.rows:
        groups.setdefault(matrix_place(row.name)[2], []).append(row)
    return Table(header, tuple(_sums(groups)) + tuple(_sums({"all": list(report.rows)})))


def _sums(groups: dict[str, list[MatrixReport]]) -> Iterator[tuple[str, ...]]:
    for name, rows in groups.items():
        yield (
            name,
            str(len(rows)),
            *(str(sum(counts)) for counts in zip(*(row.intruders for row in rows), strict=True)),
            f"{statistics.median(row.spike_ratio for row in rows):.2f}",
            f"{max(row.spike_ratio for row in rows):.2f}",
            f"{statistics.mean(row.relative_size for row in rows):.3f}",
            f"{statistics.mean(row.effective_rank for row in rows):.1f}",
        )
