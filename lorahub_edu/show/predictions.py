"""Predictions: asked before a result, kept on this machine, and shown beside what was then measured.

A guess is one of some choices, a number on a slider, or a curve of a few points. How far off it is, is 0 or 1 for a
choice; for a number its distance from the measured value as a share of the slider's length; for a curve the mean of
its points.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import Markdown, display

from lorahub_edu.errors import CourseError
from lorahub_edu.results import Table
from lorahub_edu.show import figures, panels, progress

Guess = str | float | list[float]
CLOSE = 0.15  # of the slider's length
FARTHEST = 100.0  # a factor that stands for all larger ones, and for a guess of zero
SKIPPED = "skipped"
RECALL = json.loads(resources.files("lorahub_edu.data").joinpath("recall.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Asked:
    """A question as a lesson puts it: `choices`, or a range of numbers, with the `points` of a curve's axis."""

    id: str
    question: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    points: tuple[str, ...] = ()

    def checked(self, guess: object) -> Guess:
        """The guess, if it is one. Raises CourseError where it is none."""
        if self.choices:
            if guess not in self.choices:
                raise CourseError(f"{self.id} has the choices {', '.join(self.choices)}, not {guess!r}.")
            return guess
        numbers = guess if self.points and isinstance(guess, list | tuple) else [guess]
        if len(numbers) != max(1, len(self.points)) or not all(isinstance(n, int | float) for n in numbers):
            wanted = f"{len(self.points)} numbers" if self.points else "a number"
            raise CourseError(f"{self.id} asks for {wanted} from {self.low:g} to {self.high:g}, not {guess!r}.")
        return [float(n) for n in numbers] if self.points else float(guess)

    def off(self, guess: Guess, measured: Guess) -> float:
        """How far a guess is from what was measured: 0 is right, `CLOSE` is near."""
        if self.choices:
            return float(guess != measured)
        pairs = zip(guess, measured, strict=True) if self.points else [(guess, measured)]
        length = self._place(self.high) - self._place(self.low)
        return statistics.fmean(abs(self._place(a) - self._place(b)) / length for a, b in pairs)

    def _place(self, number: float) -> float:
        return math.log(max(number, self.low / 10)) if self.log else number


_ASKED: dict[str, Asked] = {}
_MADE: dict[str, dict] = {}  # in this kernel: nothing may be kept on disk


def made() -> dict[str, dict]:
    """The predictions by id: each has "question" and "guess", and once it was measured "measured" and "off"."""
    return dict(sorted((progress.read().predictions | _MADE).items()))


def _keep(id: str, prediction: dict) -> None:
    _MADE[id] = prediction
    progress.note("predictions", {id: prediction})


def predict(
    id: str,
    question: str,
    choices: Sequence[str] = (),
    *,
    low: float = 0.0,
    high: float = 1.0,
    log: bool = False,
    points: Sequence[object] = (),
    guess: object = None,
) -> ipywidgets.VBox:
    """Ask for a prediction; without a mouse, or where no widget is shown, call it with `guess=`.

    Raises CourseError: the guess is no choice, or not as many numbers as were asked for.
    """
    asked = _ASKED[id] = Asked(id, question, tuple(choices), low, high, log, tuple(map(str, points)))
    said = ipywidgets.HTML()
    slider = ipywidgets.FloatLogSlider if log else ipywidgets.FloatSlider
    limits = {"min": math.log10(low), "max": math.log10(high)} if log else {"min": low, "max": high}
    middle = {"value": math.sqrt(low * high) if log else (low + high) / 2, "readout_format": ".3g"}
    if choices:
        fields = [ipywidgets.RadioButtons(options=list(choices), value=None)]
    elif points:
        fields = [slider(**limits, **middle, description=label, orientation="vertical") for label in asked.points]
    else:
        fields = [slider(**limits, **middle, layout=ipywidgets.Layout(width="60%"))]
    for field, label in zip(fields, asked.points or (question,), strict=True):
        field.tooltip = label  # what a screen reader says
    keep, skip = ipywidgets.Button(description="Keep"), ipywidgets.Button(description="Skip")

    def note(value: object) -> None:
        _keep(id, {"question": question, "guess": value})
        said.value = "Skipped." if value == SKIPPED else f"Kept: {_words(value)}."

    def on_keep(_button: object) -> None:
        values = [field.value for field in fields]
        if None in values:
            said.value = "Choose one first."
        else:
            note(asked.checked(values if points else values[0]))

    keep.on_click(on_keep)
    skip.on_click(lambda _button: note(SKIPPED))
    earlier = made().get(id)
    if guess is not None:
        note(asked.checked(guess))
    elif earlier:
        said.value = f"Kept before: {_words(earlier['guess'])}."
    example = asked.choices[0] if choices else [low] * len(points) if points else low
    display(Markdown(f"**Predict {id}.** {question}. Where no panel shows, add `guess={example!r}` to the call."))
    return ipywidgets.VBox([ipywidgets.HBox(fields), ipywidgets.HBox([keep, skip, said])])


def compare(id: str, value: object) -> Guess | None:
    """Keep what was measured beside the prediction, print both, and return the guess where there is one."""
    there, asked = made().get(id), _ASKED.get(id)
    if not there or not asked or there["guess"] == SKIPPED:
        return None
    value = value if asked.choices else [float(v) for v in value] if asked.points else float(value)
    off = asked.off(there["guess"], value)
    _keep(id, there | {"measured": value, "off": off})
    print(f"You predicted {_words(there['guess'])}, measured is {_words(value)}: {_judged(off)}.")
    return there["guess"]


