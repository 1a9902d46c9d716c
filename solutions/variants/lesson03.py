"""Right and wrong answers to the problems of lesson 03: masking, packed positions, perplexity."""

import itertools
import math


def changes_its_argument(p, r, e):
    r += [e]
    return [-100] * len(p) + r


def mean_loss(losses, tokens):
    return sum(a * b for a, b in zip(losses, tokens, strict=True)) / sum(tokens)


def positions_by_counting(lengths):
    found = []
    for length in lengths:
        position = 0
        while position < length:
            found.append(position)
            position += 1
    return found


RIGHT = {
    "03.1": {
        "a list": lambda p, r, e: [-100] * len(p) + r + [e],
        "itertools": lambda p, r, e: [*itertools.repeat(-100, len(p)), *r, e],
        "by position": lambda p, r, e: [-100 if i < len(p) else t for i, t in enumerate(p + r + [e])],
    },
    "03.2": {
        "a list": lambda lengths: [i for n in lengths for i in range(n)],
        "itertools": lambda lengths: list(itertools.chain.from_iterable(map(range, lengths))),
        "by counting": positions_by_counting,
    },
    "03.3": {
        "as written": lambda losses, tokens: math.exp(mean_loss(losses, tokens)),
        "a product": lambda losses, tokens: math.prod(
            math.exp(a) ** (b / sum(tokens)) for a, b in zip(losses, tokens, strict=True)
        ),
        "token by token": lambda losses, tokens: math.exp(
            math.fsum(a for a, b in zip(losses, tokens, strict=True) for _ in range(b)) / sum(tokens)
        ),
    },
}

WRONG = {
    "03.1": {
        "nothing masked": (lambda p, r, e: p + r + [e], "nothing is masked"),
        "one too many": (
            lambda p, r, e: [-100] * (len(p) + 1) + r[1:] + [e],
            "first token of the response is masked",
        ),
        "one too few": (
            lambda p, r, e: [-100] * (len(p) - 1) + p[-1:] + r + [e],
            "last token of the prompt is not masked",
        ),
        "end masked": (lambda p, r, e: [-100] * len(p) + r + [-100], "never learns to stop"),
        "no end": (lambda p, r, e: [-100] * len(p) + r, "end token is missing"),
        "zeros": (lambda p, r, e: [0] * len(p) + r + [e], "the loss skips -100"),
        "shifted": (lambda p, r, e: [-100] * (len(p) - 1) + r + [e, -100], "shifted by one"),
        "the other part": (lambda p, r, e: p + [-100] * (len(r) + 1), "the wrong way round"),
        "in place": (changes_its_argument, "changed in place"),
    },
    "03.2": {
        "run on": (lambda lengths: list(range(sum(lengths))), "run on from one row"),
        "from 1": (lambda lengths: [i + 1 for n in lengths for i in range(n)], "start at 1"),
        "the longest": (lambda lengths: [i for _ in lengths for i in range(max(lengths))], "longest row's positions"),
        "row numbers": (lambda lengths: [k for k, n in enumerate(lengths) for _ in range(n)], "row numbers"),
        "too far": (lambda lengths: [i for n in lengths for i in range(n + 1)], "one too far"),
    },
    "03.3": {
        "mean of perplexities": (
            lambda losses, tokens: sum(map(math.exp, losses)) / len(losses),
            "perplexities were averaged",
        ),
        "rows alike": (lambda losses, tokens: math.exp(sum(losses) / len(losses)), "every row weighs the same"),
        "exp inside": (
            lambda losses, tokens: sum(math.exp(a) * b for a, b in zip(losses, tokens, strict=True)) / sum(tokens),
            "belongs inside exp",
        ),
        "no exp": (mean_loss, "exp is missing"),
        "base 2": (lambda losses, tokens: 2 ** mean_loss(losses, tokens), "base is e"),
        "sign": (lambda losses, tokens: math.exp(-mean_loss(losses, tokens)), "the sign is wrong"),
    },
}
