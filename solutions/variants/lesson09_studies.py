"""Right and wrong answers to the problems of assignment 09 that lesson 09 does not ask."""

import numpy as np
import torch


def crossing(losses, target):
    """The first step whose successor lies on the other side of the target, or None."""
    return next((i for i in range(len(losses) - 1) if losses[i] >= target >= losses[i + 1]), None)


def on_the_way(losses, forgetting, i, target):
    share = (losses[i] - target) / ((losses[i] - losses[i + 1]) or 1)
    return forgetting[i] + share * (forgetting[i + 1] - forgetting[i])


def by_share(losses, forgetting, target):
    i = crossing(losses, target)
    return None if i is None else on_the_way(losses, forgetting, i, target)


def by_interp(losses, forgetting, target):
    below = np.flatnonzero(np.array(losses) <= target)
    if not len(below):
        return None
    i = below[0]
    if i == 0:
        return forgetting[0]
    return np.interp(target, [losses[i], losses[i - 1]], [forgetting[i], forgetting[i - 1]])


def in_a_loop(losses, forgetting, target):
    for (high, before), (low, after) in zip(
        zip(losses, forgetting, strict=True), zip(losses[1:], forgetting[1:], strict=True), strict=False
    ):
        if high == target:
            return before
        if low <= target <= high:
            return torch.tensor((before * (target - low) + after * (high - target)) / (high - low))


def first_below(losses, forgetting, target):
    return next((f for loss, f in zip(losses, forgetting, strict=True) if loss <= target), None)


def last_above(losses, forgetting, target):
    i = crossing(losses, target)
    return None if i is None else forgetting[i]


def nearest(losses, forgetting, target):
    i = min(range(len(losses)), key=lambda i: abs(losses[i] - target))
    return forgetting[i] if min(losses) <= target else None


def half_way(losses, forgetting, target):
    i = crossing(losses, target)
    return None if i is None else (forgetting[i] + forgetting[i + 1]) / 2


def turned_round(losses, forgetting, target):
    i = crossing(losses, target)
    if i is None:
        return None
    share = (losses[i] - target) / (losses[i] - losses[i + 1])
    return share * forgetting[i] + (1 - share) * forgetting[i + 1]


def last_of_a_plateau(losses, forgetting, target):
    if losses[0] == target:
        return forgetting[0]
    for i in range(len(losses) - 1):
        if losses[i] >= target > losses[i + 1]:
            return on_the_way(losses, forgetting, i, target)
    return forgetting[-1] if losses[-1] == target else None


def not_at_the_start(losses, forgetting, target):
    for i in range(len(losses) - 1):
        if losses[i] > target >= losses[i + 1]:
            return on_the_way(losses, forgetting, i, target)


def last_crossing(losses, forgetting, target):
    found = [i for i in range(len(losses) - 1) if losses[i] >= target >= losses[i + 1]]
    return on_the_way(losses, forgetting, found[-1], target) if found else None


def sorted_first(losses, forgetting, target):
    order = np.argsort(losses)
    return float(np.interp(target, np.array(losses)[order], np.array(forgetting)[order]))


def end_where_not_reached(losses, forgetting, target):
    found = by_share(losses, forgetting, target)
    return forgetting[-1] if found is None else found


def by_comprehension(losses):
    tasks = losses.shape[1]
    return sum(float(losses[-1, j] - losses[j + 1, j]) for j in range(tasks - 1)) / (tasks - 1)


def by_diagonal(losses):
    return (losses[-1] - losses[1:].diagonal())[:-1].mean()


def by_all_tasks(losses):
    """The last task's term is zero, so it may be summed and left out of the count."""
    tasks = losses.shape[1]
    return float((losses[-1] - torch.diag(losses[1:])).sum()) / (tasks - 1)


def just_trained(losses):
    return losses[1:].diagonal()[:-1]


def one_row_early(losses):
    return (losses[-1] - losses.diagonal())[:-1].mean()


def worst_moment(losses):
    tasks = losses.shape[1]
    return sum(losses[j + 1 :, j].max() - losses[j + 1, j] for j in range(tasks - 1)) / (tasks - 1)


def best_share(base, tuned, changed, cost):
    affordable = [text for task, text in changed if task - tuned[0] <= cost]
    return max(((tuned[1] - text) / (tuned[1] - base) for text in affordable), default=0.0)


def by_arrays(base, tuned, changed, cost):
    task, text = np.array(changed).T
    kept = text[task <= tuned[0] + cost]
    return (tuned[1] - kept.min()) / (tuned[1] - base) if kept.size else 0


def one_by_one(base, tuned, changed, cost):
    best = 0.0
    for task, text in changed:
        if task - tuned[0] <= cost:
            best = max(best, 1 - (text - base) / (tuned[1] - base))
    return best


