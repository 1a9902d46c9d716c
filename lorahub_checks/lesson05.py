"""Checks of lesson 05: bytes that a training step holds, the peak of a run of allocations, bytes of 4-bit weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from lorahub_checks.draws import integer
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds


@problem(
    "05.1",
    "bytes that a training step holds before any activation",
    (
        "What does AdamW keep for a weight that is trained, and what for one that is frozen?",
        "A frozen weight costs its own bytes. A trained one costs its own, a gradient of the same dtype, and two "
        "moments of that dtype.",
        "10 trained weights of 2 bytes take 20 bytes for themselves, 20 for gradients, 40 for two moments: 80.",
    ),
)
def state_bytes(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """state_bytes(frozen, trained, frozen_bytes, trained_bytes) -> bytes."""
    for name, frozen_bytes, trained_bytes, some_frozen in (
        ("LoRA: frozen weights of two bytes, trained ones of eight", 2, 8, True),
        ("all in four bytes", 4, 4, True),
        ("full fine-tuning: nothing is frozen", 2, 8, False),
    ):
        frozen = integer(10_000, 89_999, generator) if some_frozen else 0
        trained = integer(100, 899, generator) if some_frozen else integer(10_000, 89_999, generator)
        held, four = frozen * frozen_bytes, 4 * trained * trained_bytes
        yield equals(
            name,
            answer(frozen, trained, frozen_bytes, trained_bytes),
            held + four,
            misconceptions={
                "the optimizer is missing: AdamW keeps two moments": held + 2 * trained * trained_bytes,
                "one of four is missing: weight, gradient and two moments": held + 3 * trained * trained_bytes,
                "frozen weights get no gradient and no moments": 4 * held + four,
                "the frozen weights are missing": four if some_frozen else math.nan,
                "both kinds were counted with the frozen dtype's bytes": held + 4 * trained * frozen_bytes,
                "both kinds were counted with the trained dtype's bytes": frozen * trained_bytes + four,
                "these are numbers, not bytes": frozen + 4 * trained,
                "these are bits: a byte has eight of them": 8 * (held + four),
            },
        )
    doubled = answer(0, 1000, 2, 8) / answer(0, 1000, 2, 4)
    yield holds("twice the bytes a trained weight, twice the total", doubled == 2, doubled, "the dtype is not used")


@problem(
    "05.2",
    "the peak of a run",
    (
        "When is most memory taken: at the end, or somewhere on the way?",
        "Go through the events in their order with a running total, and remember the largest total that you saw.",
        "Changes 5, -2, 4: the running totals are 5, 3, 7, so the peak is 7.",
    ),
)
def peak_of(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """peak_of(changes) -> the most bytes that were live at one time; a negative change frees."""
    for length in (4, 7):
        sizes = (100 * torch.randperm(50, generator=generator)[:length] + 100).tolist()
        sizes.append(sizes.pop(sizes.index(min(sizes))))  # what is left at the end is not the largest
        # Up, partly down, higher up, and down to a little: peak, end, sum and largest all differ.
        changes = [sizes[0], sizes[1], -sizes[0]]
        changes += sizes[2:] + [-size for size in sizes[1:-1]]
        running, totals = 0, []
        for change in changes:
            running += change
            totals.append(running)
        yield equals(
            f"{len(changes)} allocations and frees",
            answer(changes),
            max(totals),
            misconceptions={
                "this is what is live at the end, not the peak": totals[-1],
                "everything that was ever taken was added up, and nothing freed": sum(c for c in changes if c > 0),
                "this is the largest single allocation": max(changes),
                "this is the mean of the totals": sum(totals) / len(totals),
                "frees were added instead of taken off": sum(abs(c) for c in changes),
            },
        )
    yield equals("nothing is taken", answer([0]), 0)
    yield equals("the last allocation makes the peak", answer([100, 200]), 300)
    yield equals("all is freed before more is taken", answer([300, -300, 200, -200]), 300)


@problem(
    "05.3",
    "bytes of a 4-bit weight matrix",
    (
        "Half a byte a weight is not all: what else has to be stored to get the weights back?",
        "Every block of weights shares one scale of four bytes. How many blocks are there?",
        "64 weights in blocks of 32 take 32 bytes, and two scales of four bytes: 40.",
    ),
)
def four_bit_bytes(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """four_bit_bytes(weights, block) -> bytes with one 32-bit scale for each block of weights."""
    for block in (128, 64):  # at 64 two of the mistakes below come to the same
        weights = block * 2 * integer(100, 999, generator)
        blocks = weights // block
        yield equals(
            f"{block} weights share a scale",
            answer(weights, block),
            weights / 2 + 4 * blocks,
            misconceptions={
                "the scales are missing": weights / 2,
                "a scale is a 32-bit number: four bytes, not 32": weights / 2 + 32 * blocks,
                "a scale takes four bytes, not one": weights / 2 + blocks,
                "a scale takes four bytes, not two": weights / 2 + 2 * blocks,
                "every weight got a scale of its own; a block shares one": weights / 2 + 4 * weights,
                "four bits are half a byte, not four bytes": 4 * weights + 4 * blocks,
                "these are bits: a byte has eight of them": 4 * weights + 32 * blocks,
                "there are weights / block scales, not one for each weight of a block": weights / 2 + 4 * block,
            },
        )
    per_weight = 8 * answer(64 * 1024, 64) / (64 * 1024)
    yield equals("4.5 bits a weight at blocks of 64, as in QLoRA", per_weight, 4.5)
