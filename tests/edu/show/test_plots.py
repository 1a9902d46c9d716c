"""Figures carry what they were given, with a second cue beside colour."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from ink import contrast, linear
from matplotlib.figure import Figure
from PIL import Image

from lorahub_edu.data import alpaca
from lorahub_edu.data.batching import make_batches
from lorahub_edu.models import tiny
from lorahub_edu.show import figures, panels


@pytest.fixture()
def axes():
    return Figure().subplots()


# What a person without one of the three cones sees: Machado, Oliveira and Fernandes 2009, table 1, severity 1.0.
SEEN = {
    "everybody": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2279], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
LESSONS = Path(__file__).resolve().parents[3] / "lessons" / "src"
LITERAL = re.compile(r"""(?<!edge)(?<!face)colors?=["'](#[0-9A-Fa-f]{6}|[a-z]+)["']""")


def lightness_and_hue(colour: str, seen: object) -> np.ndarray:
    """CIELAB's coordinates of a colour as a person sees it."""
    from_linear = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(from_linear @ np.clip(seen @ linear(colour), 0, 1) / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_ink_is_dark_enough_on_its_card() -> None:
    assert contrast("black") == pytest.approx(21) and contrast("#767676") == pytest.approx(4.54, abs=0.01)
    assert min(map(contrast, figures.COLOURS)) >= 3 > contrast("#56B4E9")
    assert min(contrast(colour) for colour in (*figures.COLOURS[:2], "#555555")) >= 4.5, "words are written in these"
    drawn = {found for file in LESSONS.glob("*.py") for found in LITERAL.findall(file.read_text(encoding="utf-8"))}
    assert {"black", "#555555"} <= drawn
    assert not [colour for colour in drawn - {"white"} if contrast(colour) < 3]  # white is on dark fields alone


@pytest.mark.parametrize("person", SEEN)
def test_colours_differ_for_everybody(person: str) -> None:
    places = [lightness_and_hue(colour, np.array(SEEN[person])) for colour in figures.COLOURS]
    okabe_ito = 16  # what the two nearest of the first six of their colours differ by, for tritanopia
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2)) > okabe_ito


def test_the_card_is_white_whatever_the_learners_style() -> None:
    with matplotlib.rc_context():
        matplotlib.style.use("dark_background")
        matplotlib.rcParams["savefig.transparent"] = True
        figures.use_style()
        figure = Figure()
        label = figure.subplots().set_xlabel("x")
        picture = Image.open(io.BytesIO(panels.figure_png(figure)))
    assert picture.getpixel((0, 0)) == (255, 255, 255, 255) and contrast(label.get_color()) > 4.5


def test_series_differ_in_more_than_colour(axes) -> None:
    figures.plot_series(axes, {name: ([1, 2], [i, i]) for i, name in enumerate("abcdef")}, "x", "y (nats)")
    cues = {(line.get_marker(), line.get_linestyle()) for line in axes.lines}
    assert len(cues) == 6
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list("abcdef")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x", "y (nats)")


def test_training_curve_has_every_step(axes) -> None:
    history = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "validation_loss": 2.5}]
    figures.plot_training(axes, history)
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 3], [2, 2]], [[2, 2.5]]]


def test_matrix_scale_is_symmetric(axes) -> None:
    figures.plot_matrix(axes, np.array([[1.0, -4.0]]), "title")
    assert axes.images[0].get_clim() == (-4, 4)


@pytest.mark.parametrize("strategy", ["padded", "grouped", "packed"])
def test_batches_as_bars(axes, strategy: str) -> None:
    rows = alpaca.encode_rows(alpaca.shipped_examples()[:5], tiny.tokenizer(), 192, too_long="drop")
    batches = make_batches(rows, strategy, 2, 2)
    figures.plot_batches(axes, batches)
    widths = [bar.get_width() for bar in axes.patches]
    solid = [bar.get_width() for bar in axes.patches if bar.get_hatch() is None]
    assert sorted(solid) == sorted(len(row.input_ids) for row in rows)
    assert sum(widths) - sum(solid) == sum(batch.input_ids.numel() for batch in batches)


