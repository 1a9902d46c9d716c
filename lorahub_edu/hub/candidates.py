"""Which modules to compose: drawn at random as in the source, or retrieved, by loss or by likeness of instructions.

A method is a function of (count, question) that returns names, best first; `register` adds one.

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 4.1: 20 modules drawn at random of about 200. Claim H3.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorahub_edu.data.fewshot import PromptedRow, ScoringBatch
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.hub.compose import ModuleStack
from lorahub_edu.hub.population import Population

STATES = ("input", "hidden")


@dataclass(frozen=True)
class Question:
    """What a choice may rest on; each method says which parts it needs.

    Attributes:
        names: all modules there are.
        seed: of a random draw.
        model: the base model, without adapters.
        tokenizer: the model's.
        modules: the modules, stacked for the exact composition.
        rows: the few examples, encoded.
        instruction: the new task's.
        cards: the modules' instructions, by name.
    """

    names: Sequence[str] = ()
    seed: int = 0
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    modules: ModuleStack | None = None
    rows: Sequence[PromptedRow] | Sequence[ScoringBatch] = ()
    instruction: str = ""
    cards: Mapping[str, str] | None = None


Method = Callable[[int, Question], list[str]]
_METHODS: dict[str, Method] = {}


def register(name: str, needs: Sequence[str]) -> Callable[[Method], Method]:
    """Add a way to choose, for `choose` by name.

    Args:
        name: what it is called.
        needs: fields of `Question` that must be given.
    """

    def add(method: Method) -> Method:
        def checked(count: int, question: Question) -> list[str]:
            missing = [field for field in needs if not _given(getattr(question, field))]
            if missing:
                raise CourseError(f"Choosing by {name!r} needs {', '.join(missing)}: give it in the question.")
            return method(count, question)

        _METHODS[name] = checked
        return method

    return add


def _given(value: object) -> bool:
    return value is not None and (not hasattr(value, "__len__") or len(value) > 0)


def methods() -> list[str]:
    """The names of all registered methods."""
    return list(_METHODS)


def choose(method: str | Method, count: int, question: Question) -> list[str]:
    """Choose candidates to compose.

    Args:
        method: "random", "loss", "input_embedding", "hidden_embedding", another that was registered, or a function of
            (count, question).
        count: how many.
        question: what the method needs.

    Returns:
        `count` names, best first where the method has an order.

    Raises:
        CourseError: unknown method, something it needs is missing, or there are fewer modules.
    """
    if callable(method):
        return method(count, question)
    if method not in _METHODS:
        raise CourseError(f"There is no way to choose called {method!r}. {near_matches(str(method), _METHODS)}")
    return _METHODS[method](count, question)


def _check(count: int, available: int) -> None:
    if not 1 <= count <= available:
        raise CourseError(f"{count} candidates can't be chosen from {available} modules. Ask for 1 to {available}.")


def random_candidates(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Names drawn without replacement, the same for the same seed.

    Args:
        names: all modules there are.
        count: how many to draw.
        seed: of the draw.

    Raises:
        CourseError: there are fewer names.

    Source: Huang et al. 2023, section 4.1; claim H3.
    """
    _check(count, len(names))
    return random.Random(seed).sample(list(names), count)


def single_losses(
    model: PreTrainedModel, modules: ModuleStack, rows: Sequence[PromptedRow] | Sequence[ScoringBatch]
) -> np.ndarray:
    """Loss of the base with each module alone, all in one batched forward.

    Args:
        model: the base model, without adapters.
        modules: N modules.
        rows: encoded examples.

    Returns:
        (N,) float64, in nats a label token; NaN where a module's weights or its forward are not finite.
    """
    losses = np.full(len(modules), np.nan)
    # One forward holds all modules, and 0 times infinity is NaN: a broken module would spoil every candidate.
    sound = torch.isfinite(modules.flat).all(1).nonzero().flatten().tolist()
    if sound:
        kept = modules.choose([modules.names[i] for i in sound])
        with Population(model, kept, "exact") as population:
            losses[sound] = population.score(np.eye(len(kept)), rows).losses
    return losses


