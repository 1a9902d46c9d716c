"""Attacks by what an answer returns or sends: objects that lie, numbers that compare with nothing, forged frames."""

from __future__ import annotations

import os
import pickle
import time

import pytest
from grading_arena import Attack, attack, passed, sharing

from lorahub_grader.inside.protocol import LENGTHS, Channel, Codec, ProtocolError

LIAR = "class Liar({base}):\n    def __eq__(self, other):\n        return True\n    __hash__ = None\n"
# The answer writes to the channel itself: every descriptor above the standard ones.
SEND = (
    "import os, json, struct\n\ndef send(text, more=b'', claim=None):\n"
    "    text = text.encode()\n    head = struct.pack('!IQ', len(text), len(more) if claim is None else claim)\n"
    "    os.write(3, head + text + more)\n\n"
)
LYING = [
    attack("equal to everything", "easy", LIAR.format(base="") + "easy = lambda x: Liar()"),
    attack("a number equal to everything", "easy", LIAR.format(base="int") + "easy = lambda x: Liar()"),
    attack("a word equal to everything", "easy", LIAR.format(base="str") + "easy = lambda x: Liar()"),
    attack("a complex number equal to everything", "easy", LIAR.format(base="complex") + "easy = lambda x: Liar(1j)"),
    attack("a tensor of its own class", "late", "import torch\nclass Liar(torch.Tensor):\n"
           "    @classmethod\n    def __torch_function__(cls, function, types, args=(), kwargs=None):\n"
           "        return True\nlate = lambda x: torch.zeros(4).as_subclass(Liar)"),
    attack("__array__ looks at the caller", "array", "import sys\nclass Liar:\n    def __array__(self, *a, **k):\n"
           "        frame = sys._getframe()\n        while 'expected' not in frame.f_globals:\n"
           "            frame = frame.f_back\n        return frame.f_globals['expected']\narray = lambda x: Liar()"),
    attack("arithmetic that lies", "near", "class Liar(float):\n    def __sub__(self, other):\n        return 0.0\n"
           "near = lambda x: Liar(9)"),
    attack("comparison that lies", "far", "class Liar(float):\n    def __sub__(self, other):\n        return self\n"
           "    def __abs__(self):\n        return self\n    def __le__(self, other):\n        return True\n"
           "far = lambda x: Liar(9)"),
    attack("NaN", "near", "near = lambda x: float('nan')"),
    attack("infinity", "far", "far = lambda x: float('inf')"),
    attack("an infinity that JSON makes", "far", "import json\nfar = lambda x: json.loads('1e999')"),
    attack("NaN in numpy", "near", "import numpy\nnear = lambda x: numpy.float64('nan')"),
    attack("NaN in a tensor", "near", "import torch\nnear = lambda x: torch.tensor(float('nan'))"),
]  # fmt: skip


@pytest.mark.parametrize("case", LYING, ids=lambda case: case.name)
def test_a_lying_reply_gains_nothing_and_would_have(case: Attack, arena, walls) -> None:
    answers = {"easy": "easy = None"} | dict(case.answers)
    assert not passed(arena, answers, walls, "bubblewrap")
    assert set(case.gains) <= passed(sharing(arena), answers, walls, "bubblewrap")


FORGED = {
    "a verdict instead of a value": "send(json.dumps([[], {'value': [271828.0, None], 'passed': True, 'number': 0}]))",
    "a reply in advance": "send(json.dumps([[], {'value': [None, None], 'number': -1}]))",
    "a reply without a number": "send(json.dumps([[], {'value': [271828.0, None]}]))",
    "an end that never was": "send(json.dumps([[], {'ending': {'reason': ''}, 'number': 1}]))",
    "no JSON": "send('{' * 50)",
    "no frame": "os.write(3, b'x' * 1000)",
    "an enormous length": "os.write(3, struct.pack('!IQ', 2**32 - 1, 2**63))",
    "more bytes than said": "send(json.dumps([[7], {}]), b'1')",
    "very deep": "send(json.dumps([[], {}])[:-3] + '[' * 100000 + ']' * 100000 + '}]')",
    "a call back that was not offered": "send(json.dumps([[], {'callback': 0, 'arguments': [[], {'dict': []}]}]))",
    "a kind that runs code": "send(json.dumps([[], {'value': [{'pickle': 'x'}, None], 'number': 3}]))",
    "a shape too large": "send(json.dumps([[1], {'value': {'tensor': ['float32', [10**9], 0]}, 'number': 3}]), b'1')",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_frames_gain_nothing(name: str, arena, walls) -> None:
    forging = SEND + FORGED[name] + "\ndef hard(x):\n    " + FORGED[name] + "\n    return 0.0"
    assert passed(arena, {"hard": forging}, walls, "bubblewrap") <= {"easy"}


def test_verdicts_sent_in_advance_count_only_where_the_answers_report_them(arena, walls) -> None:
    verdicts = "for n in range(60):\n    send(json.dumps([[], {'outputs': [], 'error': None, 'number': n}]))\n"
    answers = {"easy": "easy = None", "hard": SEND + verdicts}
    assert passed(arena, answers, walls, "bubblewrap") == set()
    assert passed(sharing(arena), answers, walls, "bubblewrap") == {"easy", "hard"}


@pytest.fixture
def pipe():
    """A channel whose other end the test writes itself."""
    reader, writer = os.pipe()
    yield Channel(reader, writer, bytes_limit=1000), writer
    os.close(reader)
    os.close(writer)


def test_a_huge_reply_is_refused_before_it_takes_memory(pipe) -> None:
    channel, writer = pipe
    os.write(writer, LENGTHS.pack(2, 1001))
    with pytest.raises(ProtocolError, match="too large"):
        channel.receive(time.monotonic() + 5)
    free = Channel(
        channel.reader, channel.writer, bytes_limit=1 << 62
    )  # the control: without the limit it would wait for it
    os.write(writer, LENGTHS.pack(2, 1001) + b"[]")
    with pytest.raises(ProtocolError, match="in time"):
        free.receive(time.monotonic() + 0.05)


def test_a_pickle_is_only_a_thing_that_stays_where_it_is(arena, walls, tmp_path) -> None:
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    refused = Codec(lambda value: {"object": [1, type(value).__name__]}, lambda message: message)
    message, blobs = refused.encode(Payload())
    assert message == {"object": [1, "Payload"]} and blobs == [] and not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Payload()))  # the control: a grader that unpickles replies
    assert (tmp_path / "ran").exists()
    code = "import os\nclass P:\n    def __reduce__(self):\n        return os.system, ('true',)\nhard = lambda x: P()"
    assert passed(arena, {"hard": code}, walls, "bubblewrap") <= {"easy"}
