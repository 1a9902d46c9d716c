"""Gradient descent on the weights of a composition: w has only N numbers, so it needs no hyper-network.

Source: claim H18 (Huang et al. 2023, "LoraHub", section 3.3, says that one would be needed); Kingma & Ba 2015 (Adam).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch

from lorahub_edu.hub.space import Space


def gradient_descent(
    space: Space, budget: int, seed: int = 0, start: Sequence[float] | None = None, learning_rate: float = 0.1
) -> Generator[np.ndarray, tuple[np.ndarray, np.ndarray], None]:
    """A search that is sent losses and slopes: Adam on w, clipped to the bounds after each step.

    Args:
        space: dimension N and bounds.
        budget: steps, one forward and one backward each.
        seed: not used; every search takes one.
        start: (N,) the first w; None is 1/N, because at w = 0 the paper's composition has no gradient at all: both
            factors are zero, and each factor's slope is a multiple of the other.
        learning_rate: of Adam.

    Yields:
        w as (1, N); wants back the losses (1,) and their slopes (1, N).
    """
    first = np.full(space.dimension, 1 / space.dimension) if start is None else np.asarray(start, dtype=float)
    w = torch.tensor(first, dtype=torch.float64, requires_grad=True)  # (N,)
    optimizer = torch.optim.Adam([w], lr=learning_rate)
    for _ in range(budget):
        _, slopes = yield w.detach().numpy()[None].copy()
        slope = torch.as_tensor(np.nan_to_num(slopes[0]), dtype=torch.float64)
        w.grad = slope
        optimizer.step()
        with torch.no_grad():
            w.clamp_(space.lower, space.upper)
