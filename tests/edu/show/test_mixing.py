"""A panel answers and its sliders mix; a desk shows the mixed model's own loss, and a search plays its own moves."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import hub_modules
import ipywidgets
import pytest

from lorahub_edu.hub.adapt import SearchConfig, adapt
from lorahub_edu.hub.compose import stack
from lorahub_edu.models import tiny
from lorahub_edu.show import mixing
from lorahub_edu.show.chat import Chat

SEARCH = SearchConfig("cma", 12, seed=3)


@pytest.fixture
def files():
    return [hub_modules.random_module(tiny.model(), seed, std=0.3) for seed in range(2)]


@pytest.fixture
def examples():
    return hub_modules.rows()


@pytest.fixture
def chat(files) -> Chat:
    return Chat(tiny.model(), tiny.tokenizer(), stack(files), composition="paper")


class Parts:
    """A panel's widgets by what they are."""

    def __init__(self, panel: ipywidgets.VBox) -> None:
        line, row, *loss, mixer, sides = panel.children
        self.line, self.buttons, self.note = line, {b.description: b for b in row.children[:-1]}, row.children[-1]
        self.loss, self.sliders, self.sides = (loss or [None])[0], mixer.children, sides.children


def settle() -> None:
    """Wait until no panel computes."""
    for thread in threading.enumerate():
        if thread.daemon and "_work" in thread.name:
            thread.join(120)
            assert not thread.is_alive()


def test_the_panel_answers_and_its_sliders_mix(chat: Chat) -> None:
    parts = Parts(mixing.chat_panel(chat, start="Name <b>a</b> colour.", weights={"m0": 1.0}, max_new_tokens=4))
    assert "tokens/s" in parts.note.value and parts.sides[0].value.startswith("<b>base</b>")
    assert parts.loss is None and set(parts.buttons) == {"Answer", "Stop"} and parts.buttons["Stop"].disabled
    assert [(s.description, s.value) for s in parts.sliders] == [("m0", 1.0), ("m1", 0.0)]
    tuned = parts.sides[1].value
    parts.sliders[0].value = 0.0
    assert chat.weights == (0.0, 0.0) and parts.sides[1].value == tuned, (
        "in a chat an answer comes when it is asked for"
    )
    parts.buttons["Answer"].click()
    settle()
    assert parts.sides[1].value != tuned and parts.buttons["Stop"].disabled
    parts.line.value = "word " * 2000
    parts.buttons["Answer"].click()
    settle()
    assert "must stay within" in parts.note.value


def test_a_moved_slider_shows_the_mixed_models_own_loss(chat: Chat, files, examples) -> None:
    parts = Parts(mixing.chat_panel(chat, start="Say c", max_new_tokens=3, examples=examples))
    before = parts.sides[1].value
    parts.sliders[0].value, parts.sliders[1].value = 1.2, -0.5
    settle()
    merged = hub_modules.merged(tiny.model(), hub_modules.deltas(files, [1.2, -0.5], "paper"))
    expected, _ = hub_modules.plain_losses(merged, examples)
    shown = float(parts.loss.value.partition("<b>")[2].partition("</b>")[0])
    assert shown == pytest.approx(expected, abs=6e-4) and "on 5 examples" in parts.loss.value
    assert parts.sides[1].value != before


def test_of_a_fast_drag_only_the_last_position_is_computed(chat: Chat, examples, monkeypatch) -> None:
    scored, score = [], chat.score
    monkeypatch.setattr(chat, "score", lambda rows: (time.sleep(0.05), scored.append(chat.weights), score(rows))[-1])
    parts = Parts(mixing.chat_panel(chat, examples=examples))
    places = [round(0.05 * step, 2) for step in range(1, 21)]
    for place in places:
        parts.sliders[0].value = place
    settle()
    assert scored[-1] == (1.0, 0.5) and len(scored) <= 3


def test_a_browser_that_rounds_a_weight_moves_nothing(chat: Chat, examples) -> None:
    chat.use({"m0": 0.337, "m1": -0.112})
    parts = Parts(mixing.chat_panel(chat, examples=examples))
    parts.sliders[0].value, parts.sliders[1].value = 0.35, -0.1
    assert chat.weights == (0.337, -0.112) and not parts.loss.value
    parts.sliders[0].value = 0.4
    settle()
    assert chat.weights == (0.4, -0.112) and parts.loss.value


def test_a_search_plays_the_candidates_that_adapt_scores(chat: Chat, files, examples) -> None:
    found = adapt(tiny.model(), stack(files), examples, SEARCH)
    parts = Parts(mixing.chat_panel(chat, start="Say c", max_new_tokens=2, examples=examples, search=SEARCH))
    played = []
    parts.sliders[1].observe(lambda change: played.append([s.value for s in parts.sliders]), names="value")
    parts.buttons["Let the search play"].click()
    settle()
    assert played[: SEARCH.budget] == pytest.approx(found.history.weights)
    assert [s.value for s in parts.sliders] == pytest.approx(found.weights) == list(chat.weights)
    assert f"best of {SEARCH.budget} candidates" in parts.note.value and "tokens/s" in parts.note.value


def test_a_hand_on_a_slider_ends_the_play(chat: Chat, examples) -> None:
    parts = Parts(mixing.chat_panel(chat, examples=examples, search=SearchConfig("random", 100_000)))
    moved = threading.Event()
    parts.sliders[1].observe(lambda _change: moved.set(), names="value")
    parts.buttons["Let the search play"].click()
    assert moved.wait(120)
    parts.sliders[0].value = 1.25
    settle()
    assert chat.weights[0] == 1.25 and parts.buttons["Stop"].disabled


def test_a_second_run_of_the_cell_frees_the_first_ones_model(files, examples) -> None:
    def cell() -> weakref.ref:
        chat = Chat(tiny.model(), tiny.tokenizer(), stack(files))
        mixing.chat_panel(chat, start="Say c", max_new_tokens=2, examples=examples)
        return weakref.ref(chat.model)

    first, second = cell(), cell()
    gc.collect()
    assert first() is None and second() is not None
