"""The drawn ellipse is the Gaussian that candidates are drawn from, and the filled half is what the search uses."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from lorahub_edu.show import clouds

GRID = np.linspace(-2, 2, 9)
HEIGHTS = GRID[:, None] ** 2 + 0 * GRID  # falls towards the middle along the second weight only
C = np.array([[2.0, 0.6], [0.6, 0.5]])
X = np.random.default_rng(0).multivariate_normal([0.3, -0.2], 0.4**2 * C, 6)
CLOUDS = [
    clouds.Cloud(np.array([0.3, -0.2]), 0.4, C, X, np.array([5.0, 1, 4, 2, 6, 3])),
    clouds.Cloud(np.zeros(2), 0.1, C, X, np.arange(6.0)),
]


def test_the_ellipse_has_the_gaussians_distance_and_the_best_are_filled() -> None:
    axes = clouds.draw(Figure().subplots(), CLOUDS, 0, GRID, HEIGHTS)
    one, two, best, others, way = axes.lines
    for line, deviations in ((one, 1), (two, 2)):
        step = (np.array(line.get_data()).T - CLOUDS[0].mean) / 0.4
        mahalanobis = np.einsum("ij,jk,ik->i", step, np.linalg.inv(C), step) ** 0.5
        np.testing.assert_allclose(mahalanobis, deviations)
    np.testing.assert_array_equal(np.array(best.get_data()).T, X[[1, 3, 5]])
    assert len(others.get_xdata()) == 3 and others.get_fillstyle() == "none" and way.get_xdata() == [0.3]
    ridges = [path.vertices for path in axes.collections[0].get_paths() if len(path.vertices)]
    assert all(np.ptp(ridge[:, 1].round(6)) > 0 or np.ptp(ridge[:, 0]) == 4 for ridge in ridges), (
        "rows are the second weight"
    )


def test_the_player_steps_through_the_generations_and_reads_them() -> None:
    slider, image, sentence = clouds.player(CLOUDS, GRID, HEIGHTS).children
    before = image.value
    assert list(slider.options) == [0, 1] and "best loss 1 after 6" in sentence.value
    slider.value = 1
    assert image.value != before and "step size 0.1," in sentence.value and "after 12 evaluations" in sentence.value
    values = np.linalg.eigvalsh(C)
    assert f"{(values[1] / values[0]) ** 0.5:.1f} times as long" in sentence.value