def gains(tuned, changed, cost):
    """What each change that can be paid removes, in nats."""
    return [tuned[1] - text for task, text in changed if task - tuned[0] <= cost]


def last_payable(base, tuned, changed, cost):
    return gains(tuned, changed, cost)[-1] / (tuned[1] - base)


def cheapest(base, tuned, changed, cost):
    return (tuned[1] - min(changed)[1]) / (tuned[1] - base)


def price_of_the_loss(base, tuned, changed, cost):
    return max(((tuned[1] - text) / (tuned[1] - base) for task, text in changed if task <= cost), default=0.0)


def share_left(base, tuned, changed, cost):
    return 1 - best_share(base, tuned, changed, cost)


def without_a_default(base, tuned, changed, cost):
    return max(gains(tuned, changed, cost)) / (tuned[1] - base)


RIGHT = {
    "09.4": {"share": by_share, "interp": by_interp, "loop": in_a_loop},
    "09.5": {"comprehension": by_comprehension, "diagonal": by_diagonal, "all tasks": by_all_tasks},
    "09.6": {"max": best_share, "arrays": by_arrays, "one by one": one_by_one},
    "09.7": {"as a float": 11.0, "a sum": 8 + 3},
}

WRONG = {
    "09.4": {
        "first below": (first_below, "the first step below the target"),
        "last above": (last_above, "the last step above the target"),
        "nearest": (nearest, "the target"),
        "half-way": (half_way, "half-way"),
        "turned round": (turned_round, "the wrong way round"),
        "last crossing": (last_crossing, "again later"),
        "end of the run": (lambda losses, forgetting, target: forgetting[-1], "the end of the run"),
        "np.interp": (lambda losses, forgetting, target: np.interp(target, losses, forgetting), "np.interp"),
        "sorted": (sorted_first, "sorted by their loss"),
        "last of a plateau": (last_of_a_plateau, "stays at the target for a while"),
        "begins there": (not_at_the_start, "begins at the target"),
        "never": (end_where_not_reached, "does not reach this loss"),
        "no return": (lambda losses, forgetting, target: None, "is a return missing"),
    },
    "09.5": {
        "last task counted": (
            lambda losses: (losses[-1] - losses[1:].diagonal()).mean(),
            "the last task is counted",
        ),
        "sign": (lambda losses: (just_trained(losses) - losses[-1, :-1]).mean(), "the sign is turned"),
        "since the base": (lambda losses: (losses[-1] - losses[0])[:-1].mean(), "compared with the base"),
        "one row early": (one_row_early, "one row too early"),
        "since the best": (lambda losses: (losses[-1] - losses.min(0).values)[:-1].mean(), "the lowest loss of all"),
        "last two rows": (lambda losses: (losses[-1] - losses[-2])[:-1].mean(), "the last two rows"),
        "sum": (lambda losses: (losses[-1, :-1] - just_trained(losses)).sum(), "the sum over the tasks"),
        "largest": (lambda losses: (losses[-1, :-1] - just_trained(losses)).max(), "the largest of them"),
        "at the end": (lambda losses: losses[-1].mean(), "the mean loss at the end"),
        "worst moment": (worst_moment, "the worst moment"),
        "first task": (lambda losses: losses[-1, 0] - losses[1, 0], "only the first task"),
    },
    "09.6": {
        "any price": (lambda base, tuned, changed, cost: best_share(base, tuned, changed, 9), "not looked at"),
        "last payable": (last_payable, "the last change which can be paid"),
        "cheapest": (cheapest, "the cheapest change"),
        "in nats": (lambda base, tuned, changed, cost: max(gains(tuned, changed, cost)), "in nats"),
        "by the text loss": (
            lambda base, tuned, changed, cost: max(gains(tuned, changed, cost)) / tuned[1],
            "divided by the text loss",
        ),
        "by the base": (
            lambda base, tuned, changed, cost: max(gains(tuned, changed, cost)) / base,
            "divided by the base's",
        ),
        "left": (share_left, "which is left"),
        "price of the loss": (price_of_the_loss, "compare the rise"),
        "sum": (
            lambda base, tuned, changed, cost: sum(gains(tuned, changed, cost)) / (tuned[1] - base),
            "alternatives",
        ),
        "mean": (
            lambda base, tuned, changed, cost: np.mean(gains(tuned, changed, cost) or [0]) / (tuned[1] - base),
            "the mean of those",
        ),
        "no default": (without_a_default, "max()"),
    },
    "09.7": {
        "as before": (8, "they are not in ΔW"),
        "removed": (5, "scaled, not removed"),
        "intruders alone": (3, "the number of intruders"),
        "all ten": (18, "only three of the ten"),
        "of W": (64, "the rank of W itself"),
        "twice": (16, "not 8"),
    },
}
