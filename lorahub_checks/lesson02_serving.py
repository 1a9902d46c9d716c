"""Checks of lesson 02's assignment: a trained adapter merged into a model, loaded from a file, and shared in one batch.

Source: Hu et al. 2021, arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lorahub_checks.draws import integer, normal
from lorahub_checks.lesson02_models import UPDATE_BY_ALPHA, UPDATE_UNSCALED, small_llama
from lorahub_checks.predictions import choice
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.show import objects
from lorahub_edu.show.objects import there

TARGETS = ("q_proj", "v_proj")


@problem(
    "02.8",
    "merge into a whole model",
    hints=(
        "You need the old weights again later. What does a name for a tensor keep: its numbers, or the tensor?",
        "clone() the old weight before you write into it. Compute the sum in float32 and round it once, when you write "
        "it into a bfloat16 weight.",
        "One layer, A with two rows, alpha = 4: the update is 2 * (B @ A), in float32. Add it to old.float(), and "
        "only then go back to the old dtype.",
    ),
)
def merge_model(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """merge_model(model, updates, alpha) -> the old weights by layer; updates are (A, B) by layer, float32."""
    alpha = float(integer(5, 9, generator))
    for dtype in (torch.float32, torch.bfloat16):
        model, here = small_llama(answer, generator)
        there(answer, nn.Module.to, model, dtype)
        old = {name: tensor.to(dtype) for name, tensor in here.state_dict().items()}
        updates = {}
        for name in adapters.find_targets(here, TARGETS):
            layer, rank = here.get_submodule(name), integer(2, 4, generator)
            A = torch.randn(rank, layer.in_features, generator=generator)
            updates[name] = (A, 0.3 * torch.randn(layer.out_features, rank, generator=generator))
        kept = answer(model, dict(updates), alpha)
        merged = there(answer, objects.state, model)
        yield from _merged(merged, old, updates, alpha, dtype)
        yield from _kept(kept, old, merged, list(updates))


def _merged(
    found: dict[str, Tensor], old: dict[str, Tensor], updates: dict, alpha: float, dtype: torch.dtype
) -> Iterator[Property]:
    """The weights after a merge: those with an update, and those without."""

    def stacked(scale: Callable[[int], float], early: bool = False) -> Tensor:
        """All merged weights one after the other; with `early` the update is rounded before it is added."""
        rows = []
        for name, (A, B) in updates.items():
            delta = scale(len(A)) * (B.double() @ A.double())
            delta = delta.to(dtype).double() if early else delta
            rows.append((old[f"{name}.weight"].double() + delta).to(dtype).flatten())
        return torch.cat(rows)

    first = len(next(iter(updates.values()))[0])
    seen = torch.cat([found[f"{name}.weight"].flatten() for name in updates])
    words = str(dtype).removeprefix("torch.")
    wrong = {
        "nothing was merged: was a copy changed instead of the model's own weight?": stacked(lambda r: 0.0),
        UPDATE_UNSCALED: stacked(lambda r: 1.0),
        UPDATE_BY_ALPHA: stacked(lambda r: alpha),
        "the update is subtracted": stacked(lambda r: -alpha / r),
        "every layer has the rank of the first, but ranks differ: take each A's own": stacked(lambda r: alpha / first),
        "the update is merged twice": stacked(lambda r: 2 * alpha / r),
        "the update was rounded to bfloat16 before it was added: add in float32 and round once": stacked(
            lambda r: alpha / r, early=True
        ),
    }

    def agrees(other: Tensor) -> bool:
        """Equal but for the few numbers that stand where rounding goes either way."""
        same = torch.isclose(seen.double(), other.double(), rtol=1e-4, atol=1e-5).double().mean()
        return bool(same == 1.0 if dtype == torch.float32 else same > 0.98)

    guess = next((mistake for mistake, other in wrong.items() if agrees(other)), "")
    right = stacked(lambda r: alpha / r)
    worst = (seen.double() - right.double()).abs().max()
    yield holds(f"{words}: each weight has its update added", agrees(right), f"largest difference {worst:.3g}", guess)
    others = [name for name in old if name.removesuffix(".weight") not in updates]
    same = set(found) == set(old) and all(torch.equal(found[name], old[name]) for name in others)
    yield holds(f"{words}: everything else stays", same, misconception="a weight without an update has changed")
    types = {str(found[f"{name}.weight"].dtype) for name in updates} == {str(dtype)}
    yield holds(
        f"{words}: weights keep their type", types, misconception="write the sum back in the weight's own dtype"
    )


def _kept(kept: object, old: dict[str, Tensor], merged: dict[str, Tensor], names: list[str]) -> Iterator[Property]:
    """The old weights that a merge hands back."""
    fits = isinstance(kept, dict) and set(kept) == set(names) and all(isinstance(t, Tensor) for t in kept.values())
    seen = list(kept) if isinstance(kept, dict) else f"a {type(kept).__name__}"
    yield holds(
        "the old weights come back by layer", fits, seen, "return a dictionary from each layer's name to a tensor"
    )
    if fits:
        right = all(torch.equal(kept[name], old[f"{name}.weight"]) for name in names)
        aliased = all(torch.equal(kept[name], merged[f"{name}.weight"]) for name in names)
        words = "what was kept is the weight itself, which has changed since: keep a clone" if aliased else ""
        yield holds("they are the old ones, bit for bit", right, misconception=words)


@problem(
    "02.9",
    "load an adapter, or refuse",
    hints=(
        "What happens to a name in the file that the model doesn't have? And to one that the file lacks?",
        "Compare before you write: the file's names must be exactly those of the parameters that train, and each shape "
        "must be the same. copy_ would stretch a (1, n) tensor over (r, n) without a word. Raise ValueError otherwise.",
        "The model trains a of shape (2, 3). A file with a of shape (1, 3) is refused, so is one without a, and one "
        "with a and b. Only after all three questions copy, under torch.no_grad().",
    ),
)
def load_adapter(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """load_adapter(model, state): fill the trained parameters from a file's tensors, all or nothing."""
    rank = integer(2, 4, generator)
    model, _ = small_llama(answer, generator)
    there(answer, adapters.inject, model, there(answer, LoRAConfig, rank=rank, target_modules=TARGETS), seed=1)
    parameters = there(answer, objects.parameters, model)
    before = there(answer, objects.state, model)
    good = {name: torch.randn(shape, generator=generator) for name, (shape, trains) in parameters.items() if trains}
    odd, last = list(good)[integer(0, len(good) - 1, generator)], list(good)[-1]
    bad = {
        "a name that the model doesn't have": good | {last.replace("lora_B", "lora_b"): good[last]},
        "a parameter that the file lacks": {name: tensor for name, tensor in good.items() if name != odd},
        "one tensor of another shape": good | {odd: good[odd][:1]},
        "a tensor of another shape that would be stretched to fit": good | {last: good[last][:1]},
    }
    advice = {
        "a name that the model doesn't have": "an unknown name is ignored, as load_state_dict(strict=False) does: a "
        "misspelt adapter would silently do nothing",
        "a parameter that the file lacks": "a missing one is overlooked: that layer would keep its random start",
        "one tensor of another shape": "the shape isn't compared for every tensor",
        "a tensor of another shape that would be stretched to fit": "the shape isn't compared: copy_ stretches a row "
        "over the whole matrix",
    }
    for name, state in bad.items():
        raised = _raises(answer, model, dict(state))
        yield holds(f"refused: {name}", raised == "ValueError", raised or "nothing was raised",
                    "raise ValueError yourself, before torch stumbles over it" if raised else advice[name])  # fmt: skip
        same = _same(there(answer, objects.state, model), before)
        half = "some of it was loaded before the error: compare everything first, then write"
        yield holds("then nothing has changed", same, misconception=half)
        if not same:
            return
    answer(model, dict(reversed(good.items())))  # a file's order need not be the model's
    after = there(answer, objects.state, model)
    filled = all(torch.equal(after[name], tensor) for name, tensor in good.items())
    unchanged = _same(after, before)
    mixed = "the tensors got mixed up: go by their names, a file may hold them in another order"
    words = "nothing was written into the model's own parameters" if unchanged else mixed
    yield holds("a file that fits is loaded", filled, misconception=words)
    rest = [name for name in before if name not in good]
    same = _same({n: after[n] for n in rest}, {n: before[n] for n in rest})
    yield holds("the base model stays", same, misconception="only the trained parameters may change")
    trains = there(answer, objects.parameters, model) == parameters
    yield holds(
        "what trains still trains", trains, misconception="the parameters were replaced: copy the values into them"
    )
    there(answer, nn.Module.requires_grad_, model, True)
    everything = {name: torch.randn(shape, generator=generator) for name, (shape, _) in parameters.items()}
    answer(model, everything)
    after = there(answer, objects.state, model)
    filled = all(torch.equal(after[name], tensor) for name, tensor in everything.items())
    yield holds("where the whole model trains, all of it is loaded", filled, misconception="a parameter is left out")


