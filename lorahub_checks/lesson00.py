"""The check of lesson 00: a first try, the factor in front of B · A."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals


@problem(
    "00.1",
    "the scaling factor",
    (
        "Look at what stands in front of B · A in the sentence above.",
        "α sets how strong the adapter is; dividing by the rank keeps that strength when the rank changes.",
        "For α = 16 and r = 8 the factor is 2. For r = 16 it is 1.",
    ),
)
def scaling(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """scaling(alpha, rank) -> alpha / rank."""
    for _ in range(3):
        alpha = float(torch.randint(3, 60, (1,), generator=generator)) + 0.5
        rank = int(torch.randint(5, 40, (1,), generator=generator))
        root = math.sqrt(rank)
        yield equals(
            f"alpha = {alpha}, rank = {rank}",
            answer(alpha, rank),
            alpha / rank,
            misconceptions={
                "alpha is not divided by the rank": alpha,
                "the fraction is upside down": rank / alpha,
                "alpha is multiplied by the rank": alpha * rank,
                "this is the rank-stabilised factor, alpha / sqrt(rank); plain LoRA divides by the rank": alpha / root,
                "the division dropped its remainder: use / instead of //": alpha // rank,
                "the rank alone does not set the strength": 1 / rank,
            },
        )
