"""Right and wrong answers to 07.7, the coordinate search."""

import numpy as np
import torch


def searching(loss, start, step, budget, signs=(1, -1), shrink=0.5, better=lambda new, old: new < old):
    """A coordinate search; its keywords make the mistakes."""
    w, calls = np.array(start), 1
    best = loss(w)
    while calls < budget:
        improved = False
        for i in range(len(w)):
            for sign in signs:
                if calls == budget:
                    return w, best
                tried = w.copy()
                tried[i] += sign * step
                value, calls = loss(tried), calls + 1
                if better(value, best):
                    w, best, improved = tried, value, True
        if not improved:
            step *= shrink
    return w, best


def search_in_rounds(loss, start, step, budget):
    w, calls = np.array(start), 1
    best = loss(w)
    while calls < budget:
        before = best
        for i in range(len(w)):
            for way in (step, -step):
                if calls == budget:
                    return w, best
                tried = w.copy()
                tried[i] += way
                value, calls = loss(tried), calls + 1
                if value < best:
                    w, best = tried, value
        if best == before:
            step /= 2
    return w, best


def search_the_other_way(loss, start, step, budget):
    """Down before up, and the last weight first."""
    spent, w = 1, list(start)
    best = loss(w)
    while True:
        before = best
        for i in reversed(range(len(w))):
            for tried in (w[i] - step, w[i] + step):
                if spent >= budget:
                    return [w, best]
                spent += 1
                other = [*w[:i], tried, *w[i + 1 :]]
                value = loss(other)
                if value < best:
                    w, best = other, value
        if best == before:
            step = step / 2


def search_by_recursion(loss, start, step, budget):
    """Each step along one weight goes on until it brings nothing."""
    spent = 0

    def ask(point):
        nonlocal spent
        spent += 1
        return loss(point)

    w = torch.tensor(start)
    best = ask(w.numpy())
    while spent < budget:
        before = best
        for unit in torch.eye(len(w), dtype=w.dtype):
            for move in (step * unit, -step * unit):
                while spent < budget and (value := ask((w + move).numpy())) < best:
                    w, best = w + move, value
        step = step if best < before else step / 2
    return w, best


def whole_rounds(loss, start, step, budget):
    calls = 0

    def ask(w):
        nonlocal calls
        calls += 1
        return loss(w)

    w = np.array(start)
    best = ask(w)
    while calls < budget:
        before = best
        for i in range(len(w)):
            for sign in (1, -1):
                tried = w.copy()
                tried[i] += sign * step
                if (value := ask(tried)) < best:
                    w, best = tried, value
        step = step if best < before else step / 2
    return w, best


def last_tried(loss, start, step, budget):
    kept = []

    def ask(w):
        kept.append((w.copy(), loss(w)))
        return kept[-1][1]

    searching(ask, start, step, budget)
    return kept[-1]


def all_at_once(loss, start, step, budget):
    w, rng = np.array(start), np.random.default_rng(0)
    best = loss(w)
    for _ in range(budget - 1):
        tried = w + step * rng.normal(size=len(w))
        value = loss(tried)
        if value < best:
            w, best = tried, value
    return w, best


def first_loss(loss, start, step, budget):
    values = []
    w, _ = searching(lambda v: values.append(loss(v)) or values[-1], start, step, budget)
    return w, values[0]


def moves_the_start(loss, start, step, budget):
    w, best = searching(loss, start, step, budget)
    start[:] = w
    return w, best


def without_the_start(loss, start, step, budget):
    """Asks for the start, and for one candidate more than it may."""
    return searching(loss, start, step, max(budget, 2))


def even_weights(loss, start, step, budget):
    def held(w):
        return np.where(np.arange(len(w)) % 2 == 0, w, start)

    w, best = searching(lambda v: loss(held(v)), start, step, budget)
    return held(w), best


RIGHT = {
    "07.7": {"rounds": search_in_rounds, "the other way": search_the_other_way, "runs": search_by_recursion},
}

WRONG = {
    "07.7": {
        "weights alone": (lambda f, w, s, n: searching(f, w, s, n)[0], "return the pair"),
        "whole rounds": (whole_rounds, "every call counts"),
        "start not counted": (lambda f, w, s, n: searching(f, w, s, n + 1), "every call counts"),
        "all at once": (all_at_once, "several weights were changed at once"),
        "maximised": (
            lambda f, w, s, n: searching(f, w, s, n, better=lambda new, old: new > old),
            "the loss is maximised",
        ),
        "last tried": (last_tried, "the last candidate comes back"),
        "loss of the start": (first_loss, "the loss of another candidate"),
        "up only": (lambda f, w, s, n: searching(f, w, s, n, signs=(1,)), "only steps in one direction"),
        "same step": (lambda f, w, s, n: searching(f, w, s, n, shrink=1), "the step never becomes smaller"),
        "one round": (lambda f, w, s, n: searching(f, w, s, min(n, 9)), "long before the budget"),
        "not all weights": (even_weights, "never changed"),
        "thirds": (lambda f, w, s, n: searching(f, w, s, n, shrink=1 / 3), "its half belongs"),
        "equal kept": (
            lambda f, w, s, n: searching(f, w, s, n, better=lambda new, old: new <= old),
            "the same loss is kept",
        ),
        "unlike steps": (lambda f, w, s, n: searching(f, w, s, n, signs=(1, -2)), "both ways alike"),
        "start moved": (moves_the_start, "was changed in place"),
        "one too many": (without_the_start, "takes the first evaluation"),
    },
}