def by_loss(
    model: PreTrainedModel,
    modules: ModuleStack,
    rows: Sequence[PromptedRow] | Sequence[ScoringBatch],
    count: int,
) -> list[str]:
    """The modules that fit the examples best on their own, best first.

    Args:
        model: the base model, without adapters.
        modules: all modules there are.
        rows: encoded examples.
        count: how many to take.

    Raises:
        CourseError: there are fewer modules.

    Source: Huang et al. 2023 compares with the single best module that is found this way; claim H12.
    """
    _check(count, len(modules))
    order = np.argsort(single_losses(model, modules, rows), kind="stable")  # NaN goes last
    return [modules.names[i] for i in order[:count]]


@torch.no_grad()
def embed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], states: str = "hidden"
) -> Tensor:
    """One vector a text: the mean of its tokens' input embeddings or last hidden states.

    Args:
        model: a causal language model or an encoder-decoder (its encoder is used).
        tokenizer: the model's.
        texts: at least one; they go through the model one by one, so that no padding takes part.
        states: "input" or "hidden".

    Returns:
        (texts, d) float32.

    Raises:
        CourseError: there are no such states, or a text is empty.
    """
    if states not in STATES:
        raise CourseError(f"There are no states {states!r} to embed with. {near_matches(str(states), STATES)}")
    vectors = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)  # (1, T)
        if not ids.numel():
            raise CourseError("An empty text has no embedding: give the task's instruction.")
        if states == "input":
            tokens = model.get_input_embeddings()(ids)  # (1, T, d)
        else:
            reader = model.get_encoder() if model.config.is_encoder_decoder else model.get_decoder()
            tokens = reader(input_ids=ids).last_hidden_state  # (1, T, d)
        vectors.append(tokens[0].float().mean(0))  # (d,)
    return torch.stack(vectors).cpu()


def by_embedding(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    instruction: str,
    cards: Mapping[str, str],
    count: int,
    states: str = "hidden",
) -> list[str]:
    """The modules whose instructions read most like the new task's, by cosine, best first.

    Args:
        model: embeds the texts.
        tokenizer: the model's.
        instruction: the new task's.
        cards: the modules' instructions, by name.
        count: how many to take.
        states: "input" or "hidden", as in `embed`. All cosines are taken around the mean of the modules' vectors,
            because a language model's hidden states share one large direction that says nothing about the text.

    Raises:
        CourseError: there are fewer modules, or a text is empty.

    Source: retrieval by a text's embedding as in Zhao et al. 2024, "LoraRetriever", arXiv 2402.09997, with the base
        model's own states in place of a trained encoder; taking off the mean: Mu & Viswanath 2018, arXiv 1702.01417.
    """
    _check(count, len(cards))
    vectors = embed(model, tokenizer, [instruction, *cards.values()], states)  # (1 + N, d)
    vectors = vectors - vectors[1:].mean(0)
    cosines = torch.cosine_similarity(vectors[:1], vectors[1:])  # (N,)
    known = list(cards)
    return [known[i] for i in torch.argsort(cosines, descending=True, stable=True)[:count].tolist()]


@register("random", ("names",))
def _random(count: int, question: Question) -> list[str]:
    return random_candidates(question.names, count, question.seed)


@register("loss", ("model", "modules", "rows"))
def _loss(count: int, question: Question) -> list[str]:
    return by_loss(question.model, question.modules, question.rows, count)


def _embedding(states: str) -> Method:
    def method(count: int, question: Question) -> list[str]:
        return by_embedding(
            question.model, question.tokenizer, question.instruction, question.cards, count, states=states
        )

    return method


for _states in STATES:
    register(f"{_states}_embedding", ("model", "tokenizer", "instruction", "cards"))(_embedding(_states))
