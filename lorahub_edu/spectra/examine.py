"""Any adapter or fine-tuned checkpoint, by name or folder, examined for intruder dimensions, and shown as tables."""

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
from lorahub_edu.spectra.intruders import MatrixReport, Report, count

PLACE = re.compile(r"(?P<stack>.*?)\.(?P<layer>\d+)\.(?P<projection>.*)")
HEADER = ("spike ratio, median", "largest", "‖ΔW‖/‖W₀‖, mean", "effective rank, mean")


@dataclass(frozen=True)
class Examined:
    """What was found about one adapter or checkpoint; prints itself as tables.

    Attributes:
        source: what was examined.
        base: the model it was made from.
        report: matrix by matrix.
        seconds: of the count; of that `base_seconds` for spectra of the base that were not on disk yet.
        base_matrices: how many these were.
    """

    source: str
    base: str
    report: Report
    seconds: float
    base_seconds: float
    base_matrices: int

    def __str__(self) -> str:
        return "\n\n".join(str(part) for part in (by_layer(self.report), by_projection(self.report), self.summary()))

    def _repr_markdown_(self) -> str:
        tables = (by_layer(self.report), by_projection(self.report))
        return "\n\n".join([table._repr_markdown_() for table in tables] + [self.summary()])

    def summary(self) -> str:
        """What was asked and what came out, in a few lines."""
        report = self.report
        lines = [f"{self.source} on {self.base}: {len(report.rows)} matrices, the {report.k} strongest vectors of each"]
        if report.unchanged:
            lines.append("The update is zero: no matrix changes, so there are no intruder dimensions.")
        else:
            for i, epsilon in enumerate(report.epsilons):
                touched = sum(row.intruders[i] > 0 for row in report.rows)
                count = report.intruders[i]
                found = f"{count} intruder dimension{'' if count == 1 else 's'}"
                lines.append(f"ε = {epsilon}: {found}, in {touched} {'matrix' if touched == 1 else 'matrices'}")
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
        source: what `zoo.open_source` gives: an adapter, or the folder of a fine-tuned model in safetensors.
        name: what the tables call it; "" is the folder.
        base: a base model of the course or the folder of one; "" takes the one that the adapter names, else the
            profile's.
        k: how many of a matrix's strongest vectors are looked at.
        epsilons: see `intruders.count`.
        certified: prove every count.
        profile: names the base of a checkpoint, or of an adapter that names none.
        device: where to compute.

    Returns:
        The counts, and what they took.

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
        file: an adapter.
        out: the folder that it is written to.
        factor: λ.
        kind: as for `interventions.scaled`.
        base: as for `examine`.
        k: as for `examine`.
        epsilon: as for `interventions.scaled`.
        profile: as for `examine`.

    Returns:
        The adapter that was saved.

    Raises:
        CourseError: the source is no adapter, or as `examine` and `interventions.scaled`.
    """
    if not isinstance(file, AdapterFile):
        raise CourseError(f"{file} is a whole model: only an adapter can be saved as an adapter.")
    name = base or base_of(file, profile)
    changed = interventions.scaled(
        updates.iter_updates(file, weights.of_base(name)), BaseSpectra(), factor, kind, k, epsilon
    )
    made = interventions.as_adapter(file, changed)
    adapter_files.write_adapter(made, out)
    return made


def place(name: str) -> tuple[str, int, str]:
    """The stack, the layer's number and the projection of a matrix: ("model.layers", 3, "self_attn.q_proj")."""
    found = PLACE.match(name)
    return (found["stack"], int(found["layer"]), found["projection"]) if found else ("", 0, name)


def by_layer(report: Report) -> Table:
    """Intruders of every matrix at the first ε: a row a layer, a column a projection; · is none."""
    stacks = {place(row.name)[0] for row in report.rows}
    projections = list(dict.fromkeys(place(row.name)[2] for row in report.rows))
    cells: dict[tuple[str, int], dict[str, int]] = {}
    for row in report.rows:
        stack, layer, projection = place(row.name)
        cells.setdefault((stack, layer), {})[projection] = row.intruders[0]
    lines = []
    for (stack, layer), counts in sorted(cells.items()):
        label = str(layer) if len(stacks) == 1 else f"{stack}.{layer}"
        lines.append((label, *(str(counts[p] or "·") if p in counts else "" for p in projections)))
    header = ("layer", *(projection.rpartition(".")[2] for projection in projections))
    return Table(header, tuple(lines), f"intruder dimensions at ε = {report.epsilons[0]}")


def by_projection(report: Report) -> Table:
    """Sums over the layers: a row a projection, and one for all."""
    header = ("projection", "matrices", *(f"intruders, ε = {epsilon}" for epsilon in report.epsilons), *HEADER)
    groups: dict[str, list[MatrixReport]] = {}
    for row in report.rows:
        groups.setdefault(place(row.name)[2], []).append(row)
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