def test_slider_panel_redraws() -> None:
    drawn = []

    def draw(figure: Figure, value: int) -> str:
        drawn.append(value)
        figure.subplots().plot([0, value])
        return f"value {value}"

    panel = panels.slider_panel("rank", [1, 2, 4], draw, start=2)
    slider, image, sentence = panel.children
    before = image.value
    assert sentence.value == "value 2" and slider.description == "rank"
    slider.value = 4
    assert drawn == [2, 4] and sentence.value == "value 4" and image.value != before
    assert Image.open(io.BytesIO(image.value)).size[0] > 300


def test_what_takes_long_comes_after_the_picture() -> None:
    there, image = [], [b""]  # the picture when the slow part came; the picture now

    def draw(figure: Figure, value: int) -> str:
        figure.subplots().plot([0, value])
        return f"value {value}"

    panel = panels.sliders_panel(
        {"rank": [1, 4]}, draw, then=lambda value: there.append(image[0]) or f", later {value}"
    )
    slider, picture, sentence = panel.children
    assert sentence.value == "value 1, later 1"
    before = picture.value
    picture.observe(lambda change: image.__setitem__(0, change["new"]), names="value")
    slider.value = 4
    assert sentence.value == "value 4, later 4" and there[-1] == picture.value != before


def test_a_moved_panel_shows_what_a_fresh_one_starts_with() -> None:
    """Axes that keep their places are where a layout of their own would put them."""

    def draw(figure: Figure, value: int) -> str:
        left, right = figure.subplots(1, 2, width_ratios=(1, 3))
        left.set(ylabel="y", aspect="equal", title=str(value))
        figure.colorbar(right.imshow([[value, 2]], vmin=0, vmax=4), ax=right, label="nats")
        return ""

    moved = panels.slider_panel("rank", [1, 4], draw).children
    moved[0].value = 4
    assert moved[1].value == panels.slider_panel("rank", [4], draw).children[1].value


def test_methods_stand_at_their_size_and_score_with_a_marker_a_family() -> None:
    axes = Figure().subplots()
    families = {f"family {k}": {f"method {k}": (10**k, 0.4, 0.3, 0.6)} for k in range(1, 8)}
    figures.plot_methods(axes, families | {"none": {}}, "score (%)")
    points = [container.lines[0] for container in axes.containers]
    found = [(line.get_xdata()[0], line.get_ydata()[0]) for line in points]
    assert found == [pytest.approx((10**k, 40)) for k in range(1, 8)]
    looks = [(line.get_color(), line.get_marker()) for line in points]
    assert len(set(looks)) == 7 and axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"family {k}" for k in range(1, 8)]


def test_methods_of_one_size_stand_side_by_side() -> None:
    sizes = {"c": 460.0, "far": 10.0, "a": 440.0, "b": 450.0}
    places = figures.side_by_side(sizes)
    assert list(places) == ["far", "a", "b", "c"] and places["far"] == pytest.approx(10)
    assert places["b"] == pytest.approx((440 * 460) ** 0.5)
    assert places["b"] / places["a"] == pytest.approx(1.15) == places["c"] / places["b"]
    axes = Figure().subplots()
    figures.plot_methods(axes, {"x": {name: (size, 0.4, 0.3, 0.5) for name, size in sizes.items()}}, "score (%)")
    (band,) = axes.patches  # says which ones belong together
    left, right = band.get_x(), band.get_x() + band.get_width()
    assert left < places["a"] < places["c"] < right and not left < places["far"] < right
    assert "side by side" in axes.get_xlabel()


def test_several_sliders_draw_one_picture() -> None:
    drawn = []

    def draw(figure: Figure, first: float, second: float) -> str:
        drawn.append((first, second))
        return f"{first} and {second}"

    panel = panels.sliders_panel({"w1": (0.0, 1.0), "w2": (-1.0, 0.5)}, draw, start={"w2": 0.5}, continuous=False)
    first, second, _, sentence = panel.children
    assert (first.description, second.description) == ("w1", "w2") and not first.continuous_update
    assert sentence.value == "0.0 and 0.5"
    first.value = 1.0
    second.value = -1.0
    assert drawn == [(0.0, 0.5), (1.0, 0.5), (1.0, -1.0)] and sentence.value == "1.0 and -1.0"


def test_live_curve_counts_steps() -> None:
    curve = panels.LiveCurve(2)
    for step in (1, 2):
        curve({"step": step, "loss": 1.0 / step, "tokens_per_second": 10.0, "seconds": 1.0})
    assert curve._bar.value == 2 and "step 2 of 2" in curve._text.value and curve._image.value
