"""Right and wrong answers to the problems of lesson 03's assignment on training: 03.10 to 03.13."""

import math

import torch
import torch.nn.functional as F

IGNORED = -100


def loss(logits, labels, **options):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), **options)


def loss_by_gathering(logits, labels):
    following = labels[:, 1:]
    log_p = logits[:, :-1] - logits[:, :-1].logsumexp(-1, keepdim=True)
    on = following != IGNORED
    picked = log_p.gather(-1, following.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -(picked * on).sum() / on.sum()


def loss_by_loop(logits, labels):
    found = []
    for scores, row in zip(logits, labels.tolist(), strict=True):
        for t, label in enumerate(row[1:]):
            if label != IGNORED:
                found.append(-math.log(scores[t].softmax(0)[label]))
    return sum(found) / len(found)


def loss_unshifted(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def loss_other_way(logits, labels):
    return F.cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, :-1].flatten())


def loss_by_row(logits, labels):
    return sum(loss(a[None], b[None]) for a, b in zip(logits, labels, strict=True)) / len(labels)


def loss_with_ignored(logits, labels):
    return loss(logits, labels.clamp(min=0))


def gradient(W, batches):
    W = W.detach().clone().requires_grad_()
    total = sum(int((y != IGNORED).sum()) for _, y in batches)
    for x, y in batches:
        (F.cross_entropy(x @ W.T, y, reduction="sum") / total).backward()
    return W.grad


def gradient_by_hand(W, batches):
    total, labels = torch.zeros_like(W), 0
    for x, y in batches:
        for row, label in zip(x, y.tolist(), strict=True):
            if label != IGNORED:
                p = (W @ row).softmax(0)
                p[label] -= 1
                total, labels = total + torch.outer(p, row), labels + 1
    return total / labels


def gradient_by_weighing(W, batches):
    """Each micro-batch's mean, weighed with its labels."""
    W = W.detach().clone().requires_grad_()
    counts = [(y != IGNORED).sum() for _, y in batches]
    means = [F.cross_entropy(x @ W.T, y) * n for (x, y), n in zip(batches, counts, strict=True)]
    (found,) = torch.autograd.grad(sum(means) / sum(counts), W)
    return found


def gradient_of(loss_of):
    def made(W, batches):
        W = W.detach().clone().requires_grad_()
        return torch.autograd.grad(loss_of(W, batches), W)[0]

    return made


def means(W, batches):
    return [F.cross_entropy(x @ W.T, y) for x, y in batches]


def sums(W, batches):
    return [F.cross_entropy(x @ W.T, y, reduction="sum") for x, y in batches]


def positions(batches):
    return sum(len(y) for _, y in batches)


def rate(cool, warm=lambda s, w: s / w, share=lambda s, w, t: (s - w) / (t - w)):
    def made(step, warmup, total, peak):
        return peak * (warm(step, warmup) if step < warmup else cool(share(step, warmup, total)))

    return made


def cosine(done):
    return (1 + math.cos(math.pi * done)) / 2


def rate_by_scheduler(step, warmup, total, peak):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    up = [lambda s: s / max(1, warmup), lambda s: cosine(s / (total - warmup))]
    steps = [torch.optim.lr_scheduler.LambdaLR(optimizer, one) for one in up]
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, steps, [warmup]) if warmup else steps[1]
    optimizer.step()
    for _ in range(step):
        schedule.step()
    return optimizer.param_groups[0]["lr"]


def rate_by_squares(step, warmup, total, peak):
    if step < warmup:
        return step * peak / warmup
    return peak * math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2


def length(gradients):
    return math.sqrt(sum(float(g.pow(2).sum()) for g in gradients))


def clip(gradients, limit):
    factor = min(1.0, limit / length(gradients))
    return [factor * g for g in gradients], length(gradients)


def clip_by_torch(gradients, limit):
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient_ in zip(parameters, gradients, strict=True):
        parameter.grad = gradient_.clone()
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    return [p.grad for p in parameters], norm


def clip_as_one(gradients, limit):
    whole = torch.cat([g.reshape(-1) for g in gradients])
    norm = torch.linalg.vector_norm(whole)
    if norm > limit:
        whole = whole / norm * limit
    parts = whole.split([g.numel() for g in gradients])
    return tuple(part.view_as(g) for part, g in zip(parts, gradients, strict=True)), norm


