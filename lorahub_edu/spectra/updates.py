"""What fine-tuning changed, one matrix at a time: a LoRA adapter or a tuned checkpoint beside its base model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.lora.adapter_files import CONFIG_FILE, AdapterFile, read_adapter
from lorahub_edu.spectra.bases import SLICE, short_gram
from lorahub_edu.spectra.measures import factored_singular_values
from lorahub_edu.spectra.weights import Weights, base_weights, of_folder


@dataclass(frozen=True)
class Update:
    """One matrix and its change: either `down` A (r, in) and `up` B (out, r) with `scaling`, or `delta` (out, in).

    `name` is the matrix's module path in the base, `base` is W₀ (out, in) in any float dtype. W = W₀ + scaling · B A.
    """

    name: str
    base: Tensor
    down: Tensor | None = None
    up: Tensor | None = None
    scaling: float = 1.0
    delta: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.down is None) != (self.up is None) or (self.down is None) == self.factored:
            raise CourseError(f"{self.name}: an update is either A and B, or one whole matrix; give one of the two.")
        shape = (self.up.shape[0], self.down.shape[1]) if self.factored else tuple(self.delta.shape)
        if shape != tuple(self.base.shape):
            raise CourseError(
                f"{self.name} is {tuple(self.base.shape)} in the base, but the update is {shape}: it belongs to "
                f"another base model."
            )
        if self.factored and self.down.shape[0] != self.up.shape[1]:
            raise CourseError(
                f"{self.name}: A {tuple(self.down.shape)} and B {tuple(self.up.shape)} have different ranks."
            )

    @property
    def factored(self) -> bool:
        return self.delta is None

    @property
    def wide(self) -> bool:
        """Whether out ≤ in, so that the short side's singular vectors are the left ones."""
        return self.base.shape[0] <= self.base.shape[1]

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        if not self.factored:
            return self.delta.to(dtype)
        return self.scaling * (self.up.to(dtype) @ self.down.to(dtype))

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tuned matrix W = W₀ + ΔW, (out, in)."""
        return self.base.to(dtype) + self.dense(dtype)

    def slices(self, width: int = SLICE) -> Iterator[tuple[Tensor, Tensor]]:
        """W₀ and W, short side first and cut along the long side: pairs of (min(out, in), up to width) float64."""
        base = self.base if self.wide else self.base.T
        if self.factored:
            near, far = (self.up, self.down) if self.wide else (self.down.T, self.up.T)
            near = self.scaling * near.double()
        else:
            far = self.delta if self.wide else self.delta.T
        for before, part in zip(base.split(width, dim=1), far.split(width, dim=1), strict=True):
            before, part = before.double(), part.double()
            yield before, before + (near @ part if self.factored else part)

    def singular_values(self) -> Tensor:
        """The singular values of the change, (min(r, out, in),) float64, largest first."""
        if self.factored:
            return factored_singular_values(self.up, self.down, self.scaling)
        return torch.linalg.eigvalsh(short_gram(self.delta)).clamp_min(0).sqrt().flip(0)

    def most(self) -> float:
        """A bound of ‖ΔW‖, which also bounds what the products of its factors round: |scaling| ‖A‖ ‖B‖."""
        parts = (self.up, self.down) if self.factored else (self.delta,)
        norms = (float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in parts)
        return math.prod(norms, start=abs(self.scaling))

    def to(self, device: torch.device | str) -> Update:
        moved = {part: getattr(self, part) for part in ("base", "down", "up", "delta")}
        return replace(self, **{part: t.to(device) for part, t in moved.items() if t is not None})

    def is_zero(self) -> bool:
        parts = (self.up, self.down) if self.factored else (self.delta,)
        return self.scaling == 0 or any(not part.any() for part in parts)

    def check_finite(self) -> None:
        """Raise a CourseError that names the tensor which holds NaN or infinite values."""
        for what, tensor in (("base", self.base), ("A", self.down), ("B", self.up), ("change", self.delta)):
            # A NaN or an infinity in a tensor makes its sum NaN or infinite; so may an overflow, which is none.
            if tensor is None or torch.isfinite(tensor.sum()):
                continue
            if bad := int((~torch.isfinite(tensor)).sum()):
                raise CourseError(
                    f"{self.name}: its {what} holds {bad} NaN or infinite values: the training diverged or the file is "
                    f"damaged. Train again with a lower learning rate, or take an earlier checkpoint."
                )


def iter_updates(source: AdapterFile | str | Path, base: nn.Module | Weights | str | Path) -> Iterator[Update]:
    """The changes of an adapter or of a fine-tuned checkpoint, in its order, one matrix in memory at a time.

    `source` is an adapter, or the folder of an adapter in PEFT's layout or of a tuned model in safetensors. `base` is
    as for `base_weights`.
    Raises CourseError: source or base can't be read, or they don't belong together (checked before the first update).
    """
    base = base_weights(base)
    if not isinstance(source, AdapterFile):
        folder = Path(source)
        if not folder.exists():
            raise CourseError(f"There is no folder {folder}. Give an adapter's folder or that of a fine-tuned model.")
        if folder.is_dir() and not (folder / CONFIG_FILE).is_file():
            return _from_checkpoint(of_folder(folder), base)
        source = read_adapter(folder)
    return _from_adapter(source, base)


def _from_adapter(file: AdapterFile, base: Weights) -> Iterator[Update]:
    file.check_base(base.sha256, base.label, "Give that base with --base.")
    made_for = f"The adapter was made for {file.base_model or 'a base that it does not name'}; give it with --base."
    _check_shapes(file.shapes, base, str(file.path), made_for)
    return (Update(name, base.read(name), A, B, file.configs[name].scaling) for name, (A, B) in file.weights.items())


def _from_checkpoint(tuned: Weights, base: Weights) -> Iterator[Update]:
    names = tuned.names()
    if not names:
        raise CourseError(f"{tuned.label} holds no matrix of a numbered layer: it is no transformer's checkpoint.")
    advice = "Give the base that it was trained from with --base."
    _check_shapes({name: tuned.shapes[name] for name in names}, base, tuned.label, advice)
    pairs = ((name, base.read(name), tuned.read(name)) for name in names)
    return (Update(name, before, delta=after.double() - before.double()) for name, before, after in pairs)


def _check_shapes(shapes: dict[str, tuple[int, ...]], base: Weights, label: str, advice: str) -> None:
    missing = [name for name in shapes if name not in base.shapes]
    if missing:
        raise CourseError(
            f"{label} changes {missing[0]!r}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}, which "
            f"{base.label} does not have. {near_matches(missing[0], base.names())} {advice}"
        )
    for name, shape in shapes.items():
        if shape != base.shapes[name]:
            raise CourseError(
                f"{label}: {name} is {base.shapes[name]} in {base.label}, but {shape} here: another base model. "
                f"{advice}"
            )
