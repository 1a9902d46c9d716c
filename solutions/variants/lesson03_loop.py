"""Right and wrong answers to the problems of lesson 03's assignment on training: 03.14 to 03.16."""

import torch
import torch.nn.functional as F


def adamw(correct=True, decay=None, inside=False, root=True, first=None, sign=1, scale=True):
    """A step of AdamW with one place for each mistake."""

    def step(p, g, m, v, t, lr, betas, eps, weight_decay):
        b1, b2 = betas
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        mean, square = (m / (1 - b1**t), v / (1 - b2**t)) if correct else (m, v)
        under = (square + eps).sqrt() if inside else (square.sqrt() + eps if root else square + eps)
        kept = p * (1 - lr * weight_decay) if decay is None else p * (1 - decay(lr, weight_decay))
        return kept - sign * (lr if scale else 1) * (mean if first is None else g) / under, m, v

    return step


def adamw_by_torch(p, g, m, v, t, lr, betas, eps, weight_decay):
    parameter = torch.nn.Parameter(p)
    optimizer = torch.optim.AdamW([parameter], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    optimizer.state[parameter] = {"step": torch.tensor(t - 1.0), "exp_avg": m, "exp_avg_sq": v}
    parameter.grad = g
    optimizer.step()
    return parameter.detach(), m, v


def adamw_in_place(p, g, m, v, t, lr, betas, eps, weight_decay):
    m = m.lerp(g, 1 - betas[0])
    v = v.mul(betas[1]).addcmul(g, g, value=1 - betas[1])
    size = lr / (1 - betas[0] ** t)
    return p - lr * weight_decay * p - size * m / ((v / (1 - betas[1] ** t)) ** 0.5 + eps), m, v


def adamw_with_l2(p, g, m, v, t, lr, betas, eps, weight_decay):
    return adamw()(p, g + weight_decay * p, m, v, t, lr, betas, eps, 0.0)


def adamw_corrected_state(p, g, m, v, t, lr, betas, eps, weight_decay):
    p, m, v = adamw()(p, g, m, v, t, lr, betas, eps, weight_decay)
    return p, m / (1 - betas[0] ** t), v


def adamw_exchanged(p, g, m, v, t, lr, betas, eps, weight_decay):
    return adamw()(p, g, m, v, t, lr, betas[::-1], eps, weight_decay)


def train(forget=True, sign=1, late=False, reduction="mean", steps=True, thaw=False, rate=None):
    """The loop with one place for each mistake."""

    def loop(model, batches, lr):
        if thaw:
            model.requires_grad_(True)
        chosen = [p for p in model.parameters() if p.requires_grad]
        losses = []
        for x, y in batches:
            value = F.mse_loss(model(x), y, reduction=reduction)
            if forget:
                model.zero_grad()
            value.backward()
            with torch.no_grad():
                for parameter in chosen if steps else ():
                    parameter -= sign * (rate or lr) * parameter.grad
                value = F.mse_loss(model(x), y, reduction=reduction) if late else value
            losses.append(value.item())
        return losses

    return loop


def train_by_torch(model, batches, lr):
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=lr)
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        found = torch.nn.MSELoss()(model(x), y)
        found.backward()
        optimizer.step()
        losses.append(found.item())
    return losses


def train_by_autograd(model, batches, lr):
    chosen = [p for p in model.parameters() if p.requires_grad]
    losses = []
    for x, y in batches:
        found = (model(x) - y).square().mean()
        for parameter, slope in zip(chosen, torch.autograd.grad(found, chosen), strict=True):
            parameter.data = parameter.data - lr * slope
        losses.append(found.detach())
    return tuple(losses)


RIGHT = {
    "03.14": {"as written": adamw(), "torch": adamw_by_torch, "lerp": adamw_in_place},
    "03.15": {"by hand": train(), "torch": train_by_torch, "autograd": train_by_autograd},
    "03.16": {"a quotient": 62_400 / 32, "as a tensor": torch.tensor(1950.0)},
}

WRONG = {
    "03.14": {
        "uncorrected": (adamw(correct=False), "the averages are not corrected"),
        "L2": (adamw_with_l2, "Adam with L2"),
        "no decay": (adamw(decay=lambda lr, decay: 0.0), "the decay is missing"),
        "decay alone": (adamw(decay=lambda lr, decay: decay), "multiplied by the learning rate"),
        "eps inside": (adamw(inside=True), "eps stands inside"),
        "no root": (adamw(root=False), "the root is missing"),
        "uphill": (adamw(sign=-1), "uphill"),
        "no rate": (adamw(scale=False), "the learning rate is missing"),
        "corrected state": (adamw_corrected_state, "divide only where it is used"),
        "exchanged": (adamw_exchanged, "b1 and b2 are exchanged"),
        "parameter only": (lambda *a: adamw()(*a)[0], "the next step needs all"),
    },
    "03.15": {
        "never forgets": (train(forget=False), "zero_grad before each"),
        "no step": (train(steps=False), "nothing was learnt"),
        "thaws": (train(thaw=True), "what requires no gradient was changed"),
        "late": (train(late=True), "the loss after the step"),
        "uphill": (train(sign=-1), "uphill"),
        "sum": (train(reduction="sum"), "summed, not averaged"),
        "another rate": (train(rate=0.01), "not the given one"),
        "the last loss": (lambda m, b, lr: train()(m, b, lr)[-1], "one loss for each batch"),
    },
    "03.16": {
        "micro-batches": (62_400, "taken for a step"),
        "by the micro-batch": (15_600, "number of micro-batches in a batch"),
        "by the batch": (62_400 // 128 + 0.5, "a batch has 32 of them"),
        "multiplied": (62_400 * 32, "many micro-batches make one"),
        "one batch": (32, "in one batch"),
    },
}
