"""What crosses between tests and answers: JSON and raw bytes in frames of a known length, never a pickle.

A frame is two lengths, a JSON text and the bytes of all tensors. Whoever reads it trusts nothing: sizes, depths,
types and shapes are checked before memory is taken, and what can't be checked is refused.
"""

from __future__ import annotations

import json
import math
import os
import select
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorahub_edu.errors import CourseError

LENGTHS = struct.Struct("!IQ")  # of the JSON text, of the bytes behind it
TEXT_LIMIT = 4 << 20
BYTES_LIMIT = 64 << 20
DEPTH_LIMIT = 40
DIMENSIONS_LIMIT = 16
NUMBERS = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
TENSORS = (*NUMBERS, "bfloat16")


class ProtocolError(CourseError):
    """The other side sent what is not allowed, or this side was asked to send what can't cross."""


class ClosedError(ProtocolError):
    """The other side is gone."""


class DeadlineError(ProtocolError):
    """The other side took too long."""


@dataclass(frozen=True)
class Channel:
    """Two file descriptors and the limits on what is read from them; both may be the same socket."""

    reader: int
    writer: int
    bytes_limit: int = BYTES_LIMIT

    def send(self, message: object, blobs: list[bytes] = (), deadline: float | None = None) -> None:
        """Write one frame, until a deadline on the monotonic clock; the message refers to blobs by their index.

        Raises ProtocolError: the other side is gone or reads too slowly, or the frame is larger than what may cross.
        """
        try:
            text = json.dumps([[len(blob) for blob in blobs], message], allow_nan=False).encode()
        except (RecursionError, ValueError) as error:
            raise ProtocolError(f"A value can't be sent: {error}") from None
        size = sum(map(len, blobs))
        if len(text) > TEXT_LIMIT or size > self.bytes_limit:
            raise ProtocolError(f"A value of {(len(text) + size) / 1e6:.1f} MB is too large to be sent.")
        self._write(memoryview(b"".join((LENGTHS.pack(len(text), size), text, *blobs))), deadline)

    def receive(self, deadline: float | None = None) -> tuple[Any, list[memoryview]]:
        """Read one frame, until a deadline on the monotonic clock: the message and the bytes it refers to.

        Raises ProtocolError: the other side is gone or too slow, or what came is no frame or too large.
        """
        length, size = LENGTHS.unpack(self._read(LENGTHS.size, deadline))
        if length > TEXT_LIMIT or size > self.bytes_limit:
            raise ProtocolError(f"A reply of {(length + size) / 1e6:.1f} MB is too large.")
        text, data = self._read(length, deadline), memoryview(self._read(size, deadline))
        try:
            sizes, message = json.loads(text, parse_constant=_refuse_constant)
            if not all(type(n) is int and n >= 0 for n in sizes) or sum(sizes) != size:
                raise ValueError("lengths that don't add up")
        except (ValueError, TypeError, RecursionError) as error:
            raise ProtocolError(f"A reply is not in the agreed form: {str(error)[:100]}") from None
        ends = np.cumsum([0, *sizes])
        return message, [data[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]

    def _wait(self, descriptor: int, event: int, deadline: float | None) -> None:
        waiting = select.poll()
        waiting.register(descriptor, event)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not waiting.poll(left):
            raise DeadlineError("No reply came in time.")

    def _read(self, count: int, deadline: float | None) -> bytearray:
        data, filled = bytearray(), 0
        while filled < count:
            self._wait(self.reader, select.POLLIN, deadline)
            try:
                part = os.read(self.reader, min(count - filled, 1 << 20))
            except BlockingIOError:
                continue
            except ConnectionError:
                part = b""
            if not part:
                raise ClosedError("The answer process ended.")
            data += part
            filled += len(part)
        return data

    def _write(self, data: memoryview, deadline: float | None) -> None:
        while data:
            self._wait(self.writer, select.POLLOUT, deadline)
            try:
                data = data[os.write(self.writer, data[: 1 << 16]) :]
            except BlockingIOError:
                continue
            except (BrokenPipeError, ConnectionError):
                raise ClosedError("The answer process ended.") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} as a bare number")


