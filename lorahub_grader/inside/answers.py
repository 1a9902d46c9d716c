"""The answer process: runs a learner's cells and calls what they define when the tests ask for it.

It holds no test, no reference and no secret, and whatever it says is only data to the tests. A learner's code shares
this process and may change anything in it; that can spoil its own answers and nothing else.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lorahub_grader.inside import shell
from lorahub_grader.inside.protocol import Channel, ClosedError, Codec, ProtocolError


@dataclass
class Answers:
    """The state of an answer process: the notebook's namespace and the objects that the tests hold by number."""

    channel: Channel
    objects: dict[int, object] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.notebook = shell.Notebook()
        self.codec = Codec(self._refer, self._resolve)

    def serve(self) -> None:
        """Answer until the tests close the channel."""
        operations = {"cell": self._cell, "call": self._call, "get": self._get}
        while True:
            try:
                message, blobs = self.channel.receive()
            except KeyboardInterrupt:  # it came too late to stop anything
                continue
            except ClosedError:
                return
            try:
                reply, attached = operations[message["do"]](message, blobs)
            except ClosedError:
                return
            except BaseException as error:  # whatever a learner's code raises is an answer, and so is an interrupt
                reply, attached = {"error": describe(error)}, []
            try:
                self.channel.send(reply | {"number": message["number"]}, attached)
            except ClosedError:
                return
            except ProtocolError as error:
                self.channel.send({"error": describe(error), "number": message["number"]})

    def _cell(self, message: dict, _: list) -> tuple[dict, list]:
        outputs, error = self.notebook.run_cell(message["source"])
        return {"outputs": outputs, "error": None if error is None else describe(error)}, []

    def _call(self, message: dict, blobs: list) -> tuple[dict, list]:
        """Call a function, class or object; changed arguments go back with the result."""
        call = self._target(message["target"])
        arguments, named = self.codec.decode(message["arguments"], blobs)
        before = self.codec.encode([arguments, named])
        value = self.notebook.call(call, *arguments, **named)
        value = Kept(value) if message["keep"] else value
        changed = self.codec.encode([arguments, named])
        content, attached = self.codec.encode([value, None if changed == before else [arguments, named]])
        return {"value": content}, attached

    def _get(self, message: dict, _: list) -> tuple[dict, list]:
        content, attached = self.codec.encode(self._target(message["target"]))
        return {"value": content}, attached

    def _target(self, target: dict) -> Any:
        """A name of the notebook, an object by its number, or part of an installed library; then its attributes."""
        if "name" in target:
            if target["name"] not in self.notebook.names:
                raise NameError(f"name {target['name']!r} is not defined")
            found = self.notebook.names[target["name"]]
        elif "object" in target:
            found = self.objects[target["object"]]
        else:
            module, _, name = target["import"].partition(":")
            found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
        return functools.reduce(getattr, target.get("path", ()), found)

    def _refer(self, value: object) -> dict:
        if isinstance(value, Kept):
            value = value.value
        number = next((n for n, known in self.objects.items() if known is value), None)
        if number is None:
            number = next(self.numbers)
            self.objects[number] = value
        return {"object": [number, type(value).__name__]}

    def _resolve(self, message: dict) -> object:
        (kind, content), *_ = message.items()
        if kind == "target":
            return self._target(content)
        if kind == "callback":
            return functools.partial(self._call_back, content)
        raise ValueError(f"an unknown kind, {kind}")

    def _call_back(self, number: int, *arguments: object, **named: object) -> object:
        """Call a function that lives with the tests, from within a learner's code."""
        content, attached = self.codec.encode([list(arguments), named])
        self.channel.send({"callback": number, "arguments": content}, attached)
        message, blobs = self.channel.receive()
        if "error" in message:
            raise RuntimeError(message["error"])
        return self.codec.decode(message["value"], blobs)


@dataclass(frozen=True)
class Kept:
    """Marks an object that stays in the answer process, even if it could be copied: the tests get its number."""

    value: object


def describe(error: BaseException) -> list[str]:
    """An exception as its type's name and its words."""
    try:
        words = str(error)
    except BaseException:  # a learner's own exception may fail to speak
        words = ""
    return [type(error).__name__[:100], words[:2000]]


def prepare(preload: tuple[str, ...]) -> None:
    """Import what most submissions import and is installed, so that a forked process has it already."""
    import matplotlib_inline.backend_inline  # noqa: F401
    import numpy.random  # noqa: F401

    for name in preload:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    shell.kernel()


def serve(reader: int, writer: int) -> None:
    """Be an answer process until the channel closes."""
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    Answers(Channel(reader, writer)).serve()


if __name__ == "__main__":  # in a container, where standard input and output are the channel
    ours = os.dup(0), os.dup(1)
    serve(*ours)
