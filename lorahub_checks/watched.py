"""The learner's function as a check calls it: with copies, for a limited time, and watched for what it leaves behind.

Whatever an answer does wrong beside its value is named here, for all problems alike: it changes what it was given, it
does not end, it ends the program, it seeds or switches something for everybody else.
"""

from __future__ import annotations

import contextlib
import inspect
import linecache
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorahub_edu.show import objects
from lorahub_edu.show.check import SECONDS
from lorahub_edu.show.objects import there

PRINTED = 24  # numbers of a tensor that are printed; of a larger one the shape is
TWISTS = 1000  # blocks of 624 numbers that an answer may draw from a global generator
OWN = ("lorahub_edu", "lorahub_checks", "lorahub_grader")


class StoppedError(BaseException):
    """An answer took too long; no `except Exception` of the answer's hides it."""


class Answer:
    """What stands for a learner's function or class in a specification.

    `faults` are (what must hold, what was seen, the mistake) for everything but the value; `calls` are the arguments
    and the value of every call since the last property. With `in_place` it may change what it is given.
    """

    def __init__(self, inner: Callable, seconds: float = SECONDS, in_place: bool = False) -> None:
        self.inner, self.seconds, self.in_place = inner, seconds, in_place
        self.first: tuple = ()
        self.faults: list[tuple[str, str, str]] = []
        self.calls: list[tuple[dict[str, object], object]] = []
        self.fresh = True
        self.remote = hasattr(type(inner), "__there__")

    def __call__(self, *arguments: object, **named: object) -> object:
        self.first = self.first or arguments
        given = copied((arguments, named))
        value = self._watched(lambda: self.inner(*given[0], **given[1]), (arguments, named), given)
        if not self.fresh:  # the calls so far belong to properties that were told already
            self.calls, self.fresh = [], True
        self.calls.append((self._named(arguments, named), value))
        return value

    def __there__(self, function: Callable, *arguments: object, **named: object) -> object:
        """Call an importable function where the answer lives; see `objects.there`."""
        given = copied((arguments, named))
        return self._watched(lambda: there(self.inner, function, *given[0], **given[1]), (arguments, named), given)

    def follow_gradients(self, places: tuple[int, ...]) -> None:
        """Note each of the first call's arguments at these places that no gradient reaches from the result."""
        reached = self.__there__(objects.reached, self.inner, list(self.first), list(places))
        for place, found in zip(places, reached, strict=True):
            if not found:
                name = list(self._named(self.first, {}))[place]
                words = "the result is cut off from what is trained: leave out detach(), .data, .item() and no_grad()"
                self._fault("gradients reach what is trained", f"none reaches {name}", words)

    def _watched(self, call: Callable[[], object], before: tuple, given: tuple) -> object:
        if self.remote:  # its process is watched by the grader
            value = call()
        else:
            with self._settings(), time_limit(self.seconds):  # torch may import a part of itself for the settings
                value = call()
        for name, old in self._named(*before).items():
            if not self.in_place and not same(old, self._named(*given)[name]):
                words = (
                    f"{name} was changed in place: +=, sort() and methods that end in _ write into it; build a new one"
                )
                self._fault("what it was given stays as it was", f"{name} has changed", words)
        return value

    def _fault(self, *fault: str) -> None:
        if fault not in self.faults:
            self.faults.append(fault)

    def _named(self, arguments: tuple, named: dict) -> dict[str, object]:
        """The arguments of a call by the learner's names, or by their number."""
        try:
            return dict(inspect.signature(self.inner).bind(*arguments, **named).arguments)
        except (TypeError, ValueError):
            return {f"argument {i + 1}": value for i, value in enumerate(arguments)} | named

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        """Put back what an answer switches for the whole program, and name it."""
        dtype, grad, before = torch.get_default_dtype(), torch.is_grad_enabled(), _generators()
        strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)  # what torch.empty leaves unset is NaN, not luck
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
            name = "other code is not affected"
            if torch.get_default_dtype() != dtype:
                torch.set_default_dtype(dtype)
                self._fault(name, "torch's default dtype has changed", "set a tensor's dtype, not that of all tensors")
            if torch.is_grad_enabled() != grad:
                torch.set_grad_enabled(grad)
                words = "gradients stay switched on or off after the call: write `with torch.no_grad():`"
                self._fault(name, "torch's gradient mode has changed", words)
            for library, old, new in zip(("Python", "NumPy", "torch"), before, _generators(), strict=True):
                if not _drawn(old, new):
                    words = (
                        "a global seed is set inside the function, so all random numbers after it repeat: use a "
                        "generator of your own"
                    )
                    self._fault(name, f"{library}'s global generator was seeded", words)


