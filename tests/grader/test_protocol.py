"""Values cross as they are, whatever is malformed is refused, and nothing that crosses runs code."""

from __future__ import annotations

import math
import os
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorahub_grader.inside.protocol import (
    LENGTHS,
    Channel,
    ClosedError,
    Codec,
    DeadlineError,
    ProtocolError,
)


def refuse(value: object) -> dict:
    raise ProtocolError(f"no {type(value).__name__}")


CODEC = Codec(refuse, lambda message: refuse(message))


def round_trip(value: object, codec: Codec = CODEC) -> object:
    message, blobs = codec.encode(value)
    return codec.decode(message, [memoryview(blob) for blob in blobs])


scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=9)
keys = st.integers() | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(values)
@settings(max_examples=60, deadline=None)
def test_plain_values_come_back_equal_and_of_the_same_type(value) -> None:
    clean = round_trip(value)
    if "\\ud" not in ascii(value):  # half of a character can't be written anywhere: it becomes a question mark
        assert clean == value and type(clean) is type(value)


TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3)])
def test_tensors_come_back_to_the_last_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (4 * torch.randn(shape)).to(dtype)
    back = round_trip(tensor)
    assert back.dtype == dtype and back.shape == tensor.shape and torch.equal(back, tensor)


def test_views_parameters_and_arrays() -> None:
    grid = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(round_trip(grid.T), grid.T) and torch.equal(round_trip(grid[:, 1]), grid[:, 1])
    assert torch.equal(round_trip(grid[:1].expand(5, 4)), grid[:1].expand(5, 4))
    parameter = round_trip(torch.nn.Parameter(torch.ones(2)))
    assert parameter.requires_grad and parameter.is_leaf
    array = np.arange(6, dtype=np.int16).reshape(2, 3).T
    back = round_trip(array)
    assert back.dtype == array.dtype and np.array_equal(back, array)
    assert round_trip(np.float32(0.5)) == 0.5 and round_trip(torch.bfloat16) is torch.bfloat16
    back[0, 0] = 9  # what came over can be written


@pytest.mark.parametrize(
    "value",
    [1j, b"bytes", object(), range(3), torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse(), np.array(["a"])],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_data_is_not_copied(value) -> None:
    with pytest.raises(ProtocolError):
        CODEC.encode(value)


def test_nesting_without_end_is_refused() -> None:
    knot: list = []
    knot.append(knot)
    with pytest.raises(ProtocolError, match="nested"):
        CODEC.encode(knot)
    deep: object = 1
    for _ in range(60):
        deep = [deep]
    with pytest.raises(ProtocolError, match="nested"):
        CODEC.decode(deep, [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [1.0, math.nan], torch.tensor([math.inf])])
def test_numbers_that_are_none_are_refused_where_that_is_asked_for(value) -> None:
    strict = Codec(refuse, refuse, finite=True)
    with pytest.raises(ProtocolError, match="NaN or an infinity"):
        round_trip(value, strict)
    back = round_trip(value)
    assert torch.equal(torch.as_tensor(back).isfinite(), torch.as_tensor(value).isfinite())


BAD = [
    {"tensor": ["float32", [2], 0, False]},  # too few bytes
    {"tensor": ["float32", [-1], 0, False]},
    {"tensor": ["float32", [1.0], 0, False]},
    {"tensor": ["float32", [1], 1, False]},
    {"tensor": ["float32", [1], -1, False]},
    {"tensor": ["float32", [1] * 99, 0, False]},
    {"tensor": ["complex64", [1], 0, False]},
    {"tensor": ["os.system", [4], 0, False]},
    {"array": ["bfloat16", [2], 0]},
    {"array": ["object", [1], 0]},
    {"tensor": "float32"},
    {"float": "1.5"},
    {"dict": [[[], 1]]},
    {"dict": [[1]]},
    {"set": [[1]]},
    {"list": 1, "tuple": 2},
    {"pickle": "gASV"},
    {},
]


@pytest.mark.parametrize("message", BAD, ids=str)
def test_malformed_messages_are_refused(message) -> None:
    with pytest.raises(ProtocolError):
        CODEC.decode(message, [memoryview(bytes(4))])


def test_truth_values_are_zero_or_one() -> None:
    with pytest.raises(ProtocolError, match="truth values"):
        CODEC.decode({"tensor": ["bool", [2], 0, False]}, [memoryview(b"\x01\x07")])


@pytest.fixture
def ends():
    """Two channels that are each other's other end."""
    a_reads, b_writes = os.pipe()
    b_reads, a_writes = os.pipe()
    descriptors = [a_reads, a_writes, b_reads, b_writes]
    yield Channel(a_reads, a_writes, 1000), Channel(b_reads, b_writes, 1000), descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def test_frames_carry_a_message_and_its_bytes(ends) -> None:
    one, other, _ = ends
    one.send({"a": [1, "ü"]}, [b"xyz", b"", b"\x00"])
    message, blobs = other.receive(time.monotonic() + 5)
    assert message == {"a": [1, "ü"]} and [bytes(blob) for blob in blobs] == [b"xyz", b"", b"\x00"]


def test_limits_hold_on_both_sides(ends) -> None:
    one, other, descriptors = ends
    with pytest.raises(ProtocolError, match="too large"):
        one.send({}, [bytes(1001)])
    os.write(descriptors[1], LENGTHS.pack(0xFFFFFFFF, 0))
    with pytest.raises(ProtocolError, match="too large"):
        other.receive(time.monotonic() + 5)


def test_a_slow_or_closed_end_does_not_hold_the_other(ends) -> None:
    one, other, descriptors = ends
    os.write(descriptors[1], b"\x00")  # the beginning of a frame, and never its end
    with pytest.raises(DeadlineError):
        other.receive(time.monotonic() + 0.1)
    os.set_blocking(descriptors[1], False)
    with pytest.raises(DeadlineError):  # nobody reads, so the pipe fills up
        Channel(one.reader, one.writer, 1 << 30).send({}, [bytes(1 << 22)], time.monotonic() + 0.1)


def test_an_end_that_closes_is_noticed() -> None:
    reader, writer = os.pipe()
    threading.Timer(0.05, os.close, (writer,)).start()
    with pytest.raises(ClosedError):
        Channel(reader, reader).receive(time.monotonic() + 30)
    os.close(reader)
