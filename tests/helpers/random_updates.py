"""Random matrices and updates of known strength for the tests of spectra."""

from __future__ import annotations

import torch

from lorahub_edu.spectra import measures
from lorahub_edu.spectra.updates import Update


def matrix(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def with_spectrum(values: torch.Tensor | list[float], m: int, n: int, seed: int = 0) -> torch.Tensor:
    """A float64 matrix with these singular values and random vectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    left = torch.linalg.qr(matrix(m, len(values), seed).double()).Q
    right = torch.linalg.qr(matrix(n, len(values), seed + 1).double()).Q
    return (left * values) @ right.T


def update(m: int = 144, n: int = 160, rank: int = 3, strength: float = 1.0, seed: int = 0) -> Update:
    """A random base with a random update whose first singular value is `strength` times the base's tenth."""
    base = matrix(m, n, seed)
    B, A = matrix(m, rank, seed + 1), matrix(rank, n, seed + 2)
    tenth = torch.linalg.svdvals(base.double())[min(9, m - 1, n - 1)]
    return Update(
        f"layers.{seed}.{m}x{n}",
        base,
        A,
        B,
        scaling=float(strength * tenth / measures.factored_singular_values(B, A)[0]),
    )