def _generators() -> tuple[object, object, int]:
    """The states of Python's and NumPy's global generators as (624 words), and the seed of torch's."""
    return tuple(random.getstate()[1][:-1]), tuple(np.random.get_state()[1].tolist()), torch.initial_seed()


def _drawn(old: object, new: object) -> bool:
    """Whether a state follows from an earlier one by drawing numbers (both are Mersenne twisters)."""
    if old == new or isinstance(new, int):
        return old == new
    twister = np.random.RandomState()
    twister.set_state(("MT19937", old, 624))
    for _ in range(TWISTS):
        twister.bytes(4 * 624)
        if tuple(twister.get_state()[1].tolist()) == new:
            return True
    return False


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Leave the global generators of Python, NumPy and torch as they were."""
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise StoppedError in the main thread after some seconds; elsewhere, and on Windows, there is no limit."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise StoppedError(f"no answer within {seconds:g} seconds: is there a loop that does not end?")

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # and again, should a bare `except` hide the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def copied(value: object) -> object:
    """A copy of tensors and arrays, and of the lists, tuples and dictionaries around them; other objects themselves."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(copied(part) for part in value)
    if type(value) is dict:
        return {key: copied(part) for key, part in value.items()}
    return value


def same(one: object, other: object) -> bool:
    """Whether two copies still hold the same numbers; objects of other kinds are not looked into."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    if type(one) in (list, tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if type(one) is dict:
        return list(one) == list(other) and all(same(part, other[key]) for key, part in one.items())
    return not isinstance(one, int | float | str) or one == other


def described(arguments: Mapping[str, object]) -> str:
    """The arguments of a call in words: numbers in full, of large tensors the shape."""
    return ", ".join(f"{name} = {_printed(value)}" for name, value in arguments.items())


def _printed(value: object) -> str:
    if isinstance(value, Tensor | np.ndarray):
        shape, count = tuple(value.shape), int(np.prod(value.shape))
        return str(value.tolist()) if count <= PRINTED else f"numbers of shape {shape}"
    if isinstance(value, list | tuple) and any(isinstance(part, Tensor | np.ndarray | list | tuple) for part in value):
        inside = ", ".join(_printed(part) for part in value)
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    if repr(value).startswith("<"):  # an address in memory says nothing: a function, a bound method, an object
        return getattr(value, "__name__", type(value).__name__)
    words = f"{value:.17g}" if isinstance(value, float) else repr(value)
    return min(words, repr(value), key=len) if len(words) < 200 else words[:200] + "…"


def place_of(error: BaseException) -> str:
    """Where in the learner's own code an error comes from: "line 3: return x @ W"; "" if it comes from elsewhere."""
    frames, found = error.__traceback__, ""
    roots = [str(Path(path)) for path in {sys.prefix, sys.base_prefix}]
    while frames is not None:
        name = frames.tb_frame.f_code.co_filename
        module = frames.tb_frame.f_globals.get("__name__", "")
        installed = any(name.startswith(root) for root in roots) or name.startswith("<frozen")
        if not installed and module.partition(".")[0] not in OWN:
            line = linecache.getline(name, frames.tb_lineno).strip()
            found = f"line {frames.tb_lineno}" + (f": {line}" if line else "")
        frames = frames.tb_next
    return found
