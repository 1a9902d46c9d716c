"""Working on an answer's objects, be they in this process or in the one where answers are graded.

A specification that needs more than values (gradients, a module's parameters) asks for them through `there`, so that
the same specification serves the notebook and the grading.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


def there(answer: object, function: Callable, *arguments: object, **named: object) -> object:
    """Call an importable function of a library or this package where an answer lives.

    `answer` is the learner's function, class or object, or what stands for it while grading; arguments are values, or
    objects that live with it. While grading, a value comes back as a copy, and something stands for any other object.
    """
    elsewhere = getattr(type(answer), "__there__", None)
    return function(*arguments, **named) if elsewhere is None else elsewhere(answer, function, *arguments, **named)


def parameters(module: nn.Module) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Each parameter's shape and whether it is trained, by name."""
    return {name: (tuple(p.shape), p.requires_grad) for name, p in module.named_parameters()}


def state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's parameters and buffers, by name."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def assign(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Write values into parameters, by name; the others stay."""
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def output(module: nn.Module, *inputs: Tensor) -> Tensor:
    """A module's output, without a graph behind it."""
    with torch.no_grad():
        return module(*inputs)


def gradients(module: nn.Module, *inputs: Tensor) -> dict[str, Tensor | None]:
    """The gradient of the sum of squares of a module's output for each parameter, by name; None where there is none."""
    module.zero_grad(set_to_none=True)
    total = module(*inputs).pow(2).sum()
    if total.requires_grad:
        total.backward()
    found = {name: None if p.grad is None else p.grad.detach().clone() for name, p in module.named_parameters()}
    module.zero_grad(set_to_none=True)
    return found


def reached(function: Callable, arguments: list, places: list[int]) -> list[bool]:
    """Which of the arguments at these places a gradient reaches from a function's result, a tensor or several."""
    for place in places:
        arguments[place] = arguments[place].detach().clone().requires_grad_()
    with torch.enable_grad():
        made = function(*arguments)
        parts = [part for part in (made if isinstance(made, list | tuple) else [made]) if isinstance(part, Tensor)]
        total = sum(part.double().sum() for part in parts if part.requires_grad)
    if not isinstance(total, Tensor):
        return [False] * len(places)
    found = torch.autograd.grad(total, [arguments[place] for place in places], allow_unused=True)
    return [gradient is not None for gradient in found]


def random_states() -> tuple:
    """The states of the global generators of Python, NumPy and torch, as values that can be compared."""
    name, keys, *rest = np.random.get_state()
    return str(hash(random.getstate())), str(hash((name, keys.tobytes(), *rest))), torch.get_rng_state().tolist()


def logits(model: nn.Module, input_ids: Tensor) -> Tensor:
    """A language model's logits (rows, tokens, vocabulary) of input_ids (rows, tokens), without a graph behind them."""
    with torch.no_grad():
        return model(input_ids=input_ids, use_cache=False).logits


def tree(kinds: dict[str, str]) -> nn.Module:
    """A module with small submodules ("linear", "embedding" or "norm") by dotted name, which computes nothing."""
    made = {"linear": lambda: nn.Linear(2, 2), "embedding": lambda: nn.Embedding(2, 2), "norm": lambda: nn.LayerNorm(2)}
    root = nn.Module()
    for name, kind in kinds.items():
        *path, last = name.split(".")
        parent = root
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, made[kind]())
    return root
