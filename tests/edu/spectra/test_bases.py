"""The base's spectra: right, found again, and rebuilt when what lies on disk is not what it should be."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import random_updates
import torch
from safetensors.torch import load_file, save_file

from lorahub_edu.errors import CourseError
from lorahub_edu.files import save
from lorahub_edu.spectra import bases
from lorahub_edu.spectra.bases import BaseSpectra


@pytest.mark.parametrize("shape", [(30, 30), (20, 44), (44, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_vectors_are_numpys(shape: tuple[int, int], dtype: torch.dtype) -> None:
    w = random_updates.matrix(*shape).to(dtype)
    found = bases.compute(w)
    left, values, right = np.linalg.svd(w.double().numpy(), full_matrices=False)
    np.testing.assert_allclose(found.values.numpy(), values, rtol=1e-9)
    expected = left if shape[0] <= shape[1] else right.T
    np.testing.assert_allclose(np.abs((found.basis.double().numpy() * expected).sum(axis=0)), 1.0, atol=1e-6)
    assert found.basis.dtype == torch.float32
    # what is measured of the basis's errors is what they are
    kept = found.basis.double().numpy()
    assert found.orthogonality == pytest.approx(np.linalg.norm(kept.T @ kept - np.eye(len(values))), rel=1e-6)
    gram = (
        w.double().numpy() @ w.double().numpy().T if shape[0] <= shape[1] else w.double().numpy().T @ w.double().numpy()
    )
    assert found.defect == pytest.approx(np.linalg.norm(kept.T @ gram @ kept - np.diag(values**2)), rel=1e-4)


def test_a_spectrum_is_computed_once_and_then_read(tmp_path: Path) -> None:
    w, seconds = random_updates.matrix(24, 30), []
    first = BaseSpectra(tmp_path, report=seconds.append).get(w)
    again = BaseSpectra(tmp_path, report=seconds.append)
    assert torch.equal(again.get(w).basis, first.basis)
    assert again.get(w).defect == first.defect
    assert len(seconds) == 1
    assert len(list(tmp_path.iterdir())) == 1  # only what was asked for, and nothing unfinished


def test_the_same_values_in_another_precision_are_the_same_matrix() -> None:
    w = random_updates.matrix(24, 30).to(torch.bfloat16)
    assert bases.matrix_sha256(w) == bases.matrix_sha256(w.float()) == bases.matrix_sha256(w.T.contiguous().T)
    assert bases.matrix_sha256(w) != bases.matrix_sha256(w.reshape(30, 24))
    assert bases.matrix_sha256(w) != bases.matrix_sha256(-w)
    nearly = w.double() * (1 + 1e-12)  # the same in float32, but another spectrum
    assert bases.matrix_sha256(nearly) not in (bases.matrix_sha256(w), bases.matrix_sha256(w.double()))


def test_a_file_cut_short_or_of_another_version_is_rebuilt(tmp_path: Path) -> None:
    w, computed = random_updates.matrix(24, 30), []
    spectra = BaseSpectra(tmp_path, report=computed.append)
    whole = spectra.get(w)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert torch.equal(spectra.get(w).basis, whole.basis)
    save_file(load_file(file), file, metadata={"version": "0", "orthogonality": "0", "defect": "0"})
    assert torch.equal(spectra.get(w).basis, whole.basis)
    save_file({"basis": torch.eye(3), "values": torch.ones(3)}, file, metadata={"version": bases.VERSION})
    assert torch.equal(spectra.get(w).basis, whole.basis)
    file.write_bytes(b"")
    assert torch.equal(spectra.get(w).basis, whole.basis)
    assert len(computed) == 5


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    w = random_updates.matrix(8, 9)
    BaseSpectra(tmp_path).get(w)
    (file,) = tmp_path.iterdir()
    file.unlink()
    old, new = tmp_path / f".{file.name}-killed", tmp_path / f".{file.name}-running"
    for part in (old, new):
        part.write_bytes(b"half")
    long_ago = time.time() - 2 * save.STALE_SECONDS
    os.utime(old, (long_ago, long_ago))
    BaseSpectra(tmp_path).get(w)
    assert not old.exists()
    assert new.exists()


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CourseError, match="Free some space"):
        BaseSpectra(tmp_path / "file" / "spectra").get(random_updates.matrix(8, 9))


def test_a_base_with_nan_is_refused(tmp_path: Path) -> None:
    w = random_updates.matrix(8, 9)
    w[2, 3] = float("inf")
    with pytest.raises(CourseError, match="1 NaN or infinite"):
        BaseSpectra(tmp_path).get(w)


def test_the_default_folder_is_the_courses_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAHUB_EDU_HOME", str(tmp_path))
    assert BaseSpectra().folder == tmp_path / "spectra"
