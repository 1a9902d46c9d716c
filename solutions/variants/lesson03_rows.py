"""Right and wrong answers to the problems of lesson 03's assignment on rows: 03.4 to 03.9."""

import random

import torch
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100


def prompt(row, both, one):
    given = row.get("input", "")
    return (both if given else one).format(instruction=row["instruction"], input=given)


def prompt_by_pieces(row, both, one):
    template = both if row.get("input") else one
    head, _, rest = template.partition("{instruction}")
    middle, place, tail = rest.partition("{input}")
    return head + row["instruction"] + middle + (row["input"] + tail if place else "")


def prompt_by_map(row, both, one):
    return [one, both][bool(row.get("input"))].format_map({"input": ""} | row)


def prompt_always(which):
    return lambda row, both, one: (both, one)[which].format(instruction=row["instruction"], input=row.get("input", ""))


def prompt_by_key(row, both, one):
    return (both if "input" in row else one).format(**{"input": ""} | row)


def prompt_by_replacing(row, both, one):
    given = row.get("input", "")
    template = both if given else one
    return template.replace("{instruction}", row["instruction"]).replace("{input}", given)


def prompt_exchanged(row, both, one):
    given = row.get("input", "")
    if not given:
        return prompt(row, both, one)
    return both.format(instruction=given, input=row["instruction"])


def cut(p, r, e, block):
    if len(p) >= block:
        return None
    ids = (p + r + [e])[:block]
    return ids, [IGNORED] * len(p) + ids[len(p) :]


def cut_response_first(p, r, e, block):
    room = block - len(p)
    if room < 1:
        return None
    kept = r[:room] if len(r) >= room else [*r, e]
    return [p + kept, [IGNORED for _ in p] + kept]


def cut_by_labels(p, r, e, block):
    pairs = [(t, IGNORED) for t in p] + [(t, t) for t in [*r, e]]
    pairs = pairs[:block]
    if all(label == IGNORED for _, label in pairs):
        return None
    return tuple(list(column) for column in zip(*pairs, strict=True))


def cut_with(ids, labels=None, empty=None):
    """A cut made by functions of the whole sequence and the block, None where the prompt leaves no room."""

    def made(p, r, e, block):
        if len(p) >= block:
            return empty
        kept = ids(p, r, e, block)
        return kept, ([IGNORED] * len(p) + kept[len(p) :] if labels is None else labels(p, r, e, block))

    return made


def cut_left(p, r, e, block):
    if len(p) >= block:
        return None
    return (p + r + [e])[-block:], ([IGNORED] * len(p) + r + [e])[-block:]


def cut_never_empty(p, r, e, block):
    ids = (p + r + [e])[:block]
    return ids, ([IGNORED] * len(p) + ids[len(p) :])[:block]


def first_cut(p, r, e, block):
    return (p + r + [e])[:block]


def ended(p, r, e, block):
    return (p + r)[: block - 1] + [e]


def collate(rows, pad):
    longest = max(len(ids) for ids, _ in rows)
    ids = [ids + [pad] * (longest - len(ids)) for ids, _ in rows]
    labels = [labels + [IGNORED] * (longest - len(labels)) for _, labels in rows]
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]
    return torch.tensor(ids), torch.tensor(labels), torch.tensor(mask)


def collate_by_torch(rows, pad):
    ids, labels = ([torch.tensor(row[i]) for row in rows] for i in (0, 1))
    lengths = torch.tensor([len(row) for row in ids])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return [pad_sequence(ids, True, pad), pad_sequence(labels, True, IGNORED), mask]


def collate_by_filling(rows, pad):
    shape = len(rows), max(len(ids) for ids, _ in rows)
    made = torch.full(shape, pad), torch.full(shape, IGNORED), torch.zeros(shape, dtype=torch.long)
    for i, (ids, labels) in enumerate(rows):
        for tensor, values in zip(made, (ids, labels, [1] * len(ids)), strict=True):
            tensor[i, : len(ids)] = torch.tensor(values)
    return made


def collate_with(change):
    """A right batch, changed into a wrong one."""
    return lambda rows, pad: change(*collate(rows, pad), pad)


def left(rows, pad):
    ids, labels = ([torch.tensor(row[i]) for row in rows] for i in (0, 1))
    ones = [torch.ones_like(row) for row in ids]
    return tuple(pad_sequence(part, True, value, "left") for part, value in ((ids, pad), (labels, IGNORED), (ones, 0)))


def split(rows, n, seed):
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[i] for i in order[n:]], [rows[i] for i in order[:n]]


def split_by_torch(rows, n, seed):
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[i] for i in order[:-n]], [rows[i] for i in order[-n:]]


def split_by_sample(rows, n, seed):
    chosen = set(random.Random(seed).sample(range(len(rows)), n))
    return [row for i, row in enumerate(rows) if i not in chosen], [rows[i] for i in sorted(chosen)]


def split_globally(rows, n, seed):
    random.seed(seed)
    shuffled = random.sample(rows, len(rows))
    return shuffled[n:], shuffled[:n]


def split_by_global_torch(rows, n, seed):
    torch.manual_seed(seed)
    order = torch.randperm(len(rows)).tolist()
    return [rows[i] for i in order[n:]], [rows[i] for i in order[:n]]


def split_in_place(rows, n, seed):
    random.Random(seed).shuffle(rows)
    return rows[n:], rows[:n]


def split_unseeded(rows, n, seed):
    return split(rows, n, None)


def split_twice(rows, n, seed):
    draw = random.Random(seed)
    return draw.sample(rows, len(rows) - n), draw.sample(rows, n)


def triangles(lengths):
    total = sum(lengths)
    return torch.ones(total, total).tril()