@dataclass
class Codec:
    """Turns values into JSON and bytes and back.

    `refer` makes a message of an object that is not data (a module, a function); `resolve` makes an object of such a
    message. Each side of the channel has its own.
    """

    refer: Callable[[object], dict]
    resolve: Callable[[dict], object]
    finite: bool = False

    def encode(self, value: object) -> tuple[Any, list[bytes]]:
        """A value as a message and its bytes.

        Raises ProtocolError: it is too deeply nested, or a tensor that can't be copied.
        """
        blobs: list[bytes] = []
        return self._encode(value, blobs, 0), blobs

    def decode(self, message: object, blobs: list[memoryview]) -> object:
        """The value of a message and its bytes; nothing in it runs code.

        Raises ProtocolError: it is not in the agreed form, or not finite where that is asked for.
        """
        try:
            return self._decode(message, blobs, 0)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError, MemoryError) as error:
            raise ProtocolError(f"A reply is not in the agreed form: {str(error)[:100]}") from None

    def _encode(self, value: object, blobs: list[bytes], depth: int) -> object:
        if depth > DEPTH_LIMIT:
            raise ProtocolError(f"A value is nested more than {DEPTH_LIMIT} deep.")
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": repr(float(value))}
        if isinstance(value, list | tuple | set | frozenset):
            items = [self._encode(item, blobs, depth + 1) for item in value]
            return items if isinstance(value, list) else {"tuple" if isinstance(value, tuple) else "set": items}
        if isinstance(value, dict):
            return {"dict": [[self._encode(part, blobs, depth + 1) for part in pair] for pair in value.items()]}
        if isinstance(value, np.ndarray) and value.dtype.name in NUMBERS:
            blobs.append(np.ascontiguousarray(value).tobytes())
            return {"array": [value.dtype.name, list(value.shape), len(blobs) - 1]}
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            return _encode_tensor(value, blobs, torch)
        if torch is not None and isinstance(value, torch.dtype) and str(value)[6:] in TENSORS:
            return {"dtype": str(value)[6:]}
        return self.refer(value)

    def _decode(self, message: object, blobs: list[memoryview], depth: int) -> object:
        if depth > DEPTH_LIMIT:
            raise ValueError("too deeply nested")
        if message is None or type(message) in (bool, int):
            return message
        if type(message) is float:  # 1e999 is read as an infinity
            return self._checked(message)
        if type(message) is str:
            return message.encode("utf-8", "replace").decode()
        if type(message) is list:
            return [self._decode(item, blobs, depth + 1) for item in message]
        (kind, content), *more = message.items()
        if more:
            raise ValueError("two kinds at once")
        if kind == "float":
            return self._checked({"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content])
        if kind in ("tuple", "set"):
            return (tuple if kind == "tuple" else set)(self._decode(content, blobs, depth + 1))
        if kind == "dict":
            pairs = [[self._decode(part, blobs, depth + 1) for part in pair] for pair in content]
            return {key: value for key, value in pairs}
        if kind in ("array", "tensor"):
            return self._checked(_decode_numbers(kind, content, blobs))
        if kind == "dtype" and content in TENSORS:
            import torch

            return getattr(torch, content)
        return self.resolve(message)

    def _checked(self, value: object) -> object:
        """The value, unless it holds a NaN or an infinity where none is allowed: comparisons with NaN prove nothing."""
        if not self.finite:
            return value
        if isinstance(value, float):
            sound = math.isfinite(value)
        elif isinstance(value, np.ndarray):
            sound = bool(np.isfinite(value).all())
        else:
            sound = bool(value.isfinite().all())
        if not sound:
            raise ProtocolError(
                "NaN or an infinity was returned: look for a division by zero, a log of zero or an overflow."
            )
        return value


def _encode_tensor(tensor: Any, blobs: list[bytes], torch: Any) -> dict:
    plain = tensor.detach()
    name = str(plain.dtype)[6:]
    if name not in TENSORS or plain.layout is not torch.strided:
        raise ProtocolError(f"A tensor of type {plain.dtype} and layout {plain.layout} can't be sent.")
    plain = plain.cpu().contiguous()
    blobs.append(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return {"tensor": [name, list(plain.shape), len(blobs) - 1, bool(tensor.requires_grad)]}


def _decode_numbers(kind: str, content: list, blobs: list[memoryview]) -> Any:
    name, shape, index, *gradient = content
    if name not in (TENSORS if kind == "tensor" else NUMBERS):
        raise ValueError(f"numbers of type {str(name)[:20]}")
    if len(shape) > DIMENSIONS_LIMIT or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
        raise ValueError("a shape that is none")
    if type(index) is not int or not 0 <= index < len(blobs):
        raise ValueError("bytes that are not there")
    size = 2 if name == "bfloat16" else np.dtype(name).itemsize
    if math.prod(shape) * size != len(blobs[index]):
        raise ValueError("bytes that don't fill the shape")
    data = bytearray(blobs[index])
    if name == "bool" and any(byte > 1 for byte in set(data)):
        raise ValueError("truth values that are neither")
    if kind == "array":
        return np.frombuffer(data, dtype=name).reshape(shape)
    import torch

    dtype = getattr(torch, name)
    tensor = torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
    return tensor.requires_grad_(bool(gradient and gradient[0] is True and dtype.is_floating_point))
