"""The cheapest change that makes a step fit, and the whole plan in words and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from lorahub_edu.memory.plan import Plan, plan
from lorahub_edu.memory.predict import Prediction
from lorahub_edu.memory.setting import FULL, Setting
from lorahub_edu.memory.tracker import ACTIVATIONS, LOGITS, OPTIMIZER, PARTS, WEIGHTS
from lorahub_edu.results import Table

GB = 1e9  # bytes; cards are sold in GiB, figures of frameworks and papers are in these
SHORTEST = 128  # tokens: no shorter block is proposed
KINDS = ("micro-batch", "checkpointing", "optimizer", "method", "base", "block")  # of changes, cheapest first
# The parts that each kind can make smaller; the others stay at least as large.
SAVES = {"optimizer": (OPTIMIZER,), "base": (WEIGHTS,), "method": PARTS}


@dataclass(frozen=True)
class Change:
    """One change or several: what to do, its cost, the options that do it, and the setting and the plan with it."""

    words: str
    cost: str
    options: str
    setting: Setting
    plan: Plan | None = None


def cheapest_change(
    current: Plan, only: Sequence[str] = (), report: Callable[[Change], None] = lambda _change: None
) -> Change | None:
    """The change that costs least among those that make a plan fit; None when nothing fits.

    What leaves the result as it is costs less than what changes it, and of two such the quicker one costs less:

    1. A smaller micro-batch, and more of them for one optimizer step: the same gradient, little more time.
    2. Gradient checkpointing: the same gradient, every layer's forward pass a second time.
    3. An 8-bit optimizer: nearly the same steps (Dettmers et al. 2021 found no loss), no more time.
    4. LoRA instead of every weight: another method.
    5. A 4-bit base: other frozen weights (QLoRA found almost no loss), every product unpacks its weight first.
    6. A shorter block: long rows are dropped or cut, so the data are others.

    Each is tried alone in this order, then all up to each of them together.

    Args:
        current: a plan that does not fit.
        only: members of `KINDS`; empty tries all.
        report: called with every change that was predicted, whether it fits or not.

    Raises:
        CourseError: as `predict`.
    """
    kinds = [kind for kind in KINDS if not only or kind in only]
    for change in (*_alone(current, kinds), *_together(current.setting, kinds)):
        change = replace(change, plan=plan(current.config, change.setting, current.available))
        report(change)
        if change.plan.fits:
            return change
    return None


def _changes(kind: str, setting: Setting) -> list[Change]:
    """The changes of one kind that a setting allows, the mildest first."""
    training, full = setting.task == "training", setting.method == FULL
    if kind == "micro-batch":
        return [_smaller_micro_batch(setting, rows) for rows in _halves(setting.micro_batch, 1)]
    if kind == "block":
        return [
            Change(
                f"shorten the block to {t} tokens", "longer rows are lost", f"--block {t}", replace(setting, block=t)
            )
            for t in _halves(setting.block, SHORTEST)
        ]
    if kind == "checkpointing" and training and not setting.checkpointing:
        words, cost = "turn gradient checkpointing on", "the same result, each layer's forward pass twice"
        return [Change(words, cost, "--checkpointing", replace(setting, checkpointing=True))]
    if kind == "optimizer" and training and setting.optimizer == "adamw":
        changed = replace(setting, optimizer="adamw-8bit")
        return [Change("take an 8-bit optimizer", "rounded optimizer states", "--optimizer adamw-8bit", changed)]
    if kind == "method" and training and full:
        changed = replace(setting, method="lora")
        return [Change("train LoRA instead of every weight", "another method", "--method lora", changed)]
    if kind == "base" and not full and setting.quantisation == "none":
        words, cost = "keep the frozen weights in 4 bits", "rounded base weights, unpacked for every product"
        return [Change(words, cost, "--base nf4-dq", replace(setting, quantisation="nf4-dq"))]
    return []


def _halves(size: int, least: int) -> Iterator[int]:
    while (size := size // 2) >= least:
        yield size


def _smaller_micro_batch(setting: Setting, rows: int) -> Change:
    words, accumulation = f"take micro-batches of {rows}", 1
    if setting.task == "training":
        accumulation = setting.accumulation * -(-setting.micro_batch // rows)
        words += f", {accumulation} for one optimizer step"
    changed = replace(setting, micro_batch=rows, accumulation=accumulation)
    return Change(words, "the same result, little more time", f"--micro-batch {rows}", changed)


def _alone(current: Plan, kinds: Sequence[str]) -> Iterator[Change]:
    """Single changes, without those that can't save what is missing."""
    for kind in kinds:
        most = sum(current.prediction.parts[part] for part in SAVES.get(kind, (ACTIVATIONS, LOGITS)))
        if most + current.allowance.total >= -current.room:
            yield from _changes(kind, current.setting)


