"""Lesson 02's checks: right answers pass however they are written, wrong ones fail with the words that fit them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama import modeling_llama

from lorahub_edu.checks import check, get_problem

SEEDS = (0, 1, 2)
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


RIGHT = [
    ("02.1", norm),
    ("02.1", norm_by_rsqrt),
    ("02.1", norm_by_length),
    ("02.1", norm_in_float64),
    ("02.1", lambda x, weight, eps: F.rms_norm(x, x.shape[-1:], weight, eps)),
    ("02.2", rope),
    ("02.2", rope_by_rotate_half),
    ("02.2", rope_by_matrices),
    ("02.3", attention),
    ("02.3", attention_by_einsum),
    ("02.3", attention_by_loop),
    ("02.3", attention_by_expand),
    ("02.4", count),
    ("02.4", count_by_shapes),
    ("02.4", count_by_layers),
]

WRONG = [
    ("02.1", lambda x, w, eps: F.layer_norm(x, x.shape[-1:], w, None, eps), "that is LayerNorm"),
    ("02.1", lambda x, w, eps: w * x / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt(), "no mean, not even"),
    ("02.1", lambda x, w, eps: w * x / (x.std(-1, keepdim=True) ** 2 + eps).sqrt(), "unbiased standard deviation"),
    ("02.1", lambda x, w, eps: w * x / (x.pow(2).sum(-1, keepdim=True) + eps).sqrt(), "summed, not averaged"),
    ("02.1", lambda x, w, eps: w * x / (x.pow(2).mean(-1, keepdim=True) + eps), "the root is missing"),
    ("02.1", lambda x, w, eps: w * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + eps), "eps stands outside the root"),
    ("02.1", lambda x, w, eps: w * x / x.pow(2).mean(-1, keepdim=True).sqrt(), "eps is missing"),
    ("02.1", lambda x, w, eps: norm(x, torch.ones_like(w), eps), "the learnt weight is missing"),
    ("02.1", lambda x, w, eps: norm(x, 1 + w, eps), "as Gemma does"),
    ("02.1", lambda x, w, eps: w * x / (x.pow(2).mean() + eps).sqrt(), "one mean was taken over all tokens"),
    ("02.1", norm_in_place, "changed in place"),
    ("02.1", lambda x, w, eps: None, "is a return missing"),
    ("02.2", rope_in_pairs, "neighbouring coordinates were paired"),
    ("02.2", lambda x, p, theta: rope(x, -p, theta), "turns the wrong way"),
    ("02.2", rope_slow, "-2j/d, not -j/d"),
    ("02.2", lambda x, p, theta: rope(x, p, 1 / theta), "the exponent is negative"),
    ("02.2", lambda x, p, theta: rope(x, p, 10_000.0), "theta was not used"),
    ("02.2", lambda x, p, theta: rope(x, torch.arange(x.shape[-2]), theta), "given positions were not used"),
    ("02.2", lambda x, p, theta: rope(x, p + 1, theta), "positions count from 1"),
    ("02.2", rope_without_minus, "a minus sign is missing"),
    ("02.2", rope_without_sine, "the sine part is missing"),
    ("02.3", lambda q, k, v: attention(q, k, v, scale=1.0), "the scores are not scaled"),
    ("02.3", lambda q, k, v: attention(q, k, v, scale=1 / q.shape[-1]), "by the width, not by its root"),
    ("02.3", lambda q, k, v: attention(q, k, v, mask=False), "the causal mask is missing"),
    ("02.3", lambda q, k, v: attention(q, k, v, repeat="tile"), "the heads were tiled"),
    ("02.3", lambda q, k, v: attention(q, k, v, axis=-2), "the softmax runs over the queries"),
    ("02.3", attention_masked_with_zero, "minus infinity gets none"),
    ("02.3", attention_masked_late, "the mask came after the softmax"),
    ("02.3", lambda q, k, v: attention(q, k, v).transpose(1, 2).flatten(2), "the heads are joined already"),
    ("02.3", lambda q, k, v: attention(q.flip(2), k.flip(2), v.flip(2)).flip(2), "the mask is upside down"),
    ("02.4", count_without_groups, "taken as wide as q_proj"),
    ("02.4", count_a_only, "only A was counted"),
    ("02.4", lambda c, r, t: count(c, r, t) - count_a_only(c, r, t), "only B was counted"),
    ("02.4", lambda c, r, t: count(c, r, t) // c.num_hidden_layers, "only one layer was counted"),
    ("02.4", count_full, "these are the full matrices"),
    ("02.4", lambda c, r, t: r * count_full(c, r, t), "rank * in * out"),
    ("02.4", lambda c, r, t: count(c, r, t) // r, "the rank is missing"),
    ("02.4", lambda c, r, t: count(c, r, SEVEN), "take the targets only"),
    ("02.4", count_with_hidden_size, "hidden_size stands where"),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("id", "answer"), RIGHT)
def test_right_answers_pass(id, answer, seed):
    report = check(id, answer, seed=seed)
    assert report.passed, report
    assert report.hint == ""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("id", "answer", "words"), WRONG)
def test_wrong_answers_fail_with_the_words_that_fit(id, answer, words, seed):
    report = check(id, answer, seed=seed)
    assert not report.passed
    first = next(property_ for property_ in report.properties if property_.misconception)
    assert words in first.misconception, report
    assert report.hint


@pytest.mark.parametrize("id", ["02.1", "02.2", "02.3", "02.4"])
def test_an_empty_place_is_reported_and_hints_come_one_at_a_time(id):
    def stub(*_):
        raise NotImplementedError

    check(id, {"02.1": norm, "02.2": rope, "02.3": attention, "02.4": count}[id])  # forgets earlier attempts
    reports = [check(id, stub) for _ in range(4)]
    hints = get_problem(id).hints
    assert [report.hint for report in reports] == [*hints, hints[-1]]
    assert "still empty" in reports[0].properties[-1].misconception


def test_an_error_in_the_answer_is_feedback():
    report = check("02.3", lambda q, k, v: q @ k.mT @ v, seed=0)
    assert not report.passed
    assert report.properties[-1].seen.startswith("RuntimeError")
