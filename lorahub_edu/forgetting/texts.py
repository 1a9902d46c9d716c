"""Text like that which a model was pretrained on, to see what fine-tuning makes it forget."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets

logger = logging.getLogger(__name__)

SHIPPED_FILE = "plain_texts.json"
SHIPPED = "the course's own plain texts (CC BY 4.0)"
FETCHED = "encyclopaedia articles and web pages, half and half"
WIKIPEDIA, C4 = "wikipedia_texts", "c4_texts"
SEQUENCES, TOKENS = 64, 64


@dataclass(frozen=True)
class Texts:
    """Sequences of tokens (S, T), all of one length, and one phrase that says what they are."""

    sequences: Tensor
    label: str


def load(
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequences: int = SEQUENCES,
    tokens: int = TOKENS,
    fetch: bool = True,
    offline: bool = False,
) -> Texts:
    """Sequences of plain text on which no run of this course trains.

    Half of them begin articles of an encyclopaedia and half web pages; without these files (or without `fetch`), all
    are from the texts that the course ships. The sources' articles may have been part of the model's pretraining, which
    is what is wanted: the loss on them says what of that is lost.
    Raises CourseError: there are too few texts of that length.
    Source: Shuttleworth et al. 2024, arXiv 2410.21228, figure 9 (pseudo-loss; claim I9).
    """
    if sequences < 2 or tokens < 2:
        raise CourseError(f"{sequences} sequences of {tokens} tokens: take at least 2 of each.")
    if fetch:
        try:
            half = sequences // 2
            articles = _cut(tokenizer, _lines(WIKIPEDIA, offline), half, tokens)
            pages = [json.loads(line)["text"] for line in _lines(C4, offline)]
            return Texts(torch.tensor(articles + _cut(tokenizer, pages, sequences - half, tokens)), FETCHED)
        except CourseError as problem:
            logger.warning("The fetched texts could not be used, so the shipped ones are. %s", problem)
    return Texts(torch.tensor(_cut(tokenizer, shipped(), sequences, tokens)), SHIPPED)


def shipped() -> list[str]:
    return json.loads((resources.files("lorahub_edu.data") / SHIPPED_FILE).read_text(encoding="utf-8"))


def _lines(asset: str, offline: bool) -> list[str]:
    path = assets.fetch(asset, offline=offline)
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _cut(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], count: int, tokens: int) -> list[list[int]]:
    """The first `tokens` tokens of each text; when the texts are used up, the next ones of each, and so on."""
    encoded = tokenizer([text[: 400 * tokens] for text in texts], add_special_tokens=False).input_ids
    rounds = range(max(map(len, encoded), default=0) // tokens)
    windows = [
        ids[number * tokens : (number + 1) * tokens]
        for number in rounds
        for ids in encoded
        if len(ids) >= (number + 1) * tokens
    ]
    if len(windows) < count:
        raise CourseError(
            f"{len(texts)} texts hold {len(windows)} sequences of {tokens} tokens, fewer than {count}: ask for "
            f"fewer or shorter ones."
        )
    return windows[:count]
