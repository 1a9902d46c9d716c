"""Does a step fit, by how much, and which change that costs least makes it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from lorahub_edu.errors import CourseError
from lorahub_edu.memory.allowance import GIB, Allowance, allowance
from lorahub_edu.memory.predict import Prediction, Setting, predict
from lorahub_edu.memory.preparing import FULL, get_method
from lorahub_edu.memory.tracker import ACTIVATIONS, LOGITS, OPTIMIZER, PARTS, WEIGHTS

CONTEXT = GIB // 2  # what the driver, the CUDA context and loaded kernels take of a card before any tensor
SHORTEST = 128  # tokens: no shorter block is proposed


@dataclass(frozen=True)
class Plan:
    """A step, what it is predicted to take, and what there is; everything in bytes."""

    config: PreTrainedConfig
    setting: Setting
    prediction: Prediction
    allowance: Allowance
    available: int

    @property
    def needed(self) -> int:
        """Tensors and allowance together."""
        return self.prediction.peak + self.allowance.total

    @property
    def room(self) -> int:
        """What stays free; below zero, what is missing."""
        return self.available - self.needed

    @property
    def fits(self) -> bool:
        """Whether the step is predicted to run."""
        return self.room >= 0


@dataclass(frozen=True)
class Step:
    """Something to change: as an order, what it costs, the options that do it, and the setting with it."""

    words: str
    cost: str
    options: str
    setting: Setting


@dataclass(frozen=True)
class Change:
    """One step, or several, and the plan with it."""

    words: str
    cost: str
    options: str
    plan: Plan


def capacity(gigabytes: float) -> int:
    """What a card sold with so many GB leaves for tensors, in bytes: sold GB are GiB, and the driver takes its part.

    Raises:
        CourseError: not above the driver's part.
    """
    if not gigabytes * GIB > CONTEXT:
        raise CourseError(f"A GPU with {gigabytes:g} GB holds no model: give the size of the card, such as 24.")
    return round(gigabytes * GIB) - CONTEXT


def plan(config: PreTrainedConfig, setting: Setting, available: int) -> Plan:
    """Predict a step and compare it with the memory that there is.

    Args:
        config: of the model.
        setting: of the step.
        available: bytes.

    Raises:
        CourseError: as `predict`.
    """
    prediction = predict(config, setting)
    return Plan(config, setting, prediction, allowance(config, setting, prediction), available)


def cheapest_change(
    found: Plan, only: Sequence[str] = (), report: Callable[[Change], None] = lambda _change: None
) -> Change | None:
    """The change that costs least among those that make a plan fit.

    What leaves the result as it is costs less than what changes it, and of two such the quicker one costs less:

    1. A smaller micro-batch, and more of them for one optimizer step: the same gradient, little more time.
    2. Gradient checkpointing: the same gradient, every layer's forward pass a second time.
    3. An 8-bit optimizer: nearly the same steps (Dettmers et al. 2021 found no loss), no more time.
    4. LoRA instead of every weight: another method.
    5. A 4-bit base: other frozen weights (QLoRA found almost no loss), every product unpacks its weight first.
    6. A shorter block: long rows are dropped or cut, so the data are others.

    Each is tried alone in this order, then all up to each of them together.

    Args:
        found: a plan that does not fit.
        only: keys of `STEPS`; empty tries all.
        report: called with every change that was predicted, whether it fits or not.

    Returns:
        The change, or None when nothing fits.

    Raises:
        CourseError: as `predict`.
    """
    steps = {name: STEPS[name] for name in STEPS if not only or name in only}
    for step in (*_alone(found, steps), *_together(found.setting, steps)):
        change = Change(step.words, step.cost, step.options, plan(found.config, step.setting, found.available))
        report(change)
        if change.plan.fits:
            return change
    return None


def _smaller_batches(setting: Setting) -> list[Step]:
    found, rows = [], setting.micro_batch // 2
    while rows:
        training = setting.task == "training"
        more = setting.accumulation * -(-setting.micro_batch // rows) if training else 1
        found.append(
            Step(
                f"take micro-batches of {rows}" + (f", {more} for one optimizer step" if training else ""),
                "the same result, little more time",
                f"--micro-batch {rows}",
                replace(setting, micro_batch=rows, accumulation=more),
            )
        )
        rows //= 2
    return found


def _checkpointing(setting: Setting) -> list[Step]:
    if setting.checkpointing or setting.task != "training":
        return []
    cost = "the same result, each layer's forward pass twice"
    return [Step("turn gradient checkpointing on", cost, "--checkpointing", replace(setting, checkpointing=True))]


def _eight_bit(setting: Setting) -> list[Step]:
    if setting.optimizer != "adamw" or setting.task != "training":
        return []
    changed = replace(setting, optimizer="adamw-8bit")
    return [Step("take an 8-bit optimizer", "rounded optimizer states", "--optimizer adamw-8bit", changed)]


def _lora(setting: Setting) -> list[Step]:
    if setting.method.name != FULL or setting.task != "training":
        return []
    changed = replace(setting, method=get_method("lora"))
    return [Step("train LoRA instead of every weight", "another method", "--method lora", changed)]


def _four_bit(setting: Setting) -> list[Step]:
    if setting.quantisation != "none" or setting.method.name == FULL:
        return []
    cost = "rounded base weights, unpacked for every product"
    changed = replace(setting, quantisation="nf4-dq")
    return [Step("keep the frozen weights in 4 bits", cost, "--base nf4-dq", changed)]


def _shorter_blocks(setting: Setting) -> list[Step]:
    found, block = [], setting.block // 2
    while block >= SHORTEST:
        changed = replace(setting, block=block)
        found.append(Step(f"shorten the block to {block} tokens", "longer rows are lost", f"--block {block}", changed))
        block //= 2
    return found


# What can be changed, cheapest first.
STEPS: dict[str, Callable[[Setting], list[Step]]] = {
    "micro-batch": _smaller_batches,
    "checkpointing": _checkpointing,
    "optimizer": _eight_bit,
    "method": _lora,
    "base": _four_bit,
    "block": _shorter_blocks,
}
# The parts that each can make smaller; the others stay at least as large.
SAVES = {"optimizer": (OPTIMIZER,), "base": (WEIGHTS,), "method": PARTS}


def _alone(found: Plan, steps: Mapping[str, Callable[[Setting], list[Step]]]) -> Iterator[Step]:
    """Single changes, without those that can't save what is missing."""
    for name, step in steps.items():
        most = sum(found.prediction.parts[part] for part in SAVES.get(name, (ACTIVATIONS, LOGITS)))
        if most + found.allowance.total >= -found.room:
            yield from step(found.setting)


def _together(setting: Setting, steps: Mapping[str, Callable[[Setting], list[Step]]]) -> Iterator[Step]:
    """The same changes on top of each other: the smallest micro-batch, then each further change added."""
    taken: list[Step] = []
    for name, step in steps.items():
        choices = step(taken[-1].setting if taken else setting)
        before = list(taken)
        for choice in choices if name == "block" else choices[-1:]:
            taken = [*before, choice]
            if len(taken) > 1:
                yield Step(
                    "; ".join(one.words for one in taken),
                    "; ".join(dict.fromkeys(one.cost for one in taken)),
                    " ".join(one.options for one in taken),
                    choice.setting,
                )
