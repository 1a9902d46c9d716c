"""Classification tasks made from real text: an encyclopaedia, web pages, and Alpaca's instructions and replies.

The texts are fetched and never committed. A document or reply in a task's test items is in none of its training items.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from lorahub_edu.data import tasks
from lorahub_edu.data.alpaca import load_rows
from lorahub_edu.data.rows import Example
from lorahub_edu.data.tasks import Item, Task
from lorahub_edu.files import assets
from lorahub_edu.forgetting.texts import C4, WIKIPEDIA

WORDS = range(6, 13)  # of a sentence
REPLY_WORDS = 8
SENTENCES = 20  # of one document at most, so that no long article is most of a task
TESTED = 3  # every third document is for the test


def get(name: str) -> Task:
    """A task of this file ("reply", "order" or "source"), else the built-in task of that name."""
    return _shipped().get(name) or tasks.get(name)


@cache
def _shipped() -> dict[str, Task]:
    articles = [line for line in _text(WIKIPEDIA).splitlines() if line.strip()]
    pages = [json.loads(line)["text"] for line in _text(C4).splitlines()]
    return make(articles, pages, load_rows("alpaca")[0])


def _text(asset: str) -> str:
    return Path(assets.fetch(asset)).read_text(encoding="utf-8")


def make(articles: Sequence[str], pages: Sequence[str], rows: Sequence[Example]) -> dict[str, Task]:
    """The three tasks by name, each with as many items of one label as of the other.

    "source": does a sentence come from an article or a page? "order": are its words in order, or shuffled? "reply": is
    the reply that of the instruction, or of another one?
    """
    generator = random.Random("text tasks")
    parts = {"train": ([], [], []), "test": ([], [], [])}
    asked = [row for row in rows if not row.input and len(row.instruction.split()) in range(4, 10)]
    for part, (source, order, reply) in parts.items():
        first, second = (_sentences(_part(documents, part)) for documents in (articles, pages))
        generator.shuffle(first)
        generator.shuffle(second)
        for one, other in zip(first, second, strict=False):
            source += [Item(one, "article"), Item(other, "page")]
            order += [Item(one, "right"), Item(_shuffled(other, generator), "wrong")]
            order += [Item(_shuffled(one, generator), "wrong"), Item(other, "right")]
        mine = _part(asked, part)
        for row, other in zip(mine, [*mine[1:], *mine[:1]], strict=True):
            reply += [Item(f"{row.instruction} {_beginning(row)}", "Yes")]
            reply += [Item(f"{row.instruction} {_beginning(other)}", "No")]
    wordings = {"source": "Article or page?", "order": "Is the word order right?", "reply": "Does the reply fit?"}
    return {
        name: Task(name, "own", (wording,), *(tuple(parts[part][i]) for part in parts))
        for i, (name, wording) in enumerate(wordings.items())
    }


def _part(documents: Sequence, part: str) -> list:
    return [document for i, document in enumerate(documents) if (i % TESTED == 0) == (part == "test")]


def _sentences(documents: Sequence[str]) -> list[str]:
    """Whole short sentences, from every document at most so many."""
    return [
        sentence
        for document in documents
        for sentence in [s for s in re.split(r"(?<=[.!?])\s+", document) if _is_plain(s)][:SENTENCES]
    ]


def _is_plain(sentence: str) -> bool:
    return len(sentence.split()) in WORDS and sentence[0].isupper() and sentence.endswith(".") and sentence.isascii()


def _shuffled(sentence: str, generator: random.Random) -> str:
    """The sentence with all words but the first and the last in another order."""
    first, *inner, last = sentence.split()
    mixed = inner
    while mixed == inner and len(set(inner)) > 1:
        mixed = generator.sample(inner, len(inner))
    return " ".join([first, *mixed, last])


def _beginning(row: Example) -> str:
    return " ".join(row.output.split()[:REPLY_WORDS])
