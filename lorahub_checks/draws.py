"""Fresh inputs for specifications: whole numbers, normal numbers, token ids."""

from __future__ import annotations

import torch
from torch import Tensor

from lorahub_checks.watched import PRINTED


def integer(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers of a shape, float64; a few have one decimal, so that a counter-example prints them."""
    numbers = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return numbers if numbers.numel() > PRINTED else (10 * numbers).round().where(numbers.abs() > 0.1, 2.0) / 10


def few_numbers(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """W0 and W, (4, 5), small enough to read: of W's left singular vectors the first and the third are W0's in no way.

    Their largest |cosine| with one of W0's is the root of ½; that of the second and the fourth is 1.
    """
    W0, W = torch.zeros(2, 4, 5, dtype=torch.float64)
    W0[range(4), range(4)] = torch.tensor([7.0, 5.0, 3.0, 1.0], dtype=torch.float64)
    W[1:3, 0], W[0, 1] = integer(7, 9, generator), integer(5, 8, generator)
    W[1, 2], W[2, 2], W[3, 3] = 3, -3, integer(1, 3, generator)
    return W0, W


def tokens(count: int, generator: torch.Generator) -> list[int]:
    """Token ids from 3 to 999: 0, 1 and 2 are kept for padding, start and end."""
    return torch.randint(3, 1000, (count,), generator=generator).tolist()
