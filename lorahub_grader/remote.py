"""What stands for a learner's functions, classes and objects in the process that tests them."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorahub_edu.show import objects
from lorahub_grader.inside.protocol import ClosedError, Codec, DeadlineError, ProtocolError
from lorahub_grader.sandbox.process import AnswerProcess, explain

GRACE_SECONDS = 2.0  # from an interrupt to the end
MESSAGES_LIMIT = 1_000_000  # calls back within one call
# An answer can patch what looks at its objects; only these outputs are as good as a right answer if they are right.
BEHAVIOUR = (objects.output, objects.logits)
REPEATABLE = [
    "ArithmeticError", "AssertionError", "AttributeError", "FileNotFoundError", "IndexError", "KeyError",
    "LookupError", "NameError", "NotImplementedError", "OverflowError", "RuntimeError", "TypeError",
    "UnboundLocalError", "ValueError", "ZeroDivisionError",
]  # fmt: skip


class AnswerError(Exception):
    """An answer raised something of its own making; the words are the answer's."""


class UnansweredError(BaseException):
    """No answer came: too slow, gone, or what came is no answer. No test's `except Exception` hides it."""


@dataclass
class Conversation:
    """The tests' side of the talk with one answer process.

    `lost` says why nothing more can be asked ("time", "memory", "died", …); it is empty while all is well.
    `believed` says whether a test has rested on what the answer's process says of its objects.
    `writes_back` says whether what an answer changes in its arguments is changed here too, `changed` whether one ever
    did.
    """

    process: AnswerProcess
    seconds: float
    deadline: float
    lost: str = ""
    number: int = 0
    writes_back: bool = True
    changed: bool = False
    believed: bool = False
    callbacks: list[Callable] = field(default_factory=list)
    failure: AssertionError | None = None

    def __post_init__(self) -> None:
        self.codec = Codec(self._refer, self._resolve, finite=True)

    def ask(self, message: dict, blobs: Sequence[bytes] = (), seconds: float | None = None) -> tuple[dict, list]:
        """Send a request and wait for its reply, answering calls back meanwhile: the reply and its bytes, not to be
        trusted.

        Raises UnansweredError: it took too long, or the process is gone.
        """
        if self.lost:
            raise UnansweredError(self.explanation())
        self.number += 1
        limit = self.seconds if seconds is None else seconds
        deadline = min(time.monotonic() + limit, self.deadline)
        try:
            self.process.channel.send(message | {"number": self.number}, list(blobs), deadline)
            return self._reply(deadline)
        except DeadlineError:
            return self._interrupted(limit)
        except ClosedError:
            self._give_up("")
        except ProtocolError as error:
            self._give_up(f"protocol: {error}")
        raise UnansweredError(self.explanation())

    def call(self, target: dict, arguments: tuple, named: dict, keep: bool = False) -> Any:
        """Call something of the answer's and return what it returns.

        Args:
            arguments: values, objects of the answer's, or functions of ours that it may call back.
            keep: leave the result there, and return what stands for it.
        Raises Exception: what the answer raised, if it is one of Python's usual errors; else AnswerError.
        Raises UnansweredError: no answer came.
        """
        self.callbacks, self.failure = [], None
        content, blobs = self.codec.encode([list(arguments), named])
        message = {"do": "call", "target": target, "arguments": content, "keep": keep}
        reply, attached = self.ask(message, blobs)
        if self.failure is not None:
            raise self.failure
        value, changed = self._pair(reply, attached)
        if changed is not None:
            self.changed = True
            if self.writes_back:
                write_back([list(arguments), named], changed)
        return value

    def get(self, target: dict) -> Any:
        """The value of a name or attribute of the answer's."""
        reply, blobs = self.ask({"do": "get", "target": target})
        return self._value(reply, blobs)

    def explanation(self) -> str:
        """Why nothing more can be asked, in words for the learner."""
        return f"no answer: {explain(self.lost)}"

    def _pair(self, reply: dict, blobs: list) -> tuple[Any, list | None]:
        found = self._value(reply, blobs)
        if type(found) is not list or len(found) != 2 or not (found[1] is None or type(found[1]) is list):
            self._give_up("protocol: a reply is not in the agreed form")
            raise UnansweredError(self.explanation())
        return found[0], found[1]

    def _value(self, reply: dict, blobs: list) -> Any:
        error = reply.get("error")
        if error is not None:
            name, words = (str(part) for part in (*error, "", "")[:2]) if type(error) is list else ("Exception", "")
            if name in REPEATABLE:
                raise getattr(builtins, name)(words[:2000])
            known = name[:60] if name.isidentifier() else "Exception"
            raise type(known, (AnswerError,), {})(words[:2000])
        return self.codec.decode(reply.get("value"), blobs)

    def _reply(self, deadline: float) -> tuple[dict, list]:
        for _ in range(MESSAGES_LIMIT):
            message, blobs = self.process.channel.receive(deadline)
            if type(message) is not dict:
                raise ProtocolError("A reply is not in the agreed form.")
            if "callback" in message:
                self._answer_callback(message, blobs, deadline)
            elif message.get("number") == self.number:
                return message, blobs
        raise ProtocolError("Too many messages for one call.")

    def _answer_callback(self, message: dict, blobs: list, deadline: float) -> None:
        number = message["callback"]
        if type(number) is not int or not 0 <= number < len(self.callbacks):
            raise ProtocolError("A function was called back that was not handed over.")
        try:
            arguments, named = self.codec.decode(message.get("arguments"), blobs)
            content, attached = self.codec.encode(self.callbacks[number](*arguments, **named))
        except Exception as error:
            if isinstance(error, AssertionError):  # the test's own verdict on how it is called
                self.failure = error
            self.process.channel.send({"error": f"{type(error).__name__}: {error}"[:500]}, [], deadline)
        else:
            self.process.channel.send({"value": content}, attached, deadline)

    def _interrupted(self, limit: float) -> tuple[dict, list]:
        """Stop a call that takes too long; if the process does not react, it is lost."""
        self.process.interrupt()
        with suppress(ProtocolError):
            self._reply(time.monotonic() + GRACE_SECONDS)
            raise UnansweredError(f"no answer within {limit:g} seconds: is there a loop that does not end?")
        self._give_up("time")
        raise UnansweredError(f"no answer within {limit:g} seconds, and no stop when interrupted")

    def _give_up(self, reason: str) -> None:
        ending = self.process.stop()
        self.lost = reason or (ending if ending not in ("asked", "lost") else "died")

    def _refer(self, value: object) -> dict:
        if isinstance(value, Remote):
            return {"target": value._target}
        if callable(value) and not isinstance(value, type):
            self.callbacks.append(value)
            return {"callback": len(self.callbacks) - 1}
        raise TypeError(f"a {type(value).__name__} can't be handed to an answer: make it there, with objects.there")

    def _resolve(self, message: dict) -> object:
        number, name = message["object"]
        if type(number) is not int or type(name) is not str:
            raise ValueError("an object that is none")
        return Handle(self, {"object": number}, name[:100])