def table(lesson: str = "") -> Table:
    """The predictions of a lesson, or of all, beside what was measured; the caption says how many were close."""
    rows, offs = [], []
    for id, one in made().items():
        if id.startswith(lesson) and one["guess"] != SKIPPED:
            offs += [one["off"]] if "off" in one else []
            judged = _judged(one["off"]) if "off" in one else "not measured yet"
            rows.append((id, one["question"], _words(one["guess"]), _words(one.get("measured", "–")), judged))
    surprised = sum(off > CLOSE for off in offs)
    caption = (
        f"{len(offs) - surprised} of {len(offs)} predictions were close; {surprised} surprised you." if offs else ""
    )
    return Table(("", "prediction", "you", "measured", ""), tuple(rows), caption or "No prediction was made.")


def calibration() -> Markdown:
    """Show how far off the predictions of the whole course were, as a picture; the same in words.

    A choice is right or wrong. A number is off by a factor, and a curve by its mean distance, as in `Asked.off`.
    """
    kept = {id: one for id, one in made().items() if "off" in one}
    of = {kind: {id: one for id, one in kept.items() if isinstance(one["guess"], kind)} for kind in (str, float, list)}
    bars, words = {}, []
    if of[str]:
        right = sum(one["off"] == 0 for one in of[str].values())
        bars["choices"] = {"right": [right], "wrong": [len(of[str]) - right]}
        words.append(f"Choices: {right} of {len(of[str])} right.")
    factors = {id: _factor(one["guess"], one["measured"]) for id, one in of[float].items()}
    shares = {id: 100 * one["off"] for id, one in of[list].items()}
    for label, said, offs in (
        ("numbers: factor", "Numbers: off by a factor of", factors),
        ("curves: %", "Curves: off by this % of the slider:", shares),
    ):
        if offs:
            bars[label] = {id: [off] for id, off in offs.items()}
            words.append(
                f"{said} {statistics.median(offs.values()):.3g} at the median, {max(offs.values()):.3g} at most."
            )
    if not words:
        return Markdown("No prediction was measured yet. Answer a lesson's questions, then run it to its end.")
    figure, axes = plt.subplots(1, len(bars), figsize=(7, 1.4 + 0.25 * max(map(len, bars.values()))), squeeze=False)
    for place, (label, values) in zip(axes.flat, bars.items(), strict=True):
        figures.plot_bars(place, values, label)
    panels.show(figure, alt=" ".join(words))
    return Markdown(" ".join(words))


def of_class(folder: Path) -> Table:
    """What a class got wrong, from its `progress --predictions` exports: how many were close, and what others said.

    Raises CourseError: there is no export in the folder, or a file that is none.
    """
    answers: dict[str, list[dict]] = {}
    files = sorted(folder.glob("*.json"))
    for file in files:
        try:
            for id, one in json.loads(file.read_text(encoding="utf-8")).items():
                if "off" in one:
                    answers.setdefault(id, []).append(
                        {key: one[key] for key in ("question", "guess", "measured", "off")}
                    )
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise CourseError(f"{file} is no export of `lorahub-edu progress --predictions`: take it away.") from error
    if not answers:
        raise CourseError(f"No measured prediction is in {folder}/*.json: collect `progress --predictions` there.")
    rows = []
    for id, given in sorted(answers.items()):
        others = Counter(_words(one["guess"]) for one in given if one["off"] > CLOSE)
        often = ", ".join(f"{said} ({count} ×)" for said, count in others.most_common(3))
        measured = Counter(_words(one["measured"]) for one in given).most_common(1)[0][0]
        rows.append((id, given[0]["question"], f"{len(given) - others.total()} of {len(given)}", often, measured))
    return Table(("", "prediction", "close", "others, most often", "measured"), tuple(rows), f"Files: {len(files)}.")


def recall(lesson: str) -> Markdown:
    """Three questions on a lesson ("07") and two on earlier ones, each with its answer folded away."""
    earlier = [pair for number, pairs in sorted(RECALL.items()) if number < lesson for pair in pairs]
    start = 5 * int(lesson)  # other ones in every lesson
    again = [earlier[(start + shift) % len(earlier)] for shift in (0, len(earlier) // 2)] if earlier else []
    return Markdown(
        "\n\n".join(
            f"{number}. {question}\n\n<details><summary>Answer</summary>\n\n{answer}\n\n</details>"
            for number, (question, answer) in enumerate([*RECALL[lesson], *again], 1)
        )
    )


def _factor(guess: float, measured: float) -> float:
    """The larger of two numbers over the smaller, at most `FARTHEST`; 1 for equal ones, zeros too."""
    low, high = sorted((guess, measured))
    if low == high:
        return 1.0
    return FARTHEST if low <= high / FARTHEST else high / low


def _words(value: object) -> str:
    numbers = value if isinstance(value, list | tuple) else [value]
    return ", ".join(f"{n:.3g}" if isinstance(n, int | float) else str(n) for n in numbers)


def _judged(off: float) -> str:
    return "close" if off <= CLOSE else "a surprise"
