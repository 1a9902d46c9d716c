"""What right answers of assignment 09 must satisfy: runs compared at one loss, tasks in a row, a change and its price.

Source: Shuttleworth et al., arXiv 2410.21228, the sections on forgetting, on continual learning (figure 8) and, in
version 3, on scaling intruder dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from lorahub_checks.draws import between
from lorahub_checks.predictions import number
from lorahub_checks.problems import problem
from lorahub_checks.properties import Property, equals, holds


def _run(generator: torch.Generator) -> tuple[list[float], list[float], float]:
    """A run's task losses and forgetting, step by step, and a target that the loss falls through twice."""
    top, target = between(2.8, 3.2, generator), between(1.6, 1.8, generator)
    losses = [
        top,
        target + between(0.3, 0.5, generator),
        target - between(0.12, 0.2, generator),
        target + between(0.04, 0.1, generator),
        target - between(0.3, 0.5, generator),
        target - between(0.6, 0.8, generator),
    ]
    steps = (torch.rand(5, generator=generator, dtype=torch.float64) + 0.3).cumsum(0).tolist()
    return losses, [0.0, *(0.1 * value for value in steps)], target


def _matching_mistakes(losses: list[float], forgotten: list[float], target: float) -> dict[str, float]:
    """What plausible mistakes give for forgetting at a task loss that is passed between steps 1 and 2, and 3 and 4."""
    share, later = ((losses[i] - target) / (losses[i] - losses[i + 1]) for i in (1, 3))
    nearest = min(range(len(losses)), key=lambda i: abs(losses[i] - target))
    order = np.argsort(losses)
    bent = float(np.interp(target, np.array(losses)[order], np.array(forgotten)[order]))
    _, before, after, third, fourth = forgotten[:5]
    between_both, wrong_way = (before + after) / 2, after + share * (before - after)
    again = third + later * (fourth - third)
    return {
        "that is the first step below the target: the loss passed the target before it, interpolate": after,
        "that is the last step above the target: interpolate between it and the next one": before,
        "that is the step whose loss is nearest to the target: interpolate": forgotten[nearest],
        "that is half-way between the two steps: how far depends on where the target lies": between_both,
        "the share is the wrong way round: near the later loss means near the later forgetting": wrong_way,
        "the loss falls through the target again later: the first time counts": again,
        "that is the end of the run: the question is about one task loss on the way (np.interp comes to the same: it "
        "wants values that rise)": forgotten[-1],
        "the steps are sorted by their loss: where it rises in between, steps that were no neighbours become so": bent,
        "that is how far between the two steps it lies: take the forgetting there": share,
    }


