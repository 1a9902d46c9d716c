"""CMA-ES in two weights, drawn generation by generation over the loss that it searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorahub_edu.show import figures, panels

TURN = np.linspace(0, 2 * np.pi, 90)
CIRCLE = np.stack([np.cos(TURN), np.sin(TURN)], 1)  # (90, 2)


@dataclass(frozen=True)
class Cloud:
    """One generation: the Gaussian N(mean, sigma² C) in two weights, its candidates X (P, 2) and their losses (P,)."""

    mean: np.ndarray
    sigma: float
    C: np.ndarray
    X: np.ndarray
    losses: np.ndarray

    @property
    def length(self) -> float:
        """How many times as long as wide the cloud is."""
        return float(np.sqrt(np.linalg.cond(self.C)))


def draw(
    axes: Axes, clouds: Sequence[Cloud], generation: int, grid: np.ndarray, heights: np.ndarray, levels: object = 9
) -> Axes:
    """A surface's contours, the cloud's ellipses at one and two standard deviations, its candidates, the mean's way.

    `heights` (n, n) are the losses on a square grid, a row for each value of the second weight. Of the candidates the
    better half, from which the search learns, is filled.
    """
    cloud = clouds[generation]
    lines = axes.contour(grid, grid, heights, levels=levels, colors="#888888", linewidths=0.7)
    axes.clabel(lines, fontsize=6)
    values, vectors = np.linalg.eigh(cloud.C)
    for deviations in (1, 2):
        ring = cloud.mean + deviations * cloud.sigma * (CIRCLE * np.sqrt(values)) @ vectors.T  # (90, 2)
        axes.plot(*ring.T, color=figures.COLOURS[0], linestyle="-" if deviations == 1 else "--")
    order, half = np.argsort(cloud.losses), len(cloud.losses) // 2
    axes.plot(*cloud.X[order[:half]].T, "o", color=figures.COLOURS[1], markersize=4)
    axes.plot(*cloud.X[order[half:]].T, "o", color=figures.COLOURS[1], markersize=4, fillstyle="none")
    axes.plot(*np.array([c.mean for c in clouds[: generation + 1]]).T, "-+", color="black", linewidth=1)
    ends = grid[0], grid[-1]
    axes.set(xlim=ends, ylim=ends, aspect="equal", title=f"generation {generation}")
    return axes


def player(
    clouds: Sequence[Cloud],
    grid: np.ndarray,
    heights: np.ndarray,
    labels: tuple[str, str] = ("", ""),
    levels: object = 9,
) -> ipywidgets.VBox:
    """A slider over the generations with their picture, and a sentence that reads it; a cell's last line."""

    def show(figure: Figure, generation: int) -> str:
        draw(figure.subplots(), clouds, generation, grid, heights, levels).set(xlabel=labels[0], ylabel=labels[1])
        cloud, done = clouds[generation], sum(len(c.X) for c in clouds[: generation + 1])
        return (
            f"generation {generation}: step size {cloud.sigma:.2g}, the cloud is {cloud.length:.1f} times as long as "
            f"wide, best loss {cloud.losses.min():.3g} after {done} evaluations"
        )

    return panels.slider_panel("generation", list(range(len(clouds))), show, size=(5.4, 5))
