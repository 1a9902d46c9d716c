"""The package's exact composition is the one that the check of lesson 06 asks for, in other shapes."""

from __future__ import annotations

from pathlib import Path

import torch

from lorahub_edu.hub.compose import compose, stack
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.show.check import check


def test_the_package_composes_exactly_as_asked() -> None:
    """The package pads modules of different rank, so its shapes may differ from the check's, its product may not."""
    generator = torch.Generator().manual_seed(0)
    weights = [0.3, -0.4, 1.2]
    for ranks in ((4, 4, 4), (2, 5, 3)):
        As = [torch.randn(r, 11, generator=generator, dtype=torch.float64) for r in ranks]
        Bs = [torch.randn(13, r, generator=generator, dtype=torch.float64) for r in ranks]
        files = [
            AdapterFile(Path(f"m{i}"), {"q": (A, B)}, {"q": LoRAConfig(len(A), len(A), dtype=A.dtype)}, "b", None)
            for i, (A, B) in enumerate(zip(As, Bs, strict=True))
        ]
        A, B = compose(stack(files, composition="exact"), weights, "exact").weights["q"]
        torch.testing.assert_close(B @ A, sum(w * B @ A for w, A, B in zip(weights, As, Bs, strict=True)))


def test_factors_on_the_wrong_side_are_both_named() -> None:
    """Where in = out = r, a factor on the wrong side has a legal shape: the value must give it away."""

    def where_it_fits(A: torch.Tensor, B: torch.Tensor, Q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (A @ Q, Q.T @ B) if A.shape[0] == A.shape[1] else (Q @ A, B @ Q.T)

    words = [p.misconception for p in check("06.2", where_it_fits, 0).properties if not p.passed]
    assert any("turns the inputs" in word for word in words) and any("turns the outputs" in word for word in words)
