"""Fresh inputs for specifications: whole numbers, normal numbers, token ids."""

from __future__ import annotations

import torch
from torch import Tensor

from lorahub_checks.watched import PRINTED


def integer(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers of a shape, float64; a few have one decimal, so that a counter-example prints them."""
    numbers = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return numbers if numbers.numel() > PRINTED else (10 * numbers).round().where(numbers.abs() > 0.1, 2.0) / 10


def tokens(count: int, generator: torch.Generator) -> list[int]:
    """Token ids from 3 to 999: 0, 1 and 2 are kept for padding, start and end."""
    return torch.randint(3, 1000, (count,), generator=generator).tolist()
