"""What stands for an answer behaves like the answer: values, objects, calls back, changed arguments, errors, time."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from lorahub_edu.show import objects
from lorahub_edu.show.check import check
from lorahub_edu.show.objects import there
from lorahub_grader.inside.protocol import ProtocolError
from lorahub_grader.remote import AnswerError, Conversation, Handle, Remote, UnansweredError, write_back

CELLS = """
import numpy as np
import torch
from torch import nn

def echo(*arguments, **named):
    return arguments, named

def double(x):
    return 2 * x

def spoil(items, table, tensor, array, pair):
    items.append(4)
    items[0] = -1
    table["new"] = 1
    del table["old"]
    tensor.mul_(2)
    array[0] = 7
    pair[0][0] = 5
    return None

class Layer(nn.Module):
    kind = "linear"
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(float(width)))
        self.inner = nn.Linear(1, 1)
    def forward(self, x):
        return x * self.weight
    def shifted(self, x, by=1):
        return self(x) + by

def width(layer):
    return len(layer.weight)

def same(layer, other):
    return layer is other

def minimum(f, start):
    return min(range(start), key=f)

class OwnError(Exception):
    pass

def fail(kind):
    raise {"value": ValueError, "own": OwnError, "todo": NotImplementedError, "exit": SystemExit}[kind]("because")

def mute():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError
    raise Mute

def slow():
    while True:
        pass

def odd(kind):
    grown = torch.ones(2, requires_grad=True) * 2
    return {"nan": float("nan"), "complex": 1j, "lambda": lambda: 3, "gradient": grown}[kind]

number = 12
"""


@pytest.fixture(scope="module")
def talk(request):
    """A conversation with an answer process that has run the cells above."""
    process = request.getfixturevalue("sandbox").open()
    made = Conversation(process, seconds=60, deadline=time.monotonic() + 600)
    reply, _ = made.ask({"do": "cell", "source": CELLS})
    assert reply["error"] is None
    yield made
    process.stop()


def name(talk: Conversation, word: str, keep: bool = False) -> Remote:
    return Remote(talk, {"name": word}, word, keep)


def test_arguments_and_results_are_copies_of_the_same_value(talk) -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    (a, b, c), named = name(talk, "echo")(x, [1, (2.5, "ü")], {"k": None}, flag=True)
    assert (
        torch.equal(a, x)
        and a.dtype == x.dtype
        and b == [1, (2.5, "ü")]
        and c == {"k": None}
        and named == {"flag": True}
    )
    assert name(talk, "double")(21) == 42 and talk.get({"name": "number"}) == 12
    assert np.array_equal(name(talk, "double")(np.array([1, 2])), [2, 4])


def test_arguments_that_an_answer_changes_are_changed_here_too(talk) -> None:
    items, table, tensor, array, pair = [1, 2], {"old": 0}, torch.ones(2), np.zeros(2), ([1], 2)
    talk.changed = False
    name(talk, "spoil")(items, table, tensor, array, pair)
    assert items == [-1, 2, 4] and table == {"new": 1} and pair == ([5], 2)
    assert tensor.tolist() == [2, 2] and array.tolist() == [7, 0] and talk.changed


def test_arguments_stay_when_nothing_is_written_back(talk) -> None:
    items = [1, 2]
    talk.writes_back, talk.changed = False, False
    try:
        name(talk, "spoil")(items, {"old": 0}, torch.ones(2), np.zeros(2), ([1], 2))
    finally:
        talk.writes_back = True
    assert items == [1, 2] and talk.changed


def test_changes_of_another_form_are_not_forced_on() -> None:
    old = [torch.ones(2), np.ones(2), (1,), {"a": [1]}]
    write_back(old, [torch.ones(3), np.ones(3), (1, 2), {"a": [2]}])
    assert old[0].shape == (2,) and old[1].shape == (2,) and old[2] == (1,) and old[3] == {"a": [2]}


def test_objects_stay_there_and_are_looked_at_from_here(talk) -> None:
    layer = name(talk, "Layer", keep=True)(3)
    assert isinstance(layer, Handle) and "Layer" in repr(layer)
    assert layer.kind == "linear" and torch.equal(layer.weight, torch.arange(3.0))
    assert torch.equal(layer(torch.ones(3)), torch.arange(3.0))
    assert torch.equal(layer.shifted(torch.ones(3), by=2), torch.arange(3.0) + 2)
    assert name(talk, "width")(layer) == 3 and name(talk, "same")(layer, layer) is True
    assert isinstance(layer.inner, Handle)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = layer.nothing


def test_a_library_can_be_used_where_the_answer_lives(talk) -> None:
    answer = name(talk, "width")
    linear = there(answer, torch.nn.Linear, 2, 3, bias=False)
    assert isinstance(linear, Handle)
    there(answer, objects.assign, linear, {"weight": torch.ones(3, 2)})
    assert torch.equal(there(answer, objects.output, linear, torch.ones(2)), torch.full((3,), 2.0))
    assert there(answer, objects.parameters, linear) == {"weight": ((3, 2), True)}
    found = there(answer, objects.gradients, linear, torch.ones(2))
    here = torch.nn.Linear(2, 3, bias=False)
    objects.assign(here, {"weight": torch.ones(3, 2)})
    assert torch.allclose(found["weight"], objects.gradients(here, torch.ones(2))["weight"])
    assert there(lambda: None, torch.nn.Linear, 2, 3).weight.shape == (3, 2)  # the same words work on an answer here


def test_functions_of_ours_are_called_back(talk) -> None:
    seen = []

    def f(x: int) -> int:
        seen.append(x)
        return (x - 3) ** 2

    assert name(talk, "minimum")(f, 10) == 3 and seen == list(range(10))


def test_a_test_may_refuse_how_it_is_called_back(talk) -> None:
    calls = []

    def f(x: int) -> int:
        calls.append(x)
        assert len(calls) <= 4, "too many calls"
        return x

    with pytest.raises(AssertionError, match="too many calls"):
        name(talk, "minimum")(f, 10)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        name(talk, "minimum")(lambda x: 1 // x, 10)
    assert name(talk, "double")(2) == 4  # and the talk goes on


@pytest.mark.parametrize(
    ("kind", "error"),
    [("value", ValueError), ("todo", NotImplementedError), ("own", AnswerError), ("exit", AnswerError)],
)
def test_errors_come_over_by_name_and_words(kind: str, error: type, talk) -> None:
    with pytest.raises(error, match="because") as caught:
        name(talk, "fail")(kind)
    assert type(caught.value).__name__ in ("ValueError", "NotImplementedError", "OwnError", "SystemExit")
    with pytest.raises(AnswerError):
        name(talk, "mute")()
    with pytest.raises(NameError, match="'nowhere'"):
        name(talk, "nowhere")()


def test_results_that_are_no_plain_data(talk) -> None:
    talk.codec.finite = True
    with pytest.raises(ProtocolError, match="NaN or an infinity"):
        name(talk, "odd")("nan")
    assert isinstance(name(talk, "odd")("complex"), Handle)
    assert name(talk, "odd")("lambda")() == 3
    assert name(talk, "odd")("gradient").tolist() == [2, 2]
    talk.codec.finite = False
    assert name(talk, "odd")("nan") != name(talk, "odd")("nan")
    with pytest.raises(TypeError, match="made|make it there"):
        name(talk, "double")(object())
    with pytest.raises(ProtocolError):
        name(talk, "double")(torch.ones(2, dtype=torch.complex64))


def test_a_call_that_does_not_end_costs_that_call_only(talk) -> None:
    talk.seconds = 1
    try:
        with pytest.raises(UnansweredError, match="within 1 seconds"):
            name(talk, "slow")()
    finally:
        talk.seconds = 60
    assert name(talk, "double")(4) == 8 and talk.lost == ""


def test_the_checks_work_through_it(talk) -> None:
    source = "def forward(x, W, A, B, alpha):\n    return x @ W.T + alpha / len(A) * (x @ A.T @ B.T)\n"
    wrong = "def wrong(x, W, A, B, alpha):\n    W += alpha / len(A) * (B @ A)\n    return x @ W.T\n"
    talk.ask({"do": "cell", "source": source + wrong})
    assert check("01.2", name(talk, "forward"), seed=1).passed
    report = check("01.2", name(talk, "wrong"), seed=1)
    assert not report.passed and "changed in place" in str(report)  # seen although the change happened over there


LAYER = """
class LoRALayer(torch.nn.Module):
    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.scaling = base{freeze}, alpha / rank
        self.lora_A = torch.nn.Parameter(torch.randn(rank, base.in_features))
        self.lora_B = torch.nn.Parameter(torch.{start}(base.out_features, rank))
    def forward(self, x):
        return self.base(x) + {scaling} * (x @ self.lora_A.T @ self.lora_B.T)
