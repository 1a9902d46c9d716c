"""Right and wrong answers to the problems of lesson 04: a bottleneck, a gated prompt, a size for a budget."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from lorahub_edu.methods.bottleneck import Bottleneck


def by_the_package(x, down, up):
    layer = Bottleneck(x.shape[-1], down.shape[0], x.device, x.dtype)
    layer.down.weight.data, layer.up.weight.data = down, up
    return layer(x)


def by_modules(x, down, up):
    first, second = nn.Linear(*down.shape[::-1], bias=False), nn.Linear(*up.shape[::-1], bias=False)
    first.weight, second.weight = nn.Parameter(down), nn.Parameter(up)
    return x + second(F.relu(first(x))).detach()


def by_torch(queries, keys, values, gate):
    return gate * F.scaled_dot_product_attention(queries, keys, values)


def head_by_head(queries, keys, values, gate):
    out = []
    for q, k, v in zip(queries, keys, values, strict=True):
        weights = (q @ k.T / q.shape[-1] ** 0.5).exp()
        out.append(gate * (weights / weights.sum(1, keepdim=True)) @ v)
    return torch.stack(out)


def by_trying(budget, width, places):
    return min(range(1, width), key=lambda m: abs(places * (2 * width * m + m + width) - budget))


def added_in_place(x, down, up):
    x += torch.relu(x @ down.T) @ up.T
    return x


def softmax(q, k, scale=1.0, dim=-1):
    return torch.softmax(scale * q @ k.mT / math.sqrt(q.shape[-1]), dim)


def nearest(budget, width, places, rounded=round):
    return max(1, rounded((budget / places - width) / (2 * width + 1)))


RIGHT = {
    "04.1": {
        "as written": lambda x, down, up: x + torch.relu(x @ down.T) @ up.T,
        "modules": by_modules,
        "the package": by_the_package,
    },
    "04.2": {
        "torch": by_torch,
        "head by head": head_by_head,
        "gated at the end": lambda q, k, v, gate: (softmax(q, k) @ v) * gate,
    },
    "04.3": {
        "as written": nearest,
        "by trying": by_trying,
        "as a tensor": lambda b, w, p: torch.tensor(nearest(b, w, p)),
    },
}

WRONG = {
    "04.1": {
        "no input": (lambda x, d, u: torch.relu(x @ d.T) @ u.T, "input itself is missing"),
        "linear": (lambda x, d, u: x + x @ d.T @ u.T, "nonlinearity is missing"),
        "late": (lambda x, d, u: x + torch.relu(x @ d.T @ u.T), "belongs in the middle"),
        "behind the sum": (lambda x, d, u: torch.relu(x + torch.relu(x @ d.T) @ u.T), "behind the sum"),
        "subtracted": (lambda x, d, u: torch.relu(x @ d.T) @ u.T - x, "subtracted"),
        "twice": (lambda x, d, u: x + torch.relu(torch.relu(x @ d.T) @ u.T), "a second nonlinearity"),
        "GELU": (lambda x, d, u: x + torch.nn.functional.gelu(x @ d.T) @ u.T, "another nonlinearity"),
        "in place": (added_in_place, "was changed in place"),
        "no return": (lambda x, d, u: None, "is a return missing"),
    },
    "04.2": {
        "no gate": (lambda q, k, v, g: softmax(q, k) @ v, "gate is missing"),
        "no root": (lambda q, k, v, g: g * torch.softmax(q @ k.mT, -1) @ v, "not divided by the root"),
        "size": (lambda q, k, v, g: g * torch.softmax(q @ k.mT / 8, -1) @ v, "not by its root"),
        "inside": (lambda q, k, v, g: softmax(q, k, g) @ v, "inside the softmax"),
        "over queries": (lambda q, k, v, g: g * softmax(q, k, dim=-2) @ v, "over the queries"),
        "no softmax": (lambda q, k, v, g: g * (q @ k.mT / 8**0.5) @ v, "no softmax"),
        "twice": (lambda q, k, v, g: g * g * softmax(q, k) @ v, "applied twice"),
        "exchanged": (lambda q, k, v, g: g * softmax(q, v) @ k, "exchanged"),
        "mean": (lambda q, k, v, g: g * v.mean(1, keepdim=True).expand_as(q), "mean of the values"),
    },
    "04.3": {
        "no places": (lambda b, w, p: round((b - w) / (2 * w + 1)), "divide the budget among"),
        "one matrix": (lambda b, w, p: round((b / p - w) / (w + 1)), "two matrices is missing"),
        "a fraction": (lambda b, w, p: (b / p - w) / (2 * w + 1), "a whole number"),
        "rounded down": (lambda b, w, p: nearest(b, w, p, math.floor), "rounded down"),
        "rounded up": (lambda b, w, p: nearest(b, w, p, math.ceil), "rounded up"),
        "no biases": (lambda b, w, p: max(1, round(b / p / (2 * w))), "the biases are missing"),
    },
}
