"""Right and wrong answers to the problems of lesson 05: what a step holds, a peak, four bits."""

import itertools

import numpy as np


def held(frozen, trained, frozen_bytes, trained_bytes):
    return frozen * frozen_bytes + 4 * trained * trained_bytes


def held_in_steps(frozen, trained, frozen_bytes, trained_bytes):
    weights = frozen * frozen_bytes + trained * trained_bytes
    gradients = trained * trained_bytes
    return weights + gradients + 2 * gradients


def running(changes):
    live = peak = 0
    for change in changes:
        live += change
        peak = max(peak, live)
    return peak


def cumulative(changes):
    return max([0, *itertools.accumulate(changes)])


def with_numpy(changes):
    return int(np.cumsum([0, *changes]).max())


def in_place(changes):
    for i in range(1, len(changes)):
        changes[i] += changes[i - 1]
    return max([0, *changes])


def four_bits(weights, block):
    return weights / 2 + 4 * (weights / block)


RIGHT = {
    "05.1": {
        "in a line": held,
        "in steps": held_in_steps,
        "by groups": lambda f, t, fb, tb: sum((f * fb, t * tb, t * tb, 2 * t * tb)),
    },
    "05.2": {
        "running": running,
        "accumulate": cumulative,
        "numpy": with_numpy,
        "sums so far": lambda changes: np.array([sum(changes[: i + 1]) for i in range(len(changes))]).max(),
    },
    "05.3": {
        "plain": four_bits,
        "in bits": lambda n, block: (4 * n + 32 * n // block) / 8,
        "by blocks": lambda n, block: (n // block) * (block / 2 + 4),
    },
}

WRONG = {
    "05.1": {
        "no optimizer": (lambda f, t, fb, tb: f * fb + 2 * t * tb, "AdamW keeps two moments"),
        "no gradient": (lambda f, t, fb, tb: f * fb + 3 * t * tb, "one of four is missing"),
        "all trained": (lambda f, t, fb, tb: 4 * f * fb + 4 * t * tb, "frozen weights get no gradient"),
        "no base": (lambda f, t, fb, tb: 4 * t * tb, "the frozen weights are missing"),
        "frozen dtype": (lambda f, t, fb, tb: f * fb + 4 * t * fb, "with the frozen dtype's bytes"),
        "numbers": (lambda f, t, fb, tb: f + 4 * t, "these are numbers"),
        "bits": (lambda f, t, fb, tb: 8 * held(f, t, fb, tb), "eight of them"),
        "no return": (lambda f, t, fb, tb: None, "is a return missing"),
    },
    "05.2": {
        "end": (lambda changes: sum(changes), "live at the end"),
        "taken": (lambda changes: sum(c for c in changes if c > 0), "nothing freed"),
        "largest": (lambda changes: max(changes, default=0), "largest single allocation"),
        "absolute": (lambda changes: sum(abs(c) for c in changes), "added instead of taken off"),
        "in place": (in_place, "changed in place"),
    },
    "05.3": {
        "no scales": (lambda n, block: n / 2, "the scales are missing"),
        "32 bytes": (lambda n, block: n / 2 + 32 * n / block, "four bytes, not 32"),
        "one byte": (lambda n, block: n / 2 + n / block, "four bytes, not one"),
        "half": (lambda n, block: n / 2 + 2 * n / block, "four bytes, not two"),
        "each": (lambda n, block: n / 2 + 4 * n, "a block shares one"),
        "bytes for bits": (lambda n, block: 4 * n + 4 * n / block, "half a byte, not four bytes"),
        "bits": (lambda n, block: 8 * four_bits(n, block), "eight of them"),
        "block scales": (lambda n, block: n / 2 + 4 * block, "not one for each weight of a block"),
    },
}
