"""Interactive panels of the lessons, each with a picture that stands in where no kernel runs."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import Image, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lorahub_edu.show import figures


def figure_png(figure: Figure) -> bytes:
    """A figure as PNG bytes, drawn once: `savefig` would draw a figure with a layout twice."""
    buffer = io.BytesIO()
    figure.set_dpi(100)
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def show(figure: Figure, alt: str) -> None:
    """Display a figure with a text that says what it shows, for readers who can't see it, and close it."""
    display(Image(figure_png(figure), alt=alt, format="png"))
    plt.close(figure)


def slider_panel(
    label: str,
    values: list[int] | list[float],
    draw: Callable[[Figure, float], str],
    *,
    start: int | float | None = None,
    size: tuple[float, float] = (7, 3.6),
) -> ipywidgets.VBox:
    """A slider over a few values, with a picture and a sentence that follow it; display it as a cell's last line.

    `draw` draws into an empty figure for a value, and returns the sentence that reads it.
    """
    return sliders_panel({label: values}, draw, start={} if start is None else {label: start}, size=size)


def sliders_panel(
    sliders: Mapping[str, Sequence[float]],
    draw: Callable[..., str],
    *,
    start: Mapping[str, float] | None = None,
    size: tuple[float, float] = (7, 3.6),
    continuous: bool = True,
    then: Callable[..., str] = lambda *_values: "",
) -> ipywidgets.VBox:
    """Several sliders, by label, with one picture and one sentence that follow them; display it as a cell's last line.

    The figure is drawn once into memory and shown as an image of fixed size, which answers a key press faster than a
    new figure in an output area. `draw` draws into an empty figure for one value of each slider, always on the same
    axes, and returns the sentence (HTML) that reads it. Sliders begin at `start` or their first value. `size` is in
    inches. Not `continuous` waits until a slider is released. `then` takes the same values. What it returns is added to
    the sentence once the picture is there: for what takes long.
    """
    widgets = [
        ipywidgets.SelectionSlider(
            options=list(values),
            value=(start or {}).get(label, values[0]),
            description=label,
            continuous_update=continuous,
            style={"description_width": "initial"},
            layout=ipywidgets.Layout(width="60%"),
        )
        for label, values in sliders.items()
    ]
    image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(width=f"{int(size[0] * 100)}px"))
    sentence = ipywidgets.HTML()

    places: list[object] = []  # of the axes: finding them takes as long as drawing, so they stay where they were first

    def update(_change: object = None) -> None:
        figure = Figure(figsize=size, layout="none" if places else "constrained")  # to clear an old one takes longer
        values = [slider.value for slider in widgets]
        sentence.value = draw(figure, *values)
        for axes, place in zip(figure.axes, places, strict=False):
            axes.set_position(place)
        image.value = figure_png(figure)
        places[:] = [axes.get_position(original=True) for axes in figure.axes]
        sentence.value += then(*values)

    for slider in widgets:
        slider.observe(update, names="value")
    update()
    return ipywidgets.VBox([*widgets, image, sentence])


class LiveCurve:
    """A loss curve that grows while training runs: `train(..., on_step=LiveCurve(steps))`, steps of the whole run."""

    def __init__(self, steps: int) -> None:
        self.history: list[dict] = []
        self._steps = steps
        self._bar = ipywidgets.IntProgress(max=steps, layout=ipywidgets.Layout(width="60%"))
        self._text = ipywidgets.HTML()
        self._image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(width="700px"))
        display(ipywidgets.VBox([ipywidgets.HBox([self._bar, self._text]), self._image]))

    def __call__(self, record: dict) -> None:
        self.history.append(record)
        self._bar.value = record["step"]
        left = (self._steps - record["step"]) * sum(r["seconds"] for r in self.history) / len(self.history)
        self._text.value = (
            f"step {record['step']} of {self._steps}, loss {record['loss']:.3f}, "
            f"{record['tokens_per_second']:,.0f} tokens/s, {left:.0f} s left"
        )
        figure = Figure(figsize=(7, 3), layout="constrained")
        figures.plot_training(figure.subplots(), self.history)
        self._image.value = figure_png(figure)
