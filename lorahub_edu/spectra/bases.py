"""The spectra of a base model's matrices: computed once, kept on disk, mapped into memory when asked for.

Only the singular vectors of a matrix's short side are kept. With out ≤ in these are the left ones, U₀. Otherwise they
are the right ones, V₀, and a left vector's cosines follow from U₀ = W₀V₀Σ₀⁻¹.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets, save

VERSION = "1"
ROUNDING = 2.0**-24  # of the basis, which is computed in float64 and kept in float32
EPSILON64 = 2.0**-53
TINY = 1e-300  # keeps a division by zero finite
SLICE = 1024  # rows or columns that are held in float64 at a time


@dataclass(frozen=True)
class BaseSpectrum:
    """The singular values of W₀ and the singular vectors of its short side.

    Attributes:
        basis: (p, p) float32 with p = min(out, in), columns: left singular vectors if out ≤ in, else right ones.
        values: (p,) float64, largest first.
        orthogonality: Frobenius norm of basisᵀ basis − I, measured in float64.
        defect: Frobenius norm of basisᵀ G basis − Σ², where G is the Gram matrix of the short side; in units of σ².
    """

    basis: Tensor
    values: Tensor
    orthogonality: float
    defect: float

    def coordinates(self, vectors: Tensor) -> Tensor:
        """basisᵀ times (p, any), in the dtype of `vectors`; the basis is read in slices."""
        total = torch.zeros_like(vectors)
        for rows, parts in zip(self.basis.split(SLICE), vectors.split(SLICE), strict=True):
            total += rows.to(vectors.dtype).T @ parts
        return total

    def to(self, device: torch.device | str) -> BaseSpectrum:
        return replace(self, basis=self.basis.to(device), values=self.values.to(device))


class BaseSpectra:
    """The spectra of base matrices by their content: read from disk, or computed and kept.

    A file holds one matrix and is named by the SHA-256 of its values. A computation that was killed therefore continues
    with the next matrix, and models that share a matrix share its file. float32, bfloat16 and float16 copies of the
    same values have one file. `folder` None takes `spectra` in the course's cache; `report` is called with the seconds
    that each computed spectrum took.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        device: torch.device | str = "cpu",
        report: Callable[[float], None] | None = None,
    ) -> None:
        self.folder = Path(folder) if folder else assets.home() / "spectra"
        self.device = device
        self.report = report

    def get(self, base: Tensor) -> BaseSpectrum:
        """The spectrum of a base matrix W₀ (out, in), on the CPU; computed first if it is not on disk.

        Raises CourseError: the matrix holds NaN or infinite values, or its spectrum can't be written.
        """
        path = self.folder / f"{matrix_sha256(base)}.safetensors"
        spectrum = _read(path, min(base.shape))
        if spectrum is None:
            if bad := int((~torch.isfinite(base)).sum()):
                raise CourseError(f"A base matrix of shape {tuple(base.shape)} holds {bad} NaN or infinite values.")
            start = time.perf_counter()
            spectrum = compute(base.to(self.device)).to("cpu")
            _write(path, spectrum)
            if self.report:
                self.report(time.perf_counter() - start)
        return spectrum


def matrix_sha256(matrix: Tensor) -> str:
    """The hash of a matrix's shape and of its values as float32, or as float64 where they are in float64."""
    precision = torch.promote_types(matrix.dtype, torch.float32)
    values = matrix.detach().to("cpu", precision).contiguous()
    digest = hashlib.sha256(repr(tuple(values.shape)).encode())
    digest.update(memoryview(values.numpy()).cast("B"))
    return digest.hexdigest()


@torch.no_grad()
def compute(base: Tensor) -> BaseSpectrum:
    """The spectrum of W₀ (out, in), from the eigenvectors of its short side's Gram matrix in float64.

    A singular value below √(2⁻⁵²) of the largest is lost. The rounding of float32 weights is far larger than that.
    """
    gram = short_gram(base)
    values, vectors = torch.linalg.eigh(gram)
    values, basis = values.clamp_min(0).flip(0), vectors.flip(1).float()
    exact = basis.double()
    defect = exact.T @ gram @ exact
    defect.diagonal().sub_(values)
    orthogonality = exact.T @ exact
    orthogonality.diagonal().sub_(1.0)
    return BaseSpectrum(basis.contiguous(), values.sqrt(), float(orthogonality.norm()), float(defect.norm()))


def short_gram(matrix: Tensor) -> Tensor:
    """W Wᵀ if out ≤ in, else Wᵀ W: (p, p) float64 with p = min(out, in), without a float64 copy of the matrix."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return sum_of_squares(part.double() for part in short.split(SLICE, dim=1))


def sum_of_squares(parts: Iterable[Tensor]) -> Tensor:
    """The sum of P Pᵀ over (p, any) float64 parts."""
    total = None
    for part in parts:
        total = part @ part.T if total is None else total.addmm_(part, part.T)
    return total


def _read(path: Path, p: int) -> BaseSpectrum | None:
    """A spectrum from disk, mapped; None if it is not there, of another version, or cut short."""
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("version") != VERSION:
                return None
            basis, values = opened.get_tensor("basis"), opened.get_tensor("values")
        if basis.shape != (p, p) or values.shape != (p,):
            return None
        return BaseSpectrum(basis, values, float(metadata["orthogonality"]), float(metadata["defect"]))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _write(path: Path, spectrum: BaseSpectrum) -> None:
    errors = {"orthogonality": repr(spectrum.orthogonality), "defect": repr(spectrum.defect)}
    with save.replacing(path, "a spectrum of the base") as unfinished:
        save_file({"basis": spectrum.basis, "values": spectrum.values}, unfinished, {"version": VERSION} | errors)
