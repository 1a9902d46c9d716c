"""Checks of lesson 03's assignment on rows: the prompt, the block's length, padding, packing, the split.

Sources: Taori et al. 2023, Stanford Alpaca (templates); Raschka 2023 (the split into train and validation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lorahub_checks.draws import integer, tokens
from lorahub_checks.predictions import choice
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds
from lorahub_edu.data import alpaca
from lorahub_edu.show import objects
from lorahub_edu.show.objects import there

END = 2
WORDS = ("river", "seven", "paint", "cloud", "table", "green", "north", "quiet", "letter", "stone")


@problem(
    "03.4",
    "the prompt",
    hints=(
        "Which of the two templates fits a row whose input is empty, or missing?",
        "row.get('input', '') is empty in both cases. Fill both places at once, so that text in the instruction that "
        "looks like a placeholder stays text.",
        "A template '{instruction} {input}', filled by one format with both names, leaves an instruction that "
        "contains '{input}' as it is. Two replacements in turn would not.",
    ),
)
def format_prompt(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """format_prompt(row, with_input, without_input) -> the prompt, in a template with {instruction} and {input}."""
    words = [WORDS[i] for i in torch.randperm(len(WORDS), generator=generator).tolist()]
    both, one = alpaca.PROMPT_WITH_INPUT, alpaca.PROMPT_WITHOUT_INPUT
    plain = {"instruction": f"Name a {words[0]} and a {words[1]}.", "output": f"{words[2]} {words[3]}"}
    rows = {
        "a row with an input": plain | {"input": f"{words[4]}, {words[5]}"},
        "an empty input": plain | {"input": ""},
        "no input at all": plain,
        "an instruction that speaks of {input}": {
            "instruction": f"Explain what {{input}} stands for in a {words[6]} template.",
            "input": f"a {words[7]}",
            "output": words[8],
        },
    }
    for name, row in rows.items():
        instruction, given = row["instruction"], row.get("input", "")
        expected = alpaca.format_prompt(alpaca.Example(instruction, given, row["output"]))
        other = one if given else both
        wrong = {
            "the template with an input is used for a row without one": other.replace(
                "{instruction}", instruction
            ).replace("{input}", given)
            if not given
            else None,
            "the template without an input is used, so the input is lost": other.replace("{instruction}", instruction)
            if given
            else None,
            "the response is in the prompt: the model would read what it is to write": expected + row["output"],
            "instruction and input changed places": both.format(instruction=given, input=instruction),
            "text in the instruction was taken for a placeholder: fill both places at once": both.replace(
                "{instruction}", instruction
            ).replace("{input}", given),
            "the line break at the end is missing: the response starts on a line of its own": expected.rstrip(),
        }
        seen = answer(row, both, one)
        yield equals(name, seen, expected, misconceptions=wrong)


@problem(
    "03.5",
    "a row in a block",
    hints=(
        "What does the model learn if the end token follows a response that was cut off in the middle?",
        "Put prompt, response and end token together, then keep the first `block` of them. Labels are cut in the same "
        "way. If the prompt alone fills the block, there is nothing to learn: the answer is None.",
        "Block 5, a prompt of 3, a response of 3: of 3 + 3 + 1 tokens the first 5 stay, and the labels are three "
        "times -100 and two tokens. A prompt of 5 leaves nothing to learn.",
    ),
)
def cut(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """cut(prompt_ids, response_ids, eos_id, block) -> (input_ids, labels) of at most `block` tokens, or None."""
    prompt, response = tokens(integer(4, 8, generator), generator), tokens(integer(6, 9, generator), generator)
    whole, n = [*prompt, *response, END], len(prompt)
    sizes = {
        "there is room to spare": len(whole) + 3,
        "it fits exactly": len(whole),
        "only the end token doesn't fit": len(whole) - 1,
        "the response is cut": n + 3,
        "one token of response is left": n + 1,
    }
    for name, block in sizes.items():
        ids = whole[:block]
        right = (ids, [-100] * n + ids[n:])
        ended = (whole[:-1][: block - 1]) + [END]
        shorter = whole[: block - 1]
        wrong = {
            "the end token follows a cut response: the model would learn to stop in the middle": (
                ended,
                [-100] * n + ended[n:],
            ),
            "the beginning is cut off instead of the end": (whole[-block:], ([-100] * n + whole[n:])[-block:]),
            "one token too few is kept: `block` tokens fit": (shorter, [-100] * n + shorter[n:]),
            "nothing is cut": (whole, [-100] * n + whole[n:]),
            "the labels are not cut": (ids, [-100] * n + whole[n:]),
            "nothing is masked: the prompt takes no loss": (ids, ids),
            "the end token is missing": (whole[:-1][:block], [-100] * n + whole[n:-1][: block - n]),
        }
        seen = answer(prompt, response, END, block)
        yield _pair(name, seen, right, wrong)
    for name, block in {"the prompt fills the block": n, "the prompt is longer than the block": n - 2}.items():
        seen = answer(prompt, response, END, block)
        words = "a row without a label teaches nothing: return None when the prompt leaves no room"
        yield holds(name, seen is None, seen, words)


def _pair(name: str, seen: object, right: tuple[list, list], wrong: dict[str, tuple[list, list]]) -> Property:
    if seen is None:
        return holds(
            name, False, "None", "the row was left out, or a return is missing: there is something to learn here"
        )
    pair = isinstance(seen, list | tuple) and len(seen) == 2
    if not pair:
        return holds(name, False, seen, "a pair is asked for: input ids and labels")
    return equals(name, seen, right, misconceptions=wrong)


@problem(
    "03.6",
    "a padded batch",
    hints=(
        "Padding must be seen by nobody and take no loss. What if the padding token is also the end token?",
        "Build mask and labels from the rows' lengths, never by looking for the padding token: it may stand in the "
        "text.",
        "Rows of 3 and 2 tokens: the second gets one pad_id at its right, one -100 in its labels, and the mask 1, 1, "
        "0.",
    ),
)
def collate(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """collate(rows, pad_id) -> input_ids, labels, attention_mask, each (rows, longest), from pairs (ids, labels)."""
    for name, pad in {"a padding token of its own": 0, "the end token pads": END}.items():
        rows = []
        for length in (7, 4, 9) if pad == 0 else (9, 7, 4):
            ids = [*tokens(length, generator), END]
            rows.append((ids, [-100] * 3 + ids[3:]))
        ids, labels = ([torch.tensor(row[i]) for row in rows] for i in (0, 1))
        right = [
            pad_sequence(ids, True, pad),
            pad_sequence(labels, True, -100),
            pad_sequence([torch.ones_like(i) for i in ids], True, 0),
        ]
        seen = answer(rows, pad)
        three = isinstance(seen, list | tuple) and len(seen) == 3
        words = "return three tensors: input ids, labels, attention mask"
        yield holds(f"{name}: three come back", three, type(seen).__name__, words)
        if not three:
            return
        found = [part if isinstance(part, Tensor) else torch.as_tensor(part) for part in seen]
        for part, tensor, expected in zip(("input ids", "labels", "mask"), found, right, strict=True):
            yield equals(
                f"{name}: {part}", tensor.long(), expected, misconceptions=_wrong_padding(part, ids, labels, right, pad)
            )


def _wrong_padding(part: str, ids: list[Tensor], labels: list[Tensor], right: list[Tensor], pad: int) -> dict:
    """What each mistake gives in place of one of the three tensors of a padded batch."""
    left = "the padding stands on the left: here it belongs on the right"
    if part == "input ids":
        return {
            left: pad_sequence(ids, True, pad, "left"),
            "padding is -100: that is for labels": pad_sequence(ids, True, -100),
        }
    if part == "labels":
        return {
            "labels are padded with the padding token, which then takes a loss: use -100": pad_sequence(
                labels, True, pad
            ),
            "the end token's label was masked too: it is the padding token here, so go by the lengths": torch.where(
                right[0] == pad, -100, right[1]
            ),
            "labels are padded with 0: use -100": pad_sequence(labels, True, 0),
            left: pad_sequence(labels, True, -100, "left"),
            "these are the input ids: keep the rows' own labels": right[0],
        }
    ones = [torch.ones_like(i) for i in ids]
    return {
        "the end token is hidden too: it is the padding token here, so go by the lengths": (right[0] != pad).long(),
        "the mask is upside down: 1 stands for a token": 1 - right[2],
        "padding is not hidden": torch.ones_like(right[2]),
        "the prompt is hidden: it takes no loss, but it must be seen": (right[1] != -100).long(),
        left: pad_sequence(ones, True, 0, "left"),
    }


@problem(
    "03.7",
    "a split that can be repeated",
    hints=(
        "Which random numbers do you shuffle with, and who else uses them?",
        "A generator of your own, random.Random(seed), gives the same order each time and leaves all others alone. "
        "Shuffle a list of indices, not the rows that were handed to you.",
        "Four rows: the list of indices is 0, 1, 2, 3, and a Random with the seed shuffles it in place. With "
        "validation = 1 the first index is held back and the other three train.",
    ),
)
def split(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """split(rows, validation, seed) -> (training rows, validation rows): random, disjoint, repeatable."""
    size, count, seed = integer(40, 60, generator), integer(8, 15, generator), integer(1, 900, generator)
    rows = [f"row {number}" for number in torch.randperm(999, generator=generator)[:size].tolist()]
    before = there(answer, objects.random_states)
    seen = answer(rows, count, seed)
    after = there(answer, objects.random_states)
    pair = isinstance(seen, list | tuple) and len(seen) == 2
    yield holds("two lists come back", pair, type(seen).__name__, "return training rows and validation rows")
    if not pair:
        return
    train, validation = (list(part) for part in seen)
    sizes, wanted = (len(train), len(validation)), (size - count, count)
    words = "training and validation changed places" if sizes == wanted[::-1] else ""
    words = "training keeps the rows that are validated on" if sizes == (size, count) else words
    yield holds("the sizes are right", sizes == wanted, f"{sizes}, expected {wanted}", words)
    once = sorted(train + validation) == sorted(rows)
    yield holds(
        "every row is in exactly one part", once, misconception="the parts overlap: both must come from one order"
    )
    again = answer(rows, count, seed)
    same = [list(part) for part in again] == [train, validation]
    yield holds("the same seed gives the same split", same, misconception="the seed is not used")
    other = answer(rows, count, seed + 1)
    differs = sorted(other[1]) != sorted(validation)
    words = "another seed gives the same rows: nothing is shuffled, or always with one seed"
    yield holds("another seed gives another split", differs, misconception=words)
    places = sorted(rows.index(row) for row in validation)
    scattered = places != list(range(places[0], places[0] + count))
    words = "the validation rows are neighbours: draw them from all rows"
    yield holds("the validation rows are drawn from everywhere", scattered, places, words)
    words = "a global seed was set: use a generator of your own, so that nothing else changes"
    yield holds("all other random numbers stay as they are", before == after, misconception=words)


@problem(
    "03.8",
    "who sees whom in a packed sequence",
    hints=(
        "Three rows stand in one sequence. Which tokens would each of them see if it stood alone?",
        "A token sees itself and what comes before it, within its own row: a lower triangle for each row, placed on "
        "the diagonal.",
        "Lengths 2 and 1 give the rows 1 0 0, 1 1 0, 0 0 1. The first block is torch.ones(2, 2).tril(); "
        "torch.block_diag places blocks on the diagonal.",
    ),
)
def may_attend(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """may_attend(lengths) -> (T, T) of booleans: may the token of this row see the token of that column?"""
    for rows in (3, 1, 4):  # in a single row several mistakes look alike, so it is not the first
        lengths = [integer(2, 6, generator) for _ in range(rows)]
        right = torch.block_diag(*[torch.ones(n, n).tril() for n in lengths])
        total = sum(lengths)
        whole = torch.block_diag(*[torch.ones(n, n) for n in lengths])
        wrong = {
            "a token sees tokens of other rows: a triangle must start anew with each row": torch.ones(
                total, total
            ).tril(),
            "a token sees what comes after it in its own row": whole,
            "a token doesn't see itself: the diagonal belongs to the triangle": right - torch.eye(total),
            "rows and columns changed places: a token sees what comes before it": right.T,
            "everything is allowed": torch.ones(total, total),
            "allowed and forbidden changed places": 1 - right,
            "a token sees nothing but itself": torch.eye(total),
        }
        yield equals(
            f"{rows} row{'s' if rows > 1 else ''} in one sequence", answer(lengths), right.bool(), misconceptions=wrong
        )


@problem(
    "03.9",
    "how much of a row takes no loss",
    hints=(
        "What stands in every prompt, whatever the row asks?",
        "The template alone has some thirty words; most responses have about as many.",
        "Run the cell: it encodes the course's own rows and counts the tokens on both sides of the mask.",
    ),
)
def prompt_share(answer: object, _generator: torch.Generator) -> Iterator[Property]:
    """A letter: the share of tokens of the course's own rows that belong to the prompt."""
    yield from choice(
        answer,
        "B",
        {
            "A": "most rows are answered in a line or two, and the template stands in every one of them",
            "C": "the template is short in tokens: its words are so common here that the tokenizer has learnt them",
            "D": "the responses are not that short: run the cell and count",
        },
    )