def clip_by(factor):
    return lambda gradients, limit: ([factor(g, gradients, limit) * g for g in gradients], length(gradients))


RIGHT = {
    "03.10": {"gathering": loss_by_gathering, "by loop": loss_by_loop, "cross_entropy": loss},
    "03.11": {"backward": gradient, "by hand": gradient_by_hand, "weighing means": gradient_by_weighing},
    "03.12": {"a scheduler": rate_by_scheduler, "squares": rate_by_squares},
    "03.13": {"as written": clip, "torch": clip_by_torch, "as one": clip_as_one},
}

WRONG = {
    "03.10": {
        "unshifted": (loss_unshifted, "the labels are not shifted"),
        "the other way": (loss_other_way, "the shift goes the wrong way"),
        "all positions": (
            lambda o, y: loss(o, y, reduction="sum") / y[:, 1:].numel(),
            "divided by all positions",
        ),
        "by row": (loss_by_row, "every row weighs the same"),
        "sum": (lambda o, y: loss(o, y, reduction="sum"), "this is the sum"),
        "-100 counts": (loss_with_ignored, "taken for a token"),
        "perplexity": (lambda o, y: loss(o, y).exp(), "leave exp away"),
        "sign": (lambda o, y: -loss(o, y), "the sign is wrong"),
        "no return": (lambda o, y: None, "is a return missing"),
    },
    "03.11": {
        "mean of means": (gradient_of(lambda W, b: sum(means(W, b)) / len(b)), "every micro-batch weighs the same"),
        "sum of means": (gradient_of(lambda W, b: sum(means(W, b))), "never divided"),
        "sum": (gradient_of(lambda W, b: sum(sums(W, b))), "the gradient of the sum"),
        "the last": (gradient_of(lambda W, b: means(W, b)[-1]), "only the last micro-batch"),
        "all positions": (gradient_of(lambda W, b: sum(sums(W, b)) / positions(b)), "divided by all positions"),
        "other way": (lambda W, b: -gradient(W, b), "points the other way"),
        "divided twice": (lambda W, b: gradient(W, b) / len(b), "once too often"),
    },
    "03.12": {
        "from the start": (rate(cosine, share=lambda s, w, t: s / t), "it begins when the warm-up ends"),
        "no warm-up": (lambda s, w, t, peak: peak * cosine(s / t), "there is no warm-up"),
        "a straight line": (rate(lambda done: 1 - done), "in a straight line"),
        "not halved": (rate(lambda done: 2 * cosine(done)), "isn't halved"),
        "a quarter": (rate(lambda done: math.cos(math.pi / 2 * done)), "a quarter of a wave"),
        "constant": (rate(lambda done: 1.0), "stays at the peak"),
        "one ahead": (rate(cosine, warm=lambda s, w: (s + 1) / w), "one step ahead"),
        "no peak": (lambda s, w, t, peak: rate(cosine)(s, w, t, 1.0), "the peak is missing"),
        "divides by zero": (lambda s, w, t, peak: peak * min(s / w, cosine((s - w) / (t - w))), "ZeroDivisionError"),
    },
    "03.13": {
        "by tensor": (clip_by(lambda g, all_, limit: min(1.0, limit / length([g]))), "by its own norm"),
        "clamped": (
            lambda all_, limit: ([g.clamp(-limit, limit) for g in all_], length(all_)),
            "clamped to the limit",
        ),
        "always": (clip_by(lambda g, all_, limit: limit / length(all_)), "although it is shorter"),
        "to one": (clip_by(lambda g, all_, limit: 1 / length(all_)), "made one long"),
        "never": (clip_by(lambda g, all_, limit: 1.0), "nothing is clipped"),
        "squared": (clip_by(lambda g, all_, limit: min(1.0, limit / length(all_) ** 2)), "the squared norm"),
        "sum of norms": (
            clip_by(lambda g, all_, limit: min(1.0, limit / sum(length([one]) for one in all_))),
            "the norms of the tensors were added up",
        ),
        "upside down": (clip_by(lambda g, all_, limit: max(1.0, length(all_) / limit)), "upside down"),
        "norm after": (lambda all_, limit: (clip(all_, limit)[0], min(limit, length(all_))), "after clipping"),
        "gradients only": (lambda all_, limit: clip(all_, limit)[0], "and the norm"),
    },
}
