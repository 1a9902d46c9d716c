"""Figures of the lessons: axes in, axes out; colours that colour-blind readers can tell apart, and a second cue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lorahub_edu.data.batching import Batch

# From Okabe and Ito's palette, whose vermilion is too light for words, and orange and sky blue for lines on white.
# Every colour comes with a marker and a line style, so that no figure rests on colour alone.
COLOURS = ("#0072B2", "#C75300", "#009E73", "#CC79A7", "#995533", "#7744DD")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


def use_style() -> None:
    """Set matplotlib's defaults for the course: light grid, readable sizes, no frame on the right and top.

    A figure is dark ink on a white card in every theme: lessons call the fields of a picture bright and dark.
    """
    matplotlib.style.use("default")  # a dark style of the learner's own would draw white ink
    matplotlib.rcParams.update(
        {
            "figure.figsize": (7, 3.6),
            "figure.constrained_layout.use": True,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "font.size": 10,
            "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
        }
    )


def line_style(index: int) -> dict:
    """Colour, marker and line of the index-th series, for `Axes.plot`."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index % len(LINES)],
    }


def plot_series(
    axes: Axes, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str
) -> Axes:
    """Draw named series of (x, y), each with its own colour, marker and line."""
    for index, (name, (x, y)) in enumerate(series.items()):
        axes.plot(x, y, label=name, markersize=4, **line_style(index))
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.legend(frameon=False)
    return axes


def plot_training(axes: Axes, history: Sequence[Mapping[str, float]]) -> Axes:
    """Draw a run's training and validation loss over its steps."""
    series = {"training": ([r["step"] for r in history], [r["loss"] for r in history])}
    validated = [r for r in history if "validation_loss" in r]
    if validated:
        series["validation"] = ([r["step"] for r in validated], [r["validation_loss"] for r in validated])
    return plot_series(axes, series, "optimizer step", "loss (nats a token)")


