"""What a specification yields: properties, true or false, or a value that must equal a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lorahub_checks.watched import described


@dataclass(frozen=True)
class Property:
    """One thing a right answer must satisfy: whether it does, the value seen, and the probable misconception.

    `example` is the input on which it fails and both values there; it gives the right one away, so grading leaves it
    out. `value` is the object that was compared.
    """

    name: str
    passed: bool
    seen: str = ""
    misconception: str = ""
    example: str = ""
    value: object = field(default=None, compare=False, repr=False)


def holds(name: str, condition: bool, seen: object = "", misconception: str = "") -> Property:
    """A property that is simply true or false."""
    return Property(name, bool(condition), str(seen), "" if condition else misconception)


RTOL = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 3e-2}
PLAIN_RTOL = 1e-5  # of Python's own numbers, which may have been computed in float32


def equals(
    name: str,
    seen: object,
    expected: object,
    *,
    misconceptions: Mapping[str, object] | None = None,
    rtol: float = 0.0,
) -> Property:
    """A property of a value that must equal a reference; `name` says what must hold, in words.

    Numbers and tensors are compared within the precision of the coarser of the two dtypes, relative to the largest
    number of the reference, or within `rtol`; whole numbers, truth values, words and what is made of them exactly.
    `misconceptions` are what each plausible mistake would have given, by the words for it. One that gives the right
    value on this draw is never named.
    """
    if seen is None and expected is not None:
        return Property(name, False, "None", "the function returns nothing: is a return missing?")
    right = _tensor(expected)
    if right is None:
        return _equals_plain(name, seen, expected, misconceptions or {})
    value = _tensor(seen)
    if value is None and isinstance(seen, list | tuple) and isinstance(expected, list | tuple):
        return _equals_plain(name, seen, expected, misconceptions or {})
    if value is None:
        return Property(name, False, f"a {type(seen).__name__}", "a number or tensor was expected", value=seen)
    if value.shape != right.shape and value.numel() == right.numel() == 1:
        value = value.reshape(right.shape)
    tolerance = max(rtol, _precision(value, seen), _precision(right, expected))

    def close(other: Tensor | None) -> bool:
        return other is not None and value.shape == other.shape and _close(value, other, tolerance)

    kind = _wrong_kind(value, right)
    if close(right) and not kind:
        return Property(name, True)
    wrong = {words: _tensor(other) for words, other in (misconceptions or {}).items()}
    guess = kind if close(right) else next((words for words, other in wrong.items() if close(other)), kind)
    if value.shape != right.shape:
        seen_words = f"shape {tuple(value.shape)}, expected {tuple(right.shape)}"
        both = f"you return shape {tuple(value.shape)}, right is {tuple(right.shape)}"
    elif value.numel() == 1:
        seen_words, both = f"{value.item():.6g}", f"you return {value.item():.9g}, right is {right.item():.9g}"
    elif value.numel() == 0:
        seen_words, both = "nothing", ""
    else:
        apart = (value.double() - right.double()).abs().nan_to_num(torch.inf)
        at = list(np.unravel_index(int(apart.argmax()), tuple(apart.shape)))
        there = f"{value[tuple(at)].item():.9g}, right is {right[tuple(at)].item():.9g}"
        seen_words, both = f"largest difference {apart.max():.3g}", f"at {[int(i) for i in at]} you return {there}"
    return Property(name, False, seen_words, guess, both, seen)


def _tensor(value: object) -> Tensor | None:
    """A number, or numbers in whatever holds them, as a tensor; None for anything else."""
    if isinstance(value, str | bytes | None):
        return None
    try:
        if isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value):
            return torch.as_tensor(value)  # tensors of one number each: larger ones are no tensor together
        return torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value))
    except (TypeError, ValueError, RuntimeError):
        return None


def _precision(value: Tensor, given: object) -> float:
    if not value.is_floating_point():
        return 0.0
    return RTOL.get(value.dtype, 1e-6) if isinstance(given, Tensor | np.ndarray) else PLAIN_RTOL


def _close(value: Tensor, other: Tensor, tolerance: float) -> bool:
    value, other = value.double(), other.double()
    size = other.abs().nan_to_num(0.0).max().item() if other.numel() else 0.0
    return torch.allclose(value, other, rtol=tolerance, atol=(tolerance or 1e-9) * (size or 1.0))


def _wrong_kind(value: Tensor, right: Tensor) -> str:
    """What is wrong with the dtype of a tensor that was promised as truth values or whole numbers."""
    if right.dtype == torch.bool and value.dtype != torch.bool:
        return "True and False are asked for (torch.bool): attention adds a mask of numbers to the scores"
    if right.ndim and not right.is_floating_point() and right.dtype != torch.bool and value.is_floating_point():
        return "whole numbers are asked for (torch.long), not floats: they are ids and places"
    return ""


def _equals_plain(name: str, seen: object, expected: object, misconceptions: Mapping[str, object]) -> Property:
    """`equals` for words, None, and lists that no tensor can hold."""
    value, right = _plain(seen), _plain(expected)
    if type(value) is type(right) and value == right:
        return Property(name, True)
    guess = next((words for words, other in misconceptions.items() if _plain(other) == value), "")
    words = described({"": seen})[3:]
    return Property(name, False, words, guess, f"you return {words}, right is {described({'': right})[3:]}", seen)


def _plain(value: object) -> object:
    """Tuples, tensors and arrays as lists, so that they compare by what they hold."""
    if isinstance(value, Tensor | np.ndarray):
        return value.tolist()
    if type(value) in (list, tuple):
        return [_plain(part) for part in value]
    return value if type(value) in (str, int, float, bool, type(None)) else repr(value)