def blocks(lengths):
    return torch.block_diag(*[torch.ones(n, n) for n in lengths])


def attend_by_rows(lengths):
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(row))
    return (row[:, None] == row[None]) & (place[:, None] >= place[None])


def attend_by_loop(lengths):
    allowed, start = [], 0
    for n in lengths:
        allowed += [[start <= k <= start + i for k in range(sum(lengths))] for i in range(n)]
        start += n
    return torch.tensor(allowed)


RIGHT = {
    "03.4": {"as written": prompt, "by pieces": prompt_by_pieces, "format_map": prompt_by_map},
    "03.5": {"as written": cut, "response first": cut_response_first, "pairs": cut_by_labels},
    "03.6": {"as written": collate, "pad_sequence": collate_by_torch, "by filling": collate_by_filling},
    "03.7": {"as written": split, "torch": split_by_torch, "sample": split_by_sample},
    "03.8": {
        "by rows": attend_by_rows,
        "by loop": attend_by_loop,
        "both conditions": lambda lengths: triangles(lengths).bool() & blocks(lengths).bool(),
    },
    "03.9": {"small": "b", "with a dot": "B."},
}

WRONG = {
    "03.4": {
        "always with input": (prompt_always(0), "used for a row without one"),
        "always without": (prompt_always(1), "the input is lost"),
        "by key": (prompt_by_key, "used for a row without one"),
        "with the response": (lambda row, b, o: prompt(row, b, o) + row["output"], "the response is in the prompt"),
        "replaced in turn": (prompt_by_replacing, "taken for a placeholder"),
        "exchanged": (prompt_exchanged, "changed places"),
        "stripped": (lambda row, b, o: prompt(row, b, o).strip(), "the line break at the end"),
        "no return": (lambda row, b, o: None, "is a return missing"),
    },
    "03.5": {
        "end after a cut": (cut_with(ended), "to stop in the middle"),
        "from the left": (cut_left, "the beginning is cut off"),
        "one too few": (cut_with(lambda p, r, e, block: first_cut(p, r, e, block - 1)), "one token too few"),
        "uncut": (cut_with(lambda p, r, e, block: p + r + [e]), "nothing is cut"),
        "labels uncut": (
            cut_with(first_cut, lambda p, r, e, block: [IGNORED] * len(p) + r + [e]),
            "the labels are not cut",
        ),
        "unmasked": (cut_with(first_cut, first_cut), "nothing is masked"),
        "no end": (cut_with(lambda p, r, e, block: (p + r)[:block]), "the end token is missing"),
        "rows without labels": (cut_never_empty, "a row without a label"),
        "empty lists": (cut_with(first_cut, empty=([], [])), "a row without a label"),
    },
    "03.6": {
        "labels with the pad": (
            collate_with(lambda i, y, m, pad: (i, torch.where(m == 0, pad, y), m)),
            "which then takes a loss",
        ),
        "labels by the pad": (
            collate_with(lambda i, y, m, pad: (i, torch.where(i == pad, IGNORED, y), m)),
            "the end token's label was masked too",
        ),
        "mask by the pad": (
            collate_with(lambda i, y, m, pad: (i, y, (i != pad).long())),
            "the end token is hidden too",
        ),
        "upside down": (collate_with(lambda i, y, m, pad: (i, y, 1 - m)), "upside down"),
        "no mask": (collate_with(lambda i, y, m, pad: (i, y, torch.ones_like(m))), "padding is not hidden"),
        "hides the prompt": (
            collate_with(lambda i, y, m, pad: (i, y, (y != IGNORED).long())),
            "the prompt is hidden",
        ),
        "left": (left, "the padding stands on the left"),
        "ids as labels": (collate_with(lambda i, y, m, pad: (i, i, m)), "keep the rows' own labels"),
        "ids padded with -100": (
            collate_with(lambda i, y, m, pad: (torch.where(m == 0, IGNORED, i), y, m)),
            "that is for labels",
        ),
        "two only": (collate_with(lambda i, y, m, pad: (i, y)), "return three tensors"),
    },
    "03.7": {
        "global seed": (split_globally, "a global seed is set"),
        "global torch seed": (split_by_global_torch, "a global seed is set"),
        "in place": (split_in_place, "was changed in place"),
        "unseeded": (split_unseeded, "the seed is not used"),
        "two draws": (split_twice, "the parts overlap"),
        "not shuffled": (lambda rows, n, seed: (rows[n:], rows[:n]), "nothing is shuffled"),
        "one seed": (lambda rows, n, seed: split(rows, n, 0), "always with one seed"),
        "exchanged": (lambda rows, n, seed: split(rows, n, seed)[::-1], "changed places"),
        "trains on all": (lambda rows, n, seed: (list(rows), split(rows, n, seed)[1]), "that are validated on"),
    },
    "03.8": {
        "one triangle": (triangles, "tokens of other rows"),
        "blocks": (blocks, "what comes after it"),
        "strict": (lambda lengths: attend_by_rows(lengths).float() - torch.eye(sum(lengths)), "doesn't see itself"),
        "transposed": (lambda lengths: attend_by_rows(lengths).T, "rows and columns changed places"),
        "everything": (lambda lengths: blocks(lengths) >= 0, "everything is allowed"),
        "forbidden": (lambda lengths: ~attend_by_rows(lengths), "allowed and forbidden"),
    },
    "03.9": {
        "a quarter": ("A", "the template stands in every one"),
        "two thirds": ("C", "short in tokens"),
        "nearly all": ("D", "not that short"),
        "a share": (0.5, "write one letter"),
        "a word": ("half", "write one letter"),
    },
}