class Remote:
    """Something callable that lives in the answer process."""

    def __init__(self, conversation: Conversation, target: dict, name: str, keep: bool = False) -> None:
        self._conversation, self._target, self._name, self._keep = conversation, target, name, keep

    def __call__(self, *arguments: object, **named: object) -> object:
        return self._conversation.call(self._target, arguments, named, self._keep)

    def __repr__(self) -> str:
        return f"<the answer's {self._name}>"

    def __there__(self, function: Callable, *arguments: object, **named: object) -> object:
        """Call an importable function in the answer process; see `lorahub_edu.show.objects.there`."""
        target = {"import": f"{function.__module__}:{function.__qualname__}"}
        value = self._conversation.call(target, arguments, named, isinstance(function, type))
        self._conversation.believed |= not (value is None or isinstance(value, Remote) or function in BEHAVIOUR)
        return value


class Handle(Remote):
    """An object in the answer process: its attributes are looked up there, values come as copies."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._conversation.get(self._target | {"path": [*self._target.get("path", ()), name]})


def write_back(old: Any, new: Any) -> None:
    """Change tensors, arrays, lists and dictionaries in `old` in place to what the answer made of its copies, `new`."""
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            old[:] = new
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            if type(before) in (int, float, str, bool, type(None)):
                old[index] = after
            else:
                write_back(before, after)
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        for before, after in zip(old, new, strict=True):
            write_back(before, after)
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in [key for key in old if key not in new]:
            del old[key]
        for key, after in new.items():
            if key in old and type(old[key]) not in (int, float, str, bool, type(None)):
                write_back(old[key], after)
            else:
                old[key] = after
    elif isinstance(old, np.ndarray) and isinstance(new, np.ndarray) and old.shape == new.shape:
        old[...] = new
    elif hasattr(old, "copy_") and hasattr(new, "shape") and old.shape == new.shape:
        old.detach().copy_(new)
