"""The checks of lessons 00 and 03 are themselves tested: right answers pass, each wrong one gets its own message."""

from __future__ import annotations

import itertools
import math

import pytest

from lorahub_edu.checks import check


def stub(*_args):
    raise NotImplementedError


RIGHT = {
    "00.1": [lambda alpha, rank: alpha / rank, lambda alpha, rank: alpha * rank**-1],
    "03.1": [
        lambda p, r, e: [-100] * len(p) + r + [e],
        lambda p, r, e: [*itertools.repeat(-100, len(p)), *r, e],
    ],
    "03.2": [
        lambda lengths: [i for n in lengths for i in range(n)],
        lambda lengths: list(itertools.chain.from_iterable(map(range, lengths))),
    ],
    "03.3": [
        lambda losses, tokens: math.exp(sum(a * b for a, b in zip(losses, tokens, strict=True)) / sum(tokens)),
        lambda losses, tokens: math.prod(math.exp(a) ** (b / sum(tokens)) for a, b in zip(losses, tokens, strict=True)),
    ],
}


def changes_its_argument(p, r, e):
    r += [e]
    return [-100] * len(p) + r


WRONG = [
    ("00.1", lambda a, r: a, "not divided by the rank"),
    ("00.1", lambda a, r: r / a, "upside down"),
    ("00.1", lambda a, r: a * r, "multiplied by the rank"),
    ("00.1", lambda a, r: a / math.sqrt(r), "rank-stabilised"),
    ("00.1", lambda a, r: a // r, "use / instead of //"),
    ("03.1", lambda p, r, e: p + r + [e], "nothing is masked"),
    ("03.1", lambda p, r, e: [-100] * (len(p) + 1) + r[1:] + [e], "first token of the response is masked"),
    ("03.1", lambda p, r, e: [-100] * (len(p) - 1) + p[-1:] + r + [e], "last token of the prompt is not masked"),
    ("03.1", lambda p, r, e: [-100] * len(p) + r + [-100], "never learns to stop"),
    ("03.1", lambda p, r, e: [-100] * len(p) + r, "end token is missing"),
    ("03.1", lambda p, r, e: [0] * len(p) + r + [e], "the loss skips -100"),
    ("03.1", lambda p, r, e: [-100] * (len(p) - 1) + r + [e, -100], "shifted by one"),
    ("03.1", lambda p, r, e: p + [-100] * (len(r) + 1), "the wrong way round"),
    ("03.1", changes_its_argument, "changed in place"),
    ("03.2", lambda lengths: list(range(sum(lengths))), "run on from one row"),
    ("03.2", lambda lengths: [i + 1 for n in lengths for i in range(n)], "start at 1"),
    ("03.2", lambda lengths: [i for _ in lengths for i in range(max(lengths))], "longest row's positions"),
    ("03.2", lambda lengths: [k for k, n in enumerate(lengths) for _ in range(n)], "row numbers"),
    ("03.2", lambda lengths: [i for n in lengths for i in range(n + 1)], "one too far"),
    ("03.3", lambda losses, tokens: sum(map(math.exp, losses)) / len(losses), "perplexities were averaged"),
    ("03.3", lambda losses, tokens: math.exp(sum(losses) / len(losses)), "every row weighs the same"),
    (
        "03.3",
        lambda losses, tokens: sum(math.exp(a) * b for a, b in zip(losses, tokens, strict=True)) / sum(tokens),
        "belongs inside exp",
    ),
    (
        "03.3",
        lambda losses, tokens: sum(a * b for a, b in zip(losses, tokens, strict=True)) / sum(tokens),
        "exp is missing",
    ),
    (
        "03.3",
        lambda losses, tokens: 2 ** (sum(a * b for a, b in zip(losses, tokens, strict=True)) / sum(tokens)),
        "base is e",
    ),
    (
        "03.3",
        lambda losses, tokens: math.exp(-sum(a * b for a, b in zip(losses, tokens, strict=True)) / sum(tokens)),
        "the sign is wrong",
    ),
]


@pytest.mark.parametrize(("id", "answer"), [(id, answer) for id, answers in RIGHT.items() for answer in answers])
def test_right_answers_pass(id, answer) -> None:
    for seed in range(10):
        assert check(id, answer, seed=seed).passed, str(check(id, answer, seed=seed))


@pytest.mark.parametrize(("id", "answer", "words"), WRONG)
def test_wrong_answers_fail_with_the_intended_message(id, answer, words) -> None:
    for seed in range(10):
        report = check(id, answer, seed=seed)
        assert not report.passed
        assert words in str(report), str(report)


@pytest.mark.parametrize("id", RIGHT)
def test_stubs_fail(id) -> None:
    report = check(id, stub)
    assert not report.passed and "still empty" in str(report)