@problem(
    "09.4",
    "forgetting at one task loss",
    hints=(
        "Two runs learn at different speeds. Between which two recorded steps does the loss pass the target?",
        "Find the first neighbours with a loss above and below; go the same share of the way in the forgetting.",
        "Losses 3 and 1, target 2: half of the way. If the forgetting goes from 0 to 0.4 there, it is 0.2. A first "
        "loss at the target needs no neighbour. If the target is never passed, None.",
    ),
)
def at_loss(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of at_loss(losses, forgetting, target) -> number, or None where the run never gets there."""
    for name in ("between two recorded steps", "the same for another run"):
        losses, forgotten, target = _run(generator)
        # Turned round, the two steps are a rising line, as NumPy's interpolation wants it.
        expected = float(np.interp(target, losses[2:0:-1], forgotten[2:0:-1]))
        mistakes = _matching_mistakes(losses, forgotten, target)
        yield equals(name, answer(losses, forgotten, target), expected, misconceptions=mistakes)
    yield equals("a target that the last step hits exactly", answer(losses, forgotten, losses[-1]), forgotten[-1])
    words = "the loss stays at the target for a while: it first fell to it at the first of these steps"
    flat = [losses[0], target, target, losses[4]]
    yield equals(
        "a loss that stays at the target",
        answer(flat, forgotten[:4], target),
        forgotten[1],
        misconceptions={words: forgotten[2]},
    )
    yield equals("a target that a step hits exactly", answer(losses, forgotten, losses[2]), forgotten[2])
    words = "a run that begins at the target is there at its first step"
    for name, begin in {"falls on": [target, losses[4]], "stays there": [target, target, losses[4]]}.items():
        seen = answer(begin, [0.2, *forgotten[1 : len(begin)]], target)
        there = seen is not None and equals("", seen, 0.2).passed
        yield holds(f"a run that begins at the target and {name}", there, seen, words)
    yield equals("two steps are enough", answer([3.0, 1.0], [0.0, 0.5], 1.5), 0.375)
    never = answer(losses, forgotten, losses[-1] - 0.2)
    yield holds(
        "None for a run that never gets there",
        never is None,
        never,
        "the run does not reach this loss, so nothing is known of it there: return None",
    )


def _sequence(tasks: int, generator: torch.Generator) -> Tensor:
    """Losses (tasks + 1, tasks): the base's in row 0, then those after each task.

    What comes later moves a task's loss up and down: the second task helps the first one, the third hurts both.
    """

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    losses = 2.5 + random(tasks + 1, tasks) / 2
    for task in range(tasks):
        moves = 0.5 * random(tasks - task) - 0.15
        moves[0] = 0.8 + 0.2 * random(1)
        known = {0: [-0.25, 0.5, -0.1], 1: [1.2, -0.1]}.get(task, [])
        moves[1 : 1 + len(known)] = torch.tensor(known, dtype=torch.float64)
        losses[task + 1 :, task] = moves.cumsum(0)
    return losses


def _sequence_mistakes(losses: Tensor) -> dict[str, Tensor]:
    tasks = losses.shape[1]
    end, earlier = losses[-1], torch.arange(tasks - 1)
    learned = losses[earlier + 1, earlier]
    lost = end[:-1] - learned
    learnt, since_best = (end - losses[0])[:-1].mean(), (end - losses.min(0).values)[:-1].mean()
    one_early = (end[:-1] - losses[earlier, earlier]).mean()
    return {
        "the last task is counted: nothing came after it, so there is nothing it could have lost": lost.sum() / tasks,
        "the sign is turned: forgetting is positive when the loss has risen": -lost.mean(),
        "compared with the base (row 0): that says what was learned; compare with the row just after the task": learnt,
        "one row too early: row 0 is the base, so task j has just been trained in row j + 1": one_early,
        "compared with the lowest loss of all: here forgetting counts from just after a task was trained": since_best,
        "the last two rows are compared: that is what the last task alone did": (end - losses[-2])[:-1].mean(),
        "that is the sum over the tasks: take the mean": lost.sum(),
        "that is the largest of them: take the mean": lost.max(),
        "that is the mean loss at the end": end.mean(),
        "the worst moment is taken, not the end": torch.stack(
            [losses[task + 1 :, task].max() - losses[task + 1, task] for task in earlier]
        ).mean(),
        "only the first task is looked at": lost[0],
    }


@problem(
    "09.5",
    "average forgetting in a sequence of tasks",
    hints=(
        "For one task: between which two of its losses does what it has forgotten lie?",
        "Task j is learned in row j + 1 and read again in the last row. The last task has had no time to be forgotten.",
        "Three tasks: compare losses[3, 0] with losses[1, 0] and losses[3, 1] with losses[2, 1]. The mean of these "
        "two differences.",
    ),
)
def average_forgetting(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of average_forgetting(losses) -> number, from (T + 1, T) losses."""
    for name, tasks in {"five tasks": 5, "four tasks": 4}.items():
        losses = _sequence(tasks, generator)
        table = losses.numpy().copy()
        expected = np.mean(table[-1, :-1] - np.diagonal(table, offset=-1)[:-1])
        yield equals(name, answer(losses), expected, misconceptions=_sequence_mistakes(losses))
    raised = answer(losses + 1.3)
    yield equals("the same amount on every loss changes nothing", raised, expected)
    kept = losses.clone()
    for task in range(tasks):
        kept[task + 1 :, task] = kept[task + 1, task]
    yield equals("tasks that keep their losses have forgotten nothing", answer(kept), 0.0)


def _prices(generator: torch.Generator) -> tuple[float, list[float], list[list[float]], float]:
    """The base's loss on the text, the tuned model's (task, text), those of five changes to it, and a price."""
    base, task = between(3.0, 3.3, generator), between(0.8, 1.0, generator)
    forgotten = between(0.5, 0.9, generator)
    rises = [base_rise * between(0.9, 1.1, generator) for base_rise in (0.02, 0.08, 0.2, 0.5, 0.9)]
    shares = [share * between(0.95, 1.05, generator) for share in (0.2, 0.5, 0.4, 0.8, 0.93)]
    tuned = [task, base + forgotten]
    changed = [[task + rise, tuned[1] - share * forgotten] for rise, share in zip(rises, shares, strict=True)]
    return base, tuned, changed, between(0.25, 0.4, generator)


def _price_mistakes(base: float, tuned: list[float], changed: list[list[float]], cost: float) -> dict[str, float]:
    gained = [tuned[1] - text for _, text in changed]
    whole, best, last = tuned[1] - base, gained[1], gained[2]
    return {
        "the price is not looked at: only changes whose task loss rises by at most cost count": max(gained) / whole,
        "that is the last change which can be paid, not the best: a stronger change can also remove less": last / whole,
        "that is the cheapest change, not the best": gained[0] / whole,
        "that is in nats: divide by what had been forgotten": best,
        "divided by the text loss: what had been forgotten is the tuned model's text loss minus the base's": (
            best / tuned[1]
        ),
        "divided by the base's text loss: what had been forgotten is the tuned model's minus the base's": best / base,
        "that is the share which is left of the forgetting": 1 - best / whole,
        "nothing can be paid: compare the rise of the task loss with cost, not the task loss": 0.0,
        "that is the sum of all that can be paid: they are alternatives": sum(gained[:3]) / whole,
        "that is the mean of those which can be paid: take the best": sum(gained[:3]) / 3 / whole,
    }


@problem(
    "09.6",
    "what a price buys back",
    hints=(
        "Which of the changes may you choose from at all?",
        "Those whose task loss is at most cost above the tuned model's. Of these the one with the lowest text loss; "
        "as a share of tuned text loss minus base text loss.",
        "Tuned (1.0, 3.0), base text 2.0, cost 0.1: a change at (1.05, 2.6) is affordable and gives back 0.4 of 1.0. "
        "One at (1.3, 2.1) is too dear. If none is affordable: 0.",
    ),
)
def removed_at_cost(answer: Callable, generator: torch.Generator) -> Iterator[Property]:
    """Specification of removed_at_cost(base, tuned, changed, cost) -> share."""
    for name in ("the best that can be paid", "the same for another model"):
        base, tuned, changed, cost = _prices(generator)
        task, text = np.array(changed).T
        shares = (tuned[1] - text) / (tuned[1] - base)
        expected = float(np.max(shares, where=task - tuned[0] <= cost, initial=-np.inf))
        seen = answer(base, tuple(tuned), [tuple(pair) for pair in changed], cost)
        yield equals(name, seen, expected, misconceptions=_price_mistakes(base, tuned, changed, cost))
    for places in ((3, 1, 4, 2, 0), (1, 0, 4, 3, 2), (3, 0, 4, 2, 1)):
        order = [changed[i] for i in places]
        yield equals("the order of the changes does not matter", answer(base, tuned, order, cost), expected)
    yield equals("0 where nothing can be paid", answer(base, tuned, changed, 0.001), 0.0)
    edge = answer(3.0, (0.75, 3.5), [(1.0, 3.25), (1.25, 3.0)], 0.25)
    yield equals("a rise of exactly the price can be paid", edge, 0.5)
    better = answer(3.0, (0.75, 3.5), [(0.25, 3.375), (1.25, 3.0)], 0.25)
    yield equals("a change that also lowers the task loss costs nothing", better, 0.25)


@problem(
    "09.7",
    "the rank of a changed update",
    hints=(
        "What is added to W0 + ΔW when three of its singular values are scaled, and what rank does that have?",
        "Each σuvᵀ is a matrix of rank 1. They belong to W, not to ΔW, so they lie in none of ΔW's directions.",
        "The new update is ΔW (rank 8) minus three matrices of rank 1 that are independent of it.",
    ),
)
def rank_after(answer: object, _generator: torch.Generator) -> Iterator[Property]:
    """Specification of rank_after, a number."""
    mistakes = {
        "scaling changes no direction of ΔW, that is true; but the scaled parts are W's, and they are not in ΔW": 8,
        "the intruders are scaled, not removed, and they are parts of W, not of ΔW": 5,
        "that is the number of intruders: the rest of the update is still there": 3,
        "only three of the ten looked at are scaled": 18,
        "that is the rank of W itself": 64,
        "what is added to the update has rank 3, not 8": 16,
    }
    yield from number(answer, "the rank of the new update", 11, mistakes)
