"""Right and wrong answers to the problems of lesson 04's assignment on what methods compute: 04.4 to 04.7."""

import math

import peft
import torch
import torch.nn.functional as F
from torch import nn

IGNORED = -100


def prefix_by_torch(q, k, v, pk, pv):
    length, size = q.shape[1], pk.shape[1]
    mask = torch.cat([torch.ones(length, size), torch.ones(length, length).tril()], 1).bool()
    return F.scaled_dot_product_attention(q, torch.cat([pk, k], 1), torch.cat([pv, v], 1), attn_mask=mask)


def prefix_by_triangle(q, k, v, pk, pv):
    """One triangle, moved to the right by the prefix."""
    keys, values = torch.cat((pk, k), 1), torch.cat((pv, v), 1)
    scores = q @ keys.mT / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + pk.shape[1])
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ values


def prefix_by_loop(q, k, v, pk, pv):
    rows = []
    for t in range(q.shape[1]):
        keys, values = torch.cat((pk, k[:, : t + 1]), 1), torch.cat((pv, v[:, : t + 1]), 1)
        weights = (keys @ q[:, t, :, None] / q.shape[-1] ** 0.5).softmax(1)
        rows.append((weights * values).sum(1))
    return torch.stack(rows, 1)


def prefix_in_halves(q, k, v, pk, pv):
    """Two sums of exponentials with one common denominator."""
    root = q.shape[-1] ** 0.5
    text = (q @ k.mT / root).exp().tril()
    prefix = (q @ pk.mT / root).exp()
    return (text @ v + prefix @ pv) / (text.sum(-1, keepdim=True) + prefix.sum(-1, keepdim=True))


def prefix_with(mask, q, k, v, pk, pv, root=True):
    keys, values = torch.cat((pk, k), 1), torch.cat((pv, v), 1)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask.bool(), scale=None if root else 1.0)


def shapes(q, pk):
    return q.shape[1], q.shape[1] + pk.shape[1]


def own_softmax(q, k, v, pk, pv):
    text = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return text + F.scaled_dot_product_attention(q, pk, pv)


def prefix_behind(q, k, v, pk, pv):
    length, size = q.shape[1], pk.shape[1]
    mask = torch.cat([torch.ones(length, length).tril(), torch.ones(length, size)], 1).bool()
    return F.scaled_dot_product_attention(q, torch.cat([k, pk], 1), torch.cat([pv, v], 1), attn_mask=mask)


