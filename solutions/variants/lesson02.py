"""Right and wrong answers to the problems of lesson 02."""

import math

import torch
import torch.nn.functional as F
from transformers.models.llama import modeling_llama

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def norm(x, weight, eps):
    return weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def norm_by_rsqrt(x, weight, eps):
    return (x * torch.rsqrt(x.square().sum(-1, keepdim=True) / x.shape[-1] + eps)) * weight


def norm_by_length(x, weight, eps):
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * weight / (length**2 / x.shape[-1] + eps) ** 0.5


def norm_in_float64(x, weight, eps):
    wide = x.double()
    return (weight * wide / wide.pow(2).mean(dim=-1).add(eps).sqrt().unsqueeze(-1)).to(x.dtype)


def norm_in_place(x, weight, eps):
    x /= torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return x * weight


def _angles(positions, theta, width):
    return positions[:, None] * theta ** (-2 * torch.arange(width // 2) / width)


def rope(x, positions, theta):
    width = x.shape[-1]
    cos, sin = _angles(positions, theta, width).cos(), _angles(positions, theta, width).sin()
    a, b = x[..., : width // 2], x[..., width // 2 :]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def rope_by_rotate_half(x, positions, theta):
    angles = torch.cat(2 * [_angles(positions, theta, x.shape[-1])], -1)
    return x * angles.cos() + modeling_llama.rotate_half(x) * angles.sin()


def rope_by_matrices(x, positions, theta):
    angles = _angles(positions, theta, x.shape[-1])
    turn = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1).unflatten(-1, (2, 2))
    points = x.unflatten(-1, (2, -1)).mT.unsqueeze(-1)  # (..., T, d/2, 2, 1)
    return (turn @ points).squeeze(-1).mT.flatten(-2)


def rope_in_pairs(x, positions, theta):
    cos, sin = _angles(positions, theta, x.shape[-1]).cos(), _angles(positions, theta, x.shape[-1]).sin()
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def rope_without_sine(x, positions, theta):
    return x * torch.cat(2 * [_angles(positions, theta, x.shape[-1]).cos()], -1)


def rope_without_minus(x, positions, theta):
    angles = torch.cat(2 * [_angles(positions, theta, x.shape[-1])], -1)
    return x * angles.cos() + x.roll(x.shape[-1] // 2, -1) * angles.sin()


def rope_slow(x, positions, theta):
    return rope(x, positions, theta**0.5)


def attention(q, k, v, scale=None, mask=True, repeat="interleave", axis=-1):
    group, tokens = q.shape[1] // k.shape[1], q.shape[2]
    if repeat == "interleave":
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    else:
        k, v = k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask:
        scores = scores.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(axis) @ v


def attention_as_written(q, k, v):
    group, tokens = q.shape[1] // k.shape[1], q.shape[2]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    return (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf).softmax(-1) @ v


def attention_by_einsum(q, k, v):
    tokens, width = q.shape[-2:]
    grouped = q.unflatten(1, (k.shape[1], -1))
    scores = torch.einsum("bkgqd,bktd->bkgqt", grouped, k) / math.sqrt(width)
    scores = scores + torch.full((tokens, tokens), -torch.inf).triu(1)
    return torch.einsum("bkgqt,bktd->bkgqd", scores.softmax(-1), v).flatten(1, 2)


def attention_by_loop(q, k, v):
    heads = []
    for head in range(q.shape[1]):
        shared = head * k.shape[1] // q.shape[1]
        rows = []
        for t in range(q.shape[2]):
            scores = (k[:, shared, : t + 1] @ q[:, head, t, :, None]).squeeze(-1) / q.shape[-1] ** 0.5
            rows.append((scores.softmax(-1)[..., None] * v[:, shared, : t + 1]).sum(1))
        heads.append(torch.stack(rows, 1))
    return torch.stack(heads, 1)


def attention_by_expand(q, k, v):
    group = q.shape[1] // k.shape[1]
    k, v = (modeling_llama.repeat_kv(t, group) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def attention_masked_with_zero(q, k, v):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return (q @ k.mT / q.shape[-1] ** 0.5).tril().softmax(-1) @ v


def attention_masked_late(q, k, v):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).tril() @ v


def count(config, rank, targets):
    d, f = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    sides = dict(zip(SEVEN, (d + q, d + kv, d + kv, q + d, d + f, d + f, f + d), strict=True))
    return config.num_hidden_layers * rank * sum(sides[target] for target in targets)


def count_by_shapes(config, rank, targets):
    total = 0
    for target in targets:
        rows, columns = _shape(config, target)
        total += torch.empty(rank, columns).numel() + torch.empty(rows, rank).numel()
    return torch.tensor(total * config.num_hidden_layers)


def count_by_layers(config, rank, targets):
    return sum(rank * sum(_shape(config, target)) for _ in range(config.num_hidden_layers) for target in targets)


def _shape(config, target):
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    d, f = config.hidden_size, config.intermediate_size
    shapes = ((q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f))
    return dict(zip(SEVEN, shapes, strict=True))[target]


def count_without_groups(config, rank, targets):
    wide = {"k_proj": "q_proj", "v_proj": "q_proj"}
    return count(config, rank, [wide.get(target, target) for target in targets])


def count_a_only(config, rank, targets):
    return config.num_hidden_layers * rank * sum(_shape(config, target)[1] for target in targets)


def count_full(config, rank, targets):
    return config.num_hidden_layers * sum(math.prod(_shape(config, target)) for target in targets)


def count_with_hidden_size(config, rank, targets):
    extra = config.hidden_size - config.num_attention_heads * config.head_dim
    on_q = sum(target in ("q_proj", "o_proj") for target in targets)
    return count(config, rank, targets) + config.num_hidden_layers * rank * extra * on_q


RIGHT = {
    "02.1": {
        "as written": norm,
        "rsqrt": norm_by_rsqrt,
        "by the length": norm_by_length,
        "in float64": norm_in_float64,
        "torch": lambda x, weight, eps: F.rms_norm(x, x.shape[-1:], weight, eps),
    },
    "02.2": {"as written": rope, "rotate_half": rope_by_rotate_half, "by matrices": rope_by_matrices},
    "02.3": {
        "as written": attention_as_written,
        "einsum": attention_by_einsum,
        "by loop": attention_by_loop,
        "torch": attention_by_expand,
    },
    "02.4": {"as written": count, "by shapes": count_by_shapes, "by layers": count_by_layers},
}

WRONG = {
    "02.1": {
        "LayerNorm": (lambda x, w, eps: F.layer_norm(x, x.shape[-1:], w, None, eps), "that is LayerNorm"),
        "standard deviation": (
            lambda x, w, eps: w * x / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt(),
            "no mean, not even",
        ),
        "unbiased": (
            lambda x, w, eps: w * x / (x.std(-1, keepdim=True) ** 2 + eps).sqrt(),
            "unbiased standard deviation",
        ),
        "sum": (lambda x, w, eps: w * x / (x.pow(2).sum(-1, keepdim=True) + eps).sqrt(), "summed, not averaged"),
        "no root": (lambda x, w, eps: w * x / (x.pow(2).mean(-1, keepdim=True) + eps), "the root is missing"),
        "eps outside": (
            lambda x, w, eps: w * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + eps),
            "eps stands outside the root",
        ),
        "no eps": (lambda x, w, eps: w * x / x.pow(2).mean(-1, keepdim=True).sqrt(), "eps is missing"),
        "no weight": (lambda x, w, eps: norm(x, torch.ones_like(w), eps), "the learnt weight is missing"),
        "Gemma": (lambda x, w, eps: norm(x, 1 + w, eps), "as Gemma does"),
        "one mean": (lambda x, w, eps: w * x / (x.pow(2).mean() + eps).sqrt(), "one mean was taken over all tokens"),
        "in place": (norm_in_place, "changed in place"),
        "no return": (lambda x, w, eps: None, "is a return missing"),
    },
    "02.2": {
        "pairs": (rope_in_pairs, "neighbouring coordinates were paired"),
        "wrong way": (lambda x, p, theta: rope(x, -p, theta), "turns the wrong way"),
        "slow": (rope_slow, "-2j/d, not -j/d"),
        "growing": (lambda x, p, theta: rope(x, p, 1 / theta), "the exponent is negative"),
        "own theta": (lambda x, p, theta: rope(x, p, 10_000.0), "theta was not used"),
        "own positions": (
            lambda x, p, theta: rope(x, torch.arange(x.shape[-2]), theta),
            "given positions were not used",
        ),
        "from 1": (lambda x, p, theta: rope(x, p + 1, theta), "positions count from 1"),
        "no minus": (rope_without_minus, "a minus sign is missing"),
        "no sine": (rope_without_sine, "the sine part is missing"),
    },
    "02.3": {
        "no scale": (lambda q, k, v: attention(q, k, v, scale=1.0), "the scores are not scaled"),
        "by the width": (lambda q, k, v: attention(q, k, v, scale=1 / q.shape[-1]), "by the width, not by its root"),
        "no mask": (lambda q, k, v: attention(q, k, v, mask=False), "the causal mask is missing"),
        "tiled": (lambda q, k, v: attention(q, k, v, repeat="tile"), "the heads were tiled"),
        "over queries": (lambda q, k, v: attention(q, k, v, axis=-2), "the softmax runs over the queries"),
        "masked with zero": (attention_masked_with_zero, "minus infinity gets none"),
        "masked late": (attention_masked_late, "the mask came after the softmax"),
        "joined": (lambda q, k, v: attention(q, k, v).transpose(1, 2).flatten(2), "the heads are joined already"),
        "upside down": (lambda q, k, v: attention(q.flip(2), k.flip(2), v.flip(2)).flip(2), "the mask is upside down"),
    },
    "02.4": {
        "no groups": (count_without_groups, "taken as wide as q_proj"),
        "A only": (count_a_only, "only A was counted"),
        "B only": (lambda c, r, t: count(c, r, t) - count_a_only(c, r, t), "only B was counted"),
        "one layer": (lambda c, r, t: count(c, r, t) // c.num_hidden_layers, "only one layer was counted"),
        "full matrices": (count_full, "these are the full matrices"),
        "rank times full": (lambda c, r, t: r * count_full(c, r, t), "rank * in * out"),
        "no rank": (lambda c, r, t: count(c, r, t) // r, "the rank is missing"),
        "all seven": (lambda c, r, t: count(c, r, SEVEN), "take the targets only"),
        "hidden_size": (count_with_hidden_size, "hidden_size stands where"),
    },
}
