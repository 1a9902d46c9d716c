"""Panels that mix modules by hand: a chat with base and mix side by side, and a mixing desk on which a search can play.

A thread of the panel computes, so its sliders and buttons work meanwhile. A newer position of a slider ends what is
computed for an older one: of a fast drag only the last position is computed.
"""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import ipywidgets
import numpy as np

from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.errors import CourseError
from lorahub_edu.hub.adapt import SearchConfig
from lorahub_edu.hub.searches import Space, make_search
from lorahub_edu.show.chat import Chat

WIDE, HALF = ipywidgets.Layout(width="98%"), ipywidgets.Layout(width="50%", padding="0 1em 0 0")
COLUMNS = ipywidgets.Layout(grid_template_columns="repeat(auto-fill, minmax(300px, 1fr))", width="98%")
LIMIT, STEP = 1.5, 0.05  # of a slider; a search's candidates lie between two steps
_shown: dict[tuple, ipywidgets.VBox] = {}


def chat_panel(
    chat: Chat,
    *,
    start: str = "",
    weights: Mapping[str, float] | None = None,
    max_new_tokens: int = 60,
    examples: Sequence[PromptedRow] = (),
    search: SearchConfig | None = None,
) -> ipywidgets.VBox:
    """A line to type in, a slider a module, and both answers side by side; display it as the last line of a cell.

    With `examples` it is a mixing desk: each move of a slider shows the loss on them, then a new answer. With a
    `search` a button lets it play its candidates on the same sliders; one with gradients can't. `start` is answered
    before the panel is shown, so that a saved page shows an answer. `weights` None keeps the chat's own.
    """
    if weights is not None:
        chat.use(weights)
    desk = _Desk(chat, start, max_new_tokens, examples, search)
    if start:
        desk.compute()
    key = (chat.modules.names, bool(examples))
    if key in _shown:  # of an earlier run of the cell: open widgets live as long as the kernel, and with them the model
        _close(_shown[key])
    _shown[key] = desk.panel
    return desk.panel


def _close(widget: ipywidgets.Widget) -> None:
    for child in getattr(widget, "children", ()):
        _close(child)
    widget.close()


class _Desk:
    """The widgets of a panel, and the one thread that computes for them."""

    def __init__(
        self, chat: Chat, line: str, max_new_tokens: int, examples: Sequence[PromptedRow], search: SearchConfig | None
    ) -> None:
        self.chat, self.max_new_tokens, self.examples, self.search = chat, max_new_tokens, examples, search
        self.line = ipywidgets.Text(value=line, placeholder="Type and press Enter", layout=WIDE, description="You")
        self.note, self.loss, *self.sides = (ipywidgets.HTML(layout=layout) for layout in ({}, {}, HALF, HALF))
        self.sliders = [
            ipywidgets.FloatSlider(
                value=weight, min=-LIMIT, max=LIMIT, step=STEP, description=name, readout_format=".2f",
                style={"description_width": "8em"}, layout=ipywidgets.Layout(width="auto"),
            )
            for name, weight in zip(chat.modules.names, chat.weights, strict=True)
        ]  # fmt: skip
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._job: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        answer, self.stop = (ipywidgets.Button(description=words) for words in ("Answer", "Stop"))
        buttons = [answer, self.stop]
        answer.on_click(lambda _button: self.ask(self.compute))
        self.line.on_submit(lambda _line: self.ask(self.compute))
        self.stop.on_click(lambda _button: self._stop.set())
        self.stop.disabled = True
        if search:
            buttons.append(ipywidgets.Button(description="Let the search play"))
            buttons[-1].on_click(lambda _button: self.ask(self.play))
        for slider in self.sliders:
            slider.observe(self._moved, names="value")
        self._show(("", ""))
        rows = [ipywidgets.HBox([*buttons, self.note]), *([self.loss] if examples else [])]
        mixer = ipywidgets.GridBox(self.sliders, layout=COLUMNS)
        self.panel = ipywidgets.VBox([self.line, *rows, mixer, ipywidgets.HBox(self.sides)])

    def _show(self, texts: Sequence[str]) -> None:
        for side, label, text in zip(self.sides, ("base", "tuned"), texts, strict=True):
            side.value = f"<b>{label}</b><br>" + html.escape(text).replace("\n", "<br>")

    def _moved(self, change: dict) -> None:
        weights, name = dict(zip(self.chat.modules.names, self.chat.weights, strict=True)), change["owner"].description
        if abs(change["new"] - weights[name]) < STEP / 2:  # the search moved it, or the browser rounded it
            return
        self.chat.use(weights | {name: change["new"]})
        if self.examples:
            self.ask(self.compute)

    def ask(self, job: Callable[[], None]) -> None:
        """Do this next; what is under way ends with its next token or candidate."""
        with self._lock:
            self._stop.set()
            self._job = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def _work(self) -> None:
        self.stop.disabled = False
        while True:
            with self._lock:
                job, self._job = self._job, None
                if job is None:
                    self.stop.disabled = True
                    self._thread = None
                    return
                self._stop.clear()
            try:
                job()
            except Exception as error:  # nobody else would tell: the thread belongs to no cell
                self.note.value = html.escape(str(error) if isinstance(error, CourseError) else repr(error))

    def compute(self, told: str = "") -> None:
        """The loss on the examples, then both answers to the line, and what there is to tell."""
        if self.examples:
            self._score()
        if self.line.value and not self._stop.is_set():
            self.note.value = "answering …"
            said = self.chat.answer(self.line.value, self._show, stop=self._stop, max_new_tokens=self.max_new_tokens)
            self.note.value = told + str(said)

    def _score(self) -> float:
        scores, many = self.chat.score(self.examples), len(self.examples)
        right = int(scores.strict.sum())
        self.loss.value = f"<b>{scores.losses[0]:.3f}</b> nats a token on {many} examples, {right} of them right"
        return float(scores.losses[0])

    def play(self) -> None:
        """The search from its beginning, each candidate on the sliders as it is scored; then the best of them."""
        config, size = self.search.filled(), Space(len(self.sliders))
        moves, algorithm = make_search(config.optimizer, size, config.budget, config.seed, **config.options)
        objectives, played = None, []
        with suppress(StopIteration):
            while True:
                candidates, losses = moves.send(objectives), []  # (P, N); None starts the search
                for number, weights in enumerate(candidates, len(played) + 1):
                    if self._stop.is_set():
                        return
                    self._put(weights)
                    losses.append(self._score())
                    self.note.value = f"{algorithm}: candidate {number} of {config.budget}"
                objectives = config.objectives(losses, candidates, len(self.examples))  # (P,)
                played += zip(np.nan_to_num(objectives, nan=np.inf), candidates, strict=True)
        self._put(min(played, key=lambda pair: pair[0])[1])
        self.compute(f"{algorithm}: the best of {len(played)} candidates; ")

    def _put(self, weights: np.ndarray) -> None:
        self.chat.use(dict(zip(self.chat.modules.names, weights, strict=True)))
        for slider, weight in zip(self.sliders, weights, strict=True):
            slider.value = float(weight)