"""
RIGHT = {"freeze": ".requires_grad_(False)", "start": "zeros", "scaling": "self.scaling"}
WRONG = {
    "something else is trained too": {"freeze": ""},
    "start at the pretrained model": {"start": "ones"},
    "the scaling alpha / r is left out": {"scaling": "1"},
}


@pytest.mark.parametrize("words", [None, *WRONG])
def test_a_module_is_checked_there_as_it_is_here(words: str | None, talk) -> None:
    talk.ask({"do": "cell", "source": LAYER.format(**RIGHT | WRONG.get(words, {}))})
    report = check("01.5", name(talk, "LoRALayer", keep=True), seed=3)
    assert report.passed is (words is None) and (words or "") in str(report)
    assert talk.believed  # which parameters are trained is the word of a process that an answer shares


@pytest.mark.parametrize(
    "patch", ["", "\nfrom lorahub_edu.show import objects\nobjects.reached = lambda f, a, p: [1] * len(p)"]
)
def test_what_looks_at_gradients_there_is_taken_on_trust(patch: str, talk) -> None:
    source = "def forward(x, W, A, B, alpha):\n    return (x @ W.T + alpha / len(A) * (x @ A.T @ B.T)).detach()"
    talk.ask({"do": "cell", "source": source + patch})
    assert check("01.2", name(talk, "forward"), seed=3).passed is bool(patch) and talk.believed


def test_values_are_not_taken_on_trust(talk) -> None:
    talk.believed = False
    talk.ask({"do": "cell", "source": "def scaling(alpha, rank):\n    return alpha / rank"})
    assert check("00.1", name(talk, "scaling"), seed=3).passed and not talk.believed