def plot_matrix(axes: Axes, matrix: np.ndarray, title: str, limit: float | None = None) -> Axes:
    """Draw a matrix (rows, columns) on a scale that is symmetric around zero, up to `limit` or its largest entry."""
    limit = limit or float(np.abs(matrix).max()) or 1.0
    axes.imshow(matrix, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    return axes


def plot_block(axes: Axes, shapes: Mapping[str, Mapping[str, tuple[int, int]]], rank: int) -> Axes:
    """Draw a transformer block's matrices to scale, each with its adapter, under the residual stream.

    `shapes` are (out, in) by branch ("attention", "MLP") and matrix; A is drawn below its matrix, B to the right of it.
    """
    tallest = max(out for branch in shapes.values() for out, _ in branch.values())
    gap, stream, left = 0.12 * tallest, 1.6 * tallest, 0.0
    for branch, matrices in shapes.items():
        start = left
        for name, (out, width) in matrices.items():
            common = {"linewidth": 0.8, "zorder": 3}
            axes.add_patch(Rectangle((left, 0), width, out, fc="#E8E8E8", ec="#555555", hatch="..", **common))
            axes.add_patch(Rectangle((left, -0.3 * gap - rank), width, rank, fc=COLOURS[0], ec=COLOURS[0], **common))
            axes.add_patch(Rectangle((left + width + 0.3 * gap, 0), rank, out, fc=COLOURS[1], ec=COLOURS[1], **common))
            axes.text(left + width / 2, out + 0.2 * gap, f"{name}\n{out} × {width}", ha="center", va="bottom")
            left += width + rank + 1.4 * gap
        end = left - 1.4 * gap
        axes.annotate("", (start, 1.3 * tallest), (start, stream), arrowprops={"arrowstyle": "->"})
        axes.text(start + 0.2 * gap, 1.42 * tallest, f"RMSNorm, then {branch}", va="center", weight="bold")
        axes.annotate("", (end, stream - 0.6 * gap), (end, 1.3 * tallest), arrowprops={"arrowstyle": "->"})
        axes.text(end, stream, "+", ha="center", va="center", bbox={"boxstyle": "circle", "fc": "white"}, zorder=4)
        left += gap
    axes.annotate("", (left, stream), (-gap, stream), arrowprops={"arrowstyle": "->", "lw": 2})
    axes.text(left, stream + 0.5 * gap, "residual stream", ha="right", va="bottom")
    axes.text(0, -1.2 * gap, "A (below): rank × in", color=COLOURS[0], va="top", weight="bold")
    axes.text(2.2 * tallest, -1.2 * gap, "B (right): out × rank", color=COLOURS[1], va="top", weight="bold")
    axes.set(xlim=(-gap, left + gap), ylim=(-2.6 * gap, stream + 2 * gap), aspect="equal")
    axes.set_axis_off()
    return axes


def plot_attention(axes: Axes, weights: np.ndarray, tokens: Sequence[str], title: str) -> Axes:
    """Draw one head's attention (tokens, tokens): a row for each token that looks, a column for each one looked at."""
    axes.imshow(weights, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    place = axes.get_subplotspec()  # of a grid only the outer pictures have ticks, which take longest to draw
    axes.xaxis.set_visible(place.is_last_row())
    axes.yaxis.set_visible(place.is_first_col())
    if place.is_last_row():
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
    if place.is_first_col():
        axes.set_yticks(range(len(tokens)), tokens, fontsize=7)
    axes.grid(False)
    return axes


def plot_bars(axes: Axes, bars: Mapping[str, Sequence[float]], label: str, number_format: str = "{:,.3g}") -> Axes:
    """Draw horizontal bars at the median of some repeats, with their range, their value in digits and a hatch each."""
    hatches = ("", "//", "..", "xx", "--", "++", "\\\\")
    for index, (name, values) in enumerate(bars.items()):
        median, low, high = float(np.median(values)), min(values), max(values)
        colour = COLOURS[index % len(COLOURS)]
        axes.barh(name, median, color=colour, hatch=hatches[index % len(hatches)], edgecolor="white")
        if high > low:
            axes.errorbar(median, index, xerr=[[median - low], [high - median]], color="black", capsize=3)
        axes.annotate(number_format.format(median), (high, index), (4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    return axes


def plot_methods(
    axes: Axes, groups: Mapping[str, Mapping[str, tuple[float, float, float, float]]], y_label: str
) -> Axes:
    """Draw scores of methods against the number of parameters they train, in families of one colour and marker.

    `groups` has, by family and method, the number of parameters and the mean, lowest and highest score, 0 to 1. Scores
    are drawn in percent, and methods of nearly the same size side by side.
    """
    sizes = {name: point[0] for methods in groups.values() for name, point in methods.items()}
    places = side_by_side(sizes)
    x_label = "trained parameters"
    for together in _together(sizes):
        if len(together) > 1:
            axes.axvspan(
                places[together[0]] / 1.1, places[together[-1]] * 1.1, color="#888888", alpha=0.12, linewidth=0
            )
            x_label = "trained parameters (in a grey band: about one number, drawn side by side)"
    top = 0.0
    for index, (family, methods) in enumerate(groups.items()):
        style = line_style(index) | {"linestyle": "none"}
        if index >= len(COLOURS):
            style |= {"color": "black", "marker": "*", "markersize": 11}
        for place, (name, (_, *scores)) in enumerate(methods.items()):
            mean, low, high = (100 * score for score in scores)
            label = family if place == 0 else None
            axes.errorbar(places[name], mean, [[mean - low], [high - mean]], capsize=2, label=label, **style)
            above = {"textcoords": "offset points", "ha": "center", "va": "bottom", "rotation": 90, "fontsize": 7.5}
            axes.annotate(name, (places[name], high), (0, 6), **above)
            top = max(top, high)
    axes.set(xscale="log", xlabel=x_label, ylabel=y_label, ylim=(-3, 1.3 * top + 5))
    # Above the picture, so that its whole width is there for the names.
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return axes


def side_by_side(sizes: Mapping[str, float]) -> dict[str, float]:
    """Places on a logarithmic axis at which names don't cover each other, by name in the order of the sizes.

    Neighbours of nearly the same size are drawn around their middle, a factor of 1.15 each.
    """
    places = {}
    for names in _together(sizes):
        middle = (sizes[names[0]] * sizes[names[-1]]) ** 0.5
        places |= {name: middle * 1.15 ** (i - (len(names) - 1) / 2) for i, name in enumerate(names)}
    return places


def _together(sizes: Mapping[str, float]) -> list[list[str]]:
    """Names in the order of their sizes, in groups whose neighbours differ by less than a tenth."""
    groups: list[list[str]] = []
    for name in sorted(sizes, key=lambda name: sizes[name]):
        if groups and sizes[name] < 1.1 * sizes[groups[-1][-1]]:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def plot_batches(axes: Axes, batches: Sequence[Batch]) -> Axes:
    """Draw micro-batches as bars of tokens: solid is rows, hatched is padding, a gap parts two micro-batches."""
    wholes, rows, y = [], [], 0.0  # (y, width) and (y, start, length)
    for batch in batches:
        width, packed = batch.input_ids.shape[1], batch.segment_lengths
        for lengths in [packed] if packed else [[length] for length in batch.attention_mask.sum(1).tolist()]:
            wholes.append((y, width))
            rows += zip([y] * len(lengths), np.cumsum([0, *lengths[:-1]]), lengths, strict=True)
            y += 1
        y += 0.6
    places, widths = zip(*wholes, strict=True)
    axes.barh(places, widths, color="white", edgecolor="#888888", hatch="///")
    places, starts, lengths = zip(*rows, strict=True)
    axes.barh(places, lengths, left=starts, color=COLOURS[0], edgecolor="white")
    axes.set(xlabel="tokens", yticks=[])
    axes.grid(False)
    return axes
