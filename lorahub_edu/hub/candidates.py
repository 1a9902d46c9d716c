"""Which modules to compose: drawn at random as in the source, or retrieved, by loss or by likeness of instructions.

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 4.1: 20 modules drawn at random of about 200. Claim H3.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorahub_edu.data.fewshot import PromptedRow, ScoringBatch
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.hub import zoo
from lorahub_edu.hub.compose import ModuleStack, stack
from lorahub_edu.hub.population import Population

PREFILTERS = ("draw", "instruction", "loss")
AT_ONCE = 50  # modules in memory


@dataclass(frozen=True)
class Question:
    """What a choice may rest on; each method in `METHODS` names the fields that it needs.

    `modules` are stacked for the exact composition. `rows` are the few examples, encoded. `instruction` is the new
    task's, and `cards` are the modules' own instructions, by name.
    """

    names: Sequence[str] = ()
    seed: int = 0
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    modules: ModuleStack | None = None
    rows: Sequence[PromptedRow] | Sequence[ScoringBatch] = ()
    instruction: str = ""
    cards: Mapping[str, str] | None = None


def choose(method: str, count: int, question: Question) -> list[str]:
    """Choose `count` candidates to compose by a name in `METHODS`, best first where it has an order.

    Raises CourseError: unknown method, something it needs is missing, or there are fewer modules.
    """
    if method not in METHODS:
        raise CourseError(f"There is no way to choose called {method!r}. {near_matches(str(method), METHODS)}")
    needs, function = METHODS[method]
    missing = [field for field in needs if not getattr(question, field)]
    if missing:
        raise CourseError(f"Choosing by {method!r} needs {', '.join(missing)}: give it in the question.")
    return function(count, question)


def random_candidates(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Names drawn without replacement, the same for the same seed (Huang et al. 2023, section 4.1; claim H3)."""
    _check(count, len(names))
    return random.Random(seed).sample(list(names), count)


def single_losses(
    model: PreTrainedModel, modules: ModuleStack, rows: Sequence[PromptedRow] | Sequence[ScoringBatch]
) -> np.ndarray:
    """Loss of the base with each of N modules alone, (N,) float64 in nats a token; NaN where it is not finite."""
    losses = np.full(len(modules), np.nan)
    # One forward holds all modules, and 0 times infinity is NaN: a broken module would spoil every candidate.
    sound = torch.isfinite(modules.flat).all(1).nonzero().flatten().tolist()
    if sound:
        kept = replace(modules, names=tuple(modules.names[i] for i in sound), flat=modules.flat[sound])
        with Population(model, kept, "exact") as population:
            losses[sound] = population.score(np.eye(len(kept)), rows).losses
    return losses


def prefilter(
    how: str,
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    instruction: str,
    rows: Sequence[PromptedRow],
    seed: int = 0,
) -> list[str]:
    """A few of a folder's thousands of modules, by "draw:20", "instruction:20" or "loss:20" (on the first example).

    Only the modules that one forward holds are in memory at one time.
    Raises CourseError: another way, fewer modules, or no module has an instruction.
    """
    method, _, count = how.partition(":")
    known = zoo.headers(folder)
    if method not in PREFILTERS or not count.isdigit():
        raise CourseError(f"There is no pre-filter {how!r}: give draw:20, instruction:20 or loss:20.")
    _check(int(count), len(known))
    if method == "draw":
        return random_candidates(list(known), int(count), seed)
    if method == "instruction":
        cards = {name: text for name, (text, _) in known.items() if text}
        question = Question(model=model, tokenizer=tokenizer, instruction=instruction, cards=cards)
        return choose("input_embedding", int(count), question)  # a forward for each of thousands takes too long
    names, losses = list(known), []
    for start in range(0, len(names), AT_ONCE):
        files = zoo.load(names[start:][:AT_ONCE], folder)
        losses += list(single_losses(model, stack(files, composition="exact", dtype=torch.float32), rows[:1]))
    return [names[i] for i in np.argsort(losses, kind="stable")[: int(count)]]  # NaN goes last


def by_loss(count: int, question: Question) -> list[str]:
    """The modules that fit the examples best on their own, best first; claim H12."""
    modules = question.modules
    _check(count, len(modules))
    order = np.argsort(single_losses(question.model, modules, question.rows), kind="stable")  # NaN goes last
    return [modules.names[i] for i in order[:count]]


def by_embedding(count: int, question: Question, states: str) -> list[str]:
    """The modules whose instructions are most like the new task's, by cosine, best first.

    All cosines are taken around the mean of the modules' vectors. A language model's hidden states share one large
    direction that says nothing about the text.
    Source: retrieval by a text's embedding as in Zhao et al. 2024, "LoraRetriever", arXiv 2402.09997, with the base
        model's own states in place of a trained encoder; subtracting the mean: Mu & Viswanath 2018, arXiv 1702.01417.
    """
    known = list(question.cards)
    _check(count, len(known))
    texts = [question.instruction, *question.cards.values()]
    vectors = embed(question.model, question.tokenizer, texts, states)  # (1 + N, d)
    vectors = vectors - vectors[1:].mean(0)
    cosines = torch.cosine_similarity(vectors[:1], vectors[1:])  # (N,)
    return [known[i] for i in torch.argsort(cosines, descending=True, stable=True)[:count].tolist()]


@torch.no_grad()
def embed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], states: str = "hidden"
) -> Tensor:
    """One vector a text, (texts, d) float32: its mean input embedding ("input") or last hidden state ("hidden").

    An encoder-decoder reads with its encoder. Texts go through the model one by one, so that no padding takes part.
    """
    vectors = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)  # (1, T)
        if states == "input":
            tokens = model.get_input_embeddings()(ids)  # (1, T, d)
        else:
            reader = model.get_encoder() if model.config.is_encoder_decoder else model.get_decoder()
            tokens = reader(input_ids=ids).last_hidden_state  # (1, T, d)
        vectors.append(tokens[0].float().mean(0))  # (d,)
    return torch.stack(vectors).cpu()


def _check(count: int, available: int) -> None:
    if not 1 <= count <= available:
        raise CourseError(f"{count} candidates can't be chosen from {available} modules. Ask for 1 to {available}.")


# By name: the fields of `Question` that a method needs, and the method.
_TEXTS = ("model", "tokenizer", "instruction", "cards")
METHODS: dict[str, tuple[tuple[str, ...], Callable[[int, Question], list[str]]]] = {
    "random": (("names",), lambda count, question: random_candidates(question.names, count, question.seed)),
    "loss": (("model", "modules", "rows"), by_loss),
    "input_embedding": (_TEXTS, partial(by_embedding, states="input")),
    "hidden_embedding": (_TEXTS, partial(by_embedding, states="hidden")),
}