def prefix_asks(q, k, v, pk, pv):
    q, k, v = torch.cat([pk, q], 1), torch.cat([pk, k], 1), torch.cat([pv, v], 1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def ia3_by_matrix(W, scale, feedforward):
    return W @ torch.diag(scale) if feedforward else torch.diag(scale) @ W


def ia3_by_einsum(W, scale, feedforward):
    return torch.einsum("oi,i->oi" if feedforward else "oi,o->oi", W, scale)


def ia3_in_place(W, scale, feedforward):
    return W.mul_(scale if feedforward else scale[:, None])


def factor(scale, feedforward):
    return scale if feedforward else scale[:, None]


def dora(W, A, B, magnitude, alpha, dim=1, scale=None, norm=None, keep=True):
    """DoRA's weight with one place for each mistake."""
    scale = alpha / len(A) if scale is None else scale
    V = W + scale * (B @ A)
    length = V.norm(dim=dim, keepdim=True) if norm is None else norm(W, V)
    return (magnitude[:, None] if keep else 1) * V / length


def dora_as_written(W, A, B, magnitude, alpha):
    V = W + alpha / len(A) * (B @ A)
    return magnitude[:, None] * V / V.norm(dim=1, keepdim=True)


def dora_by_rows(W, A, B, magnitude, alpha):
    V = W + alpha / A.shape[0] * B @ A
    return torch.stack([m * row / row.pow(2).sum().sqrt() for m, row in zip(magnitude, V, strict=True)])


def dora_by_diag(W, A, B, magnitude, alpha):
    V = torch.addmm(W, B, A, alpha=alpha / B.shape[1])
    return torch.diag(magnitude / torch.linalg.vector_norm(V, dim=1)) @ V


class One(nn.Module):
    """A model that is one linear layer, for PEFT to change."""

    def __init__(self, W):
        super().__init__()
        self.layer = nn.Linear(*W.shape[::-1], bias=False, dtype=W.dtype)
        self.layer.weight.data = W.clone()

    def forward(self, x):
        return self.layer(x)


def ia3_by_peft(W, scale, feedforward):
    config = peft.IA3Config(target_modules=["layer"], feedforward_modules=["layer"] if feedforward else [])
    model = peft.get_peft_model(One(W), config)
    model.base_model.model.layer.ia3_l["default"].data = scale[None] if feedforward else scale[:, None]
    return model.merge_and_unload().layer.weight.detach()


def dora_by_peft(W, A, B, magnitude, alpha):
    config = peft.LoraConfig(r=len(A), lora_alpha=alpha, target_modules=["layer"], use_dora=True)
    model = peft.get_peft_model(One(W), config, autocast_adapter_dtype=False)
    layer = model.base_model.model.layer
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = A.clone(), B.clone()
    layer.lora_magnitude_vector["default"].weight.data = magnitude.clone()
    return model.merge_and_unload().layer.weight.detach()


def prompted(e, p, y, m):
    rows, size = len(e), len(p)
    return (
        torch.cat([p.expand(rows, -1, -1), e], 1),
        torch.cat([y.new_full((rows, size), IGNORED), y], 1),
        torch.cat([m.new_ones(rows, size), m], 1),
    )


def prompted_by_padding(e, p, y, m):
    size = len(p)
    wide = F.pad(e, (0, 0, size, 0))
    wide[:, :size] = p
    return [wide, F.pad(y, (size, 0), value=IGNORED), F.pad(m, (size, 0), value=1)]


def prompted_by_rows(e, p, y, m):
    ids = torch.tensor([IGNORED] * len(p))
    return (
        torch.stack([torch.cat((p, row)) for row in e]),
        torch.stack([torch.cat((ids, row)) for row in y]),
        torch.stack([torch.cat((torch.ones(len(p), dtype=row.dtype), row)) for row in m]),
    )


def prompted_behind(e, p, y, m):
    return tuple(torch.cat([t[:, len(p) :], t[:, : len(p)]], 1) for t in prompted(e, p, y, m))


def changed(part, change):
    """The right three, with one of them changed."""

    def made(e, p, y, m):
        found = list(prompted(e, p, y, m))
        found[part] = change(e, p, y, m, found[part])
        return found

    return made


def first_row_only(e, p, y, m, right):
    right[1:, : len(p)] = 0
    return right


RIGHT = {
    "04.4": {"a moved triangle": prefix_by_triangle, "by loop": prefix_by_loop, "in halves": prefix_in_halves},
    "04.5": {"diagonal matrices": ia3_by_matrix, "einsum": ia3_by_einsum, "PEFT": ia3_by_peft},
    "04.6": {"row by row": dora_by_rows, "a diagonal matrix": dora_by_diag, "as written": dora_as_written, "PEFT": dora_by_peft},
    "04.7": {"by padding": prompted_by_padding, "row by row": prompted_by_rows},
}

WRONG = {
    "04.4": {
        "no prefix": (
            lambda q, k, v, pk, pv: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            "its keys and values are missing",
        ),
        "one triangle": (
            lambda q, k, v, pk, pv: prefix_with(torch.ones(shapes(q, pk)).tril(), q, k, v, pk, pv),
            "the triangle starts at the prefix",
        ),
        "looks ahead": (
            lambda q, k, v, pk, pv: prefix_with(torch.ones(shapes(q, pk)), q, k, v, pk, pv),
            "tokens look ahead",
        ),
        "two softmaxes": (own_softmax, "a softmax of its own"),
        "no root": (
            lambda q, k, v, pk, pv: prefix_with(
                torch.ones(shapes(q, pk)).tril(pk.shape[1]), q, k, v, pk, pv, root=False
            ),
            "not divided by the root",
        ),
        "exchanged": (lambda q, k, v, pk, pv: prefix_by_torch(q, k, v, pv, pk), "are exchanged"),
        "behind": (prefix_behind, "stands behind the text"),
        "asks": (prefix_asks, "only the text has queries"),
        "no return": (lambda q, k, v, pk, pv: None, "is a return missing"),
    },
    "04.5": {
        "nothing": (lambda W, s, f: W.clone(), "nothing is scaled"),
        "added": (lambda W, s, f: W + factor(s, f), "the scale is added"),
        "one more": (lambda W, s, f: W * (1 + factor(s, f)), "the factor itself"),
        "divided": (lambda W, s, f: W / factor(s, f), "divided by the scale"),
        "twice": (lambda W, s, f: W * factor(s, f) ** 2, "applied twice"),
        "always rows": (lambda W, s, f: s[:, None] * W if len(s) == len(W) else W * s, "rows and columns"),
        "transposed": (lambda W, s, f: (W * factor(s, f)).T, "of W's shape"),
        "in place": (ia3_in_place, "changed in place"),
    },
    "04.6": {
        "columns": (lambda W, A, B, m, a: dora(W, A, B, m, a, dim=0), "every column"),
        "W's lengths": (
            lambda W, A, B, m, a: dora(W, A, B, m, a, norm=lambda W, V: W.norm(dim=1, keepdim=True)),
            "lengths of W's rows",
        ),
        "one norm": (lambda W, A, B, m, a: dora(W, A, B, m, a, norm=lambda W, V: V.norm()), "one norm"),
        "no magnitude": (lambda W, A, B, m, a: dora(W, A, B, m, a, keep=False), "the magnitude is missing"),
        "not made one": (lambda W, A, B, m, a: dora(W, A, B, m, a, norm=lambda W, V: 1), "were not made one long"),
        "update only": (
            lambda W, A, B, m, a: W + m[:, None] * F.normalize(B @ A, dim=1),
            "W belongs in there too",
        ),
        "unscaled": (lambda W, A, B, m, a: dora(W, A, B, m, a, scale=1.0), "alpha / r is left out"),
        "alpha only": (lambda W, A, B, m, a: dora(W, A, B, m, a, scale=a), "not by alpha / r"),
        "no update": (lambda W, A, B, m, a: dora(W, A, B, m, a, scale=0.0), "the update is missing"),
    },
    "04.7": {
        "behind": (prompted_behind, "behind the text"),
        "embeddings as before": (changed(0, lambda e, p, y, m, right: e), "as long as before"),
        "in place of tokens": (
            changed(0, lambda e, p, y, m, right: torch.cat([right[:, : len(p)], e[:, len(p) :]], 1)),
            "took the place of the first tokens",
        ),
        "the first row": (changed(0, first_row_only), "only the first row"),
        "label 0": (changed(1, lambda e, p, y, m, right: F.pad(y, (len(p), 0))), "0 is a token's label"),
        "labels as before": (changed(1, lambda e, p, y, m, right: y), "as long as before"),
        "no labels": (changed(1, lambda e, p, y, m, right: torch.full_like(right, IGNORED)), "takes a loss any more"),
        "hidden": (changed(2, lambda e, p, y, m, right: F.pad(m, (len(p), 0))), "it must be seen"),
        "padding seen": (changed(2, lambda e, p, y, m, right: torch.ones_like(right)), "padding too"),
        "embeddings only": (lambda e, p, y, m: prompted(e, p, y, m)[0], "return embeddings"),
    },
}
