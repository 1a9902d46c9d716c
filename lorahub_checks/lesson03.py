"""Checks of lesson 03: the loss mask, positions in a packed sequence, perplexity of a set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from lorahub_checks.draws import integer, tokens
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals


@problem(
    "03.1",
    "the loss mask",
    (
        "Which tokens should the model learn to write, and which does it only read?",
        "Labels are as long as the sequence. -100 stands where the loss is not taken: on the whole prompt, and nowhere "
        "else. The end token is something the model must learn to write.",
        "Prompt [5, 6], response [7], end 2: the sequence is [5, 6, 7, 2], and its labels are [-100, -100, 7, 2].",
    ),
)
def labels_for(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """labels_for(prompt_ids, response_ids, eos_id) -> labels, not shifted."""
    for _ in range(3):
        prompt, response = (tokens(integer(4, 8, generator), generator) for _ in range(2))
        eos, n = 2, len(prompt)
        prompt[1], response[-2] = eos, eos  # the end token may stand inside, and is masked by its place alone
        whole = [*prompt, *response, eos]
        seen = answer(prompt, response, eos)
        yield equals(
            "-100 on the prompt, the tokens themselves on response and end",
            seen,
            torch.tensor([-100] * n + response + [eos]),
            misconceptions={
                "the prompt is learnt too: nothing is masked": whole,
                "the first token of the response is masked as well (off by one)": [-100] * (n + 1) + whole[n + 1 :],
                "the last token of the prompt is not masked (off by one)": [-100] * (n - 1) + whole[n - 1 :],
                "the end token is masked, so the model never learns to stop": [-100] * n + response + [-100],
                "the end token is missing": [-100] * n + response,
                "0 is a token like any other; the loss skips -100": [0] * n + response + [eos],
                "the labels are shifted by one; the model does that itself": [-100] * (n - 1) + response + [eos, -100],
                "mask and labels are the wrong way round: the response is masked": prompt
                + [-100] * (len(response) + 1),
            },
        )


@problem(
    "03.2",
    "positions in a packed sequence",
    (
        "What position would a token have if its row stood alone?",
        "Packing must not change what a row means, so every row starts at position 0 again.",
        "Lengths 3 and 2 give 0, 1, 2, 0, 1: one range for each length, one after the other.",
    ),
)
def packed_positions(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """packed_positions(lengths) -> positions of all tokens."""
    for rows in (1, 3, 5):
        lengths = torch.randint(2, 9, (rows,), generator=generator).tolist()
        expected = [position for length in lengths for position in range(length)]
        longest = max(lengths)
        yield equals(
            f"{rows} row{'s' if rows > 1 else ''}: every row starts at 0",
            answer(list(lengths)),
            torch.tensor(expected),
            misconceptions={
                "positions run on from one row into the next": torch.arange(sum(lengths)) if rows > 1 else math.nan,
                "positions start at 1, but the first token of a row is at 0": torch.tensor(expected) + 1,
                "every row was given the longest row's positions": torch.arange(longest).repeat(rows)
                if len(set(lengths)) > 1
                else math.nan,
                "these are row numbers, not positions": [row for row in range(rows) for _ in range(lengths[row])],
                "each row goes one too far: range(length) stops before length": [
                    position for length in lengths for position in range(length + 1)
                ],
            },
        )


@problem(
    "03.3",
    "perplexity of a set",
    (
        "A row of three hundred tokens and a row of three: should they count alike?",
        "Perplexity is exp of the mean loss over all tokens, so a row's mean loss has to be weighted with its tokens.",
        "Losses 1 and 3 with 3 and 1 tokens: the mean over tokens is (1 * 3 + 3 * 1) / 4 = 1.5. The perplexity is e "
        "to the power of 1.5.",
    ),
)
def perplexity_of(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """perplexity_of(losses, tokens) -> perplexity."""
    losses = (1 + 2 * torch.rand(4, generator=generator, dtype=torch.float64)).tolist()
    tokens = [integer(low, high, generator) for low, high in ((2, 5), (40, 59), (200, 299), (10, 19))]
    pairs = list(zip(losses, tokens, strict=True))
    mean = sum(loss * n for loss, n in pairs) / sum(tokens)
    outside = sum(math.exp(loss) * n for loss, n in pairs) / sum(tokens)
    yield equals(
        "exp of the mean loss over all tokens",
        answer(losses, tokens),
        math.exp(mean),
        misconceptions={
            "the rows' perplexities were averaged": sum(math.exp(loss) for loss in losses) / 4,
            "every row weighs the same: weight a row's loss with its tokens": math.exp(sum(losses) / 4),
            "the rows' perplexities were averaged by tokens; the mean belongs inside exp": outside,
            "this is the mean loss: exp is missing": mean,
            "the loss is in nats, so the base is e, not 2": 2**mean,
            "the sign is wrong: a loss is positive and perplexity at least 1": math.exp(-mean),
            "the sum was not divided by the number of tokens": math.exp(min(700.0, mean * sum(tokens))),
        },
    )
    yield equals("a single row", answer([losses[0]], [7]), math.exp(losses[0]))
    yield equals("a loss of zero is a perplexity of one", answer([0.0, 0.0], [3, 5]), 1.0)