def _raises(answer: Callable, *arguments: object) -> str:
    """The name of what the answer raises, "" if nothing."""
    try:
        answer(*arguments)
    except NotImplementedError:
        raise
    except Exception as error:
        return type(error).__name__
    return ""


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@problem(
    "02.10",
    "one batch, many customers",
    hints=(
        "Every row has an adapter of its own, or none. Where in A and B is the row's, and what does -1 pick in torch?",
        "A[which] has one matrix a row, but -1 picks the last adapter. Multiply the updates of such rows by zero.",
        "For which = [1, -1] the matrices A[which] are (2, r, in), and the second row must get no update. (which >= "
        "0) is [True, False]; it needs two more axes to multiply (rows, tokens, out).",
    ),
    trains=(2, 3),
)
def routed(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """routed(x, W, A, B, which, alpha): row i through adapter which[i], or through none where that is -1."""
    alpha = float(integer(5, 9, generator))
    for name, which in {
        "each row its own adapter": torch.tensor([2, 0, 1]),
        "some rows without one": torch.tensor([1, -1, 2, 0, -1]),
        "two rows share one": torch.tensor([0, 2, 2, 1]),
        "few numbers": torch.tensor([1, -1]),
    }.items():
        few = name == "few numbers"
        inputs, outputs, rank, known = (2, 3, 2, 2) if few else (6, 7, integer(2, 4, generator), 3)
        x, W = normal(generator, len(which), 1 if few else 4, inputs), normal(generator, outputs, inputs)
        A, B = normal(generator, known, rank, inputs), normal(generator, known, outputs, rank)
        base = x @ W.T
        # All updates of all adapters, (known + 1, rows, tokens, out); the last is the empty one.
        updates = torch.stack([*(x @ (b @ a).T for a, b in zip(A, B, strict=True)), torch.zeros_like(base)])
        rows = torch.arange(len(which))
        own = updates[torch.where(which < 0, known, which), rows]
        from_end, by_row = updates[:known][which, rows], updates[:known][rows % known, rows]
        wrong = {
            "a row without an adapter got the last one: -1 counts from the end": base + alpha / rank * from_end,
            "a row without an adapter got the first one": base + alpha / rank * updates[which.clamp(min=0), rows],
            "every row got the first row's adapter": base + alpha / rank * updates[which[0]],
            "every row got the sum of all adapters": base + alpha / rank * updates.sum(0),
            "the rows' numbers are taken for the adapters': which[i] says whose row i is": base + alpha / rank * by_row,
            UPDATE_UNSCALED: base + own,
            UPDATE_BY_ALPHA: base + alpha * own,
            "the base is missing": alpha / rank * own,
            "only the base acts": base,
        }  # fmt: skip
        right = base + alpha / rank * own
        yield equals(name, answer(x, W, A, B, which, alpha), right, misconceptions=wrong)


@problem(
    "02.11",
    "what subtracting brings back",
    hints=(
        "bfloat16 keeps eight significant bits. What happens to the last bits of a weight when something is added?",
        "W + ΔW is rounded to 8 bits; subtracting ΔW rounds again. Bits that were shifted out do not come back, and "
        "the weights that are small beside ΔW lose most of theirs.",
        "Run the cell: it counts how many weights are what they were before. Read the share off.",
    ),
)
def brought_back(answer: object, _generator: torch.Generator) -> Iterator[Property]:
    """A letter: how many bfloat16 weights are bit for bit what they were after adding and subtracting an update."""
    yield from choice(
        answer,
        "C",
        {
            "A": "adding and subtracting undo each other in real numbers only: in bfloat16 both results are rounded",
            "B": "the loss isn't rare: every weight whose sum needs more than eight significant bits is rounded",
            "D": "many sums fit into eight bits, or are rounded back to where they came from",
        },
    )
