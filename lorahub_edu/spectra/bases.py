"""The spectra of a base model's matrices: computed once, kept on disk, mapped into memory when asked for.

Only the singular vectors of a matrix's short side are kept. With m ≤ n these are the left ones, U₀; else they are the
right ones, V₀, and a left vector's cosines follow from U₀ = W₀V₀Σ₀⁻¹.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets, save
from lorahub_edu.spectra.measures import NEGLIGIBLE, short_gram

VERSION = "1"
ROUNDING = 2.0**-24  # of the basis, which is computed in float64 and kept in float32


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

    def to(self, device: torch.device | str) -> BaseSpectrum:
        """The same on another device."""
        return replace(self, basis=self.basis.to(device), values=self.values.to(device))


class BaseSpectra:
    """The spectra of base matrices by their content: found in memory of this process, on disk, or computed and kept.

    A file a matrix, named by the SHA-256 of its values: a computation that was killed goes on with the next matrix, and
    models that share a matrix share its file. float32, bfloat16 and float16 copies of the same values have one file.

    Args:
        folder: where the files lie; None takes `spectra` in the course's cache.
        device: where a spectrum that is missing is computed.
        report: called with the seconds that each computed spectrum took.
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

        Raises:
            CourseError: the matrix holds NaN or infinite values, or its spectrum can't be written.
        """
        path = self.folder / f"{matrix_sha256(base)}.safetensors"
        found = _read(path, min(base.shape))
        if found is None:
            if bad := int((~torch.isfinite(base)).sum()):
                raise CourseError(f"A base matrix of shape {tuple(base.shape)} holds {bad} NaN or infinite values.")
            start = time.perf_counter()
            found = compute(base.to(self.device)).to("cpu")
            _write(path, found)
            if self.report:
                self.report(time.perf_counter() - start)
        return found

    def __contains__(self, base: Tensor) -> bool:
        return _read(self.folder / f"{matrix_sha256(base)}.safetensors", min(base.shape)) is not None


def matrix_sha256(matrix: Tensor) -> str:
    """The hash of a matrix's shape and of its values as float32."""
    values = matrix.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(repr(tuple(values.shape)).encode())
    digest.update(memoryview(values.numpy()).cast("B"))
    return digest.hexdigest()


@torch.no_grad()
def compute(base: Tensor) -> BaseSpectrum:
    """The spectrum of a matrix, from the eigenvectors of its short side's Gram matrix in float64.

    A singular value below √(2⁻⁵²) of the largest is lost in that, far below what float32 weights mean themselves.

    Args:
        base: W₀ (out, in), any float dtype.

    Returns:
        Its spectrum on the same device.
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


def nonzero(values: Tensor) -> Tensor:
    """Which singular values are more than the rounding of a float32 matrix."""
    return values > NEGLIGIBLE * values[0]


def _read(path: Path, p: int) -> BaseSpectrum | None:
    """A spectrum from disk, mapped; None if it is not there, of another version, or cut short."""
    try:
        with safe_open(path, framework="pt") as opened:
            described = opened.metadata() or {}
            if described.get("version") != VERSION:
                return None
            basis, values = opened.get_tensor("basis"), opened.get_tensor("values")
        if basis.shape != (p, p) or values.shape != (p,):
            return None
        return BaseSpectrum(basis, values, float(described["orthogonality"]), float(described["defect"]))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _write(path: Path, spectrum: BaseSpectrum) -> None:
    described = {
        "version": VERSION,
        "orthogonality": repr(spectrum.orthogonality),
        "defect": repr(spectrum.defect),
    }
    try:
        with save.replacing(path) as unfinished:
            save_file({"basis": spectrum.basis, "values": spectrum.values}, unfinished, metadata=described)
    except (OSError, SafetensorError) as error:
        size = spectrum.basis.numel() * 4 / 1e6
        raise CourseError(
            f"Can't keep a spectrum of {size:.0f} MB in {path.parent}: {error}. Free some space or point "
            f"{assets.HOME_VARIABLE} to another disk."
        ) from error