def _together(setting: Setting, kinds: Sequence[str]) -> Iterator[Change]:
    """The same changes on top of each other: the smallest micro-batch, then each further change added."""
    taken: list[Change] = []
    for kind in kinds:
        choices = _changes(kind, taken[-1].setting if taken else setting)
        before = list(taken)
        for choice in choices if kind == "block" else choices[-1:]:
            taken = [*before, choice]
            if len(taken) > 1:
                yield Change(
                    "; ".join(change.words for change in taken),
                    "; ".join(dict.fromkeys(change.cost for change in taken)),
                    " ".join(change.options for change in taken),
                    choice.setting,
                )


@dataclass(frozen=True)
class Advice:
    """A model's plan, what has the available memory, and where the plan does not fit, the changes that were tried."""

    model: str
    where: str
    plan: Plan
    changes: tuple[Change, ...]
    cheapest: Change | None

    def parts(self) -> Table:
        """What the step takes, part by part."""
        sizes = {part: self.plan.prediction.parts[part] for part in PARTS} | {
            "workspaces of kernels": self.plan.allowance.workspace,
            "held by the allocator": self.plan.allowance.allocator,
            "needed at the peak": self.plan.needed,
            self.where: self.plan.available,
        }
        rows = tuple((name, f"{size / GB:.2f}") for name, size in sizes.items())
        return Table((f"{self.model}, {in_words(self.plan.setting)}", "GB"), rows)

    def verdict(self) -> str:
        """Whether it fits and by how much, in a sentence; where it does not, with the change to make."""
        peak = stage_in_words(self.plan.prediction)
        if self.plan.fits:
            return f"It fits, with {self.plan.room / GB:.1f} GB to spare. The peak is {peak}."
        return f"It does not fit: {-self.plan.room / GB:.1f} GB are missing. The peak is {peak}.\n{self.remedy()}"

    def remedy(self) -> str:
        """The cheapest change that makes the plan fit, in a sentence."""
        if self.cheapest is None:
            least = min((change.plan.needed for change in self.changes), default=self.plan.needed)
            return (
                f"No change makes it fit: the least of those tried takes {least / GB:.1f} GB. Take a larger card or a "
                f"smaller model."
            )
        change = self.cheapest
        return (
            f"Cheapest change that makes it fit: {change.words} ({change.options}; {change.cost}). It then takes "
            f"{change.plan.needed / GB:.1f} GB and leaves {change.plan.room / GB:.1f} GB."
        )

    def alternatives(self) -> Table:
        """Every change that was tried, cheapest first."""
        rows = tuple(
            (change.words, change.cost, f"{change.plan.needed / GB:.2f}", "yes" if change.plan.fits else "no")
            for change in self.changes
        )
        return Table(("change", "its cost", "GB", "fits"), rows)

    def __str__(self) -> str:
        shown = f"{self.parts()}\n\n{self.verdict()}"
        return f"{shown}\n\n{self.alternatives()}" if self.changes else shown


def advise(
    model: str, config: PreTrainedConfig, setting: Setting, available: int, where: str, only: Sequence[str] = ()
) -> Advice:
    """Predict a step, compare it with what is available, and look for the cheapest change where it does not fit.

    Args:
        model: a name for the table.
        available: bytes, such as `plan.capacity(24)`.
        where: what has them, for the table.
        only: members of `KINDS` to try; empty tries all.

    Raises:
        CourseError: as `predict`.
    """
    current = plan(config, setting, available)
    changes: list[Change] = []
    cheapest = None if current.fits else cheapest_change(current, only, changes.append)
    return Advice(model, where, current, tuple(changes), cheapest)


def in_words(setting: Setting) -> str:
    """A setting in a line."""
    words = [setting.method, setting.task, f"{setting.micro_batch} x {setting.block} tokens", setting.dtype]
    if setting.task == "training":
        words += [f"trained in {setting.trained_dtype}", setting.optimizer]
        words += [f"{setting.accumulation} micro-batches a step"] if setting.accumulation > 1 else []
        words += ["checkpointing"] if setting.checkpointing else []
    words += [f"frozen weights in {setting.quantisation}"] if setting.quantisation != "none" else []
    return ", ".join(words)


def stage_in_words(prediction: Prediction) -> str:
    """Where in the step the peak falls."""
    kind, _, layer = prediction.stage.partition(" ")
    if kind == "optimizer":
        return "in the optimizer's update"
    if prediction.stage == "next token":
        return "at the first new token"
    if layer:
        return f"in the {kind} pass, at layer {int(layer.partition('.')[2]) + 1}"
    return f"in the {kind} pass, {'at the output head' if kind == 'backward' else 'before the first layer'}"
