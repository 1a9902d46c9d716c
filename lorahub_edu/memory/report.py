"""A plan in words and tables: what a step takes, whether it fits, and the cheapest change that makes it fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from lorahub_edu.memory.advice import Change, Plan, cheapest_change, plan
from lorahub_edu.memory.predict import Prediction, Setting
from lorahub_edu.memory.tracker import PARTS
from lorahub_edu.results import Table

GB = 1e9  # bytes; cards are sold in GiB, figures of frameworks and papers are in these


@dataclass(frozen=True)
class Report:
    """A plan, and the changes that were looked at where it does not fit."""

    model: str
    where: str
    plan: Plan
    changes: tuple[Change, ...]
    cheapest: Change | None

    def parts(self) -> Table:
        """What the step takes, part by part."""
        rows = [(part, f"{self.plan.prediction.parts[part] / GB:.2f}") for part in PARTS]
        rows += [
            ("workspaces of kernels", f"{self.plan.allowance.workspace / GB:.2f}"),
            ("held by the allocator", f"{self.plan.allowance.allocator / GB:.2f}"),
            ("needed at the peak", f"{self.plan.needed / GB:.2f}"),
            (self.where, f"{self.plan.available / GB:.2f}"),
        ]
        return Table((f"{self.model}, {in_words(self.plan.setting)}", "GB"), tuple(rows))

    def verdict(self) -> str:
        """Whether it fits and by how much, in a sentence; where it does not, with the change to make."""
        where = stage_in_words(self.plan.prediction)
        if self.plan.fits:
            return f"It fits, with {self.plan.room / GB:.1f} GB to spare. The peak is {where}."
        return f"It does not fit: {-self.plan.room / GB:.1f} GB are missing. The peak is {where}.\n{self.advice()}"

    def advice(self) -> str:
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
        """Every change that was looked at, cheapest first."""
        rows = tuple(
            (change.words, change.cost, f"{change.plan.needed / GB:.2f}", "yes" if change.plan.fits else "no")
            for change in self.changes
        )
        return Table(("change", "its cost", "GB", "fits"), rows)

    def __str__(self) -> str:
        shown = [str(self.parts()), "", self.verdict()]
        return "\n".join([*shown, "", str(self.alternatives())] if self.changes else shown)


def report(
    model: str,
    config: PreTrainedConfig,
    setting: Setting,
    available: int,
    where: str,
    only: Sequence[str] = (),
) -> Report:
    """Predict a step, compare it with what there is, and look for the cheapest change where it does not fit.

    Args:
        model: a name for the table.
        config: of the model.
        setting: of the step.
        available: bytes, such as `advice.capacity(24)`.
        where: what has them, for the table.
        only: changes to look at, keys of `advice.STEPS`; empty looks at all.

    Raises:
        CourseError: as `plan`.
    """
    found = plan(config, setting, available)
    changes: list[Change] = []
    cheapest = None if found.fits else cheapest_change(found, only, changes.append)
    return Report(model, where, found, tuple(changes), cheapest)


def in_words(setting: Setting) -> str:
    """A setting in a line."""
    words = [setting.method.name, setting.task, f"{setting.micro_batch} x {setting.block} tokens", setting.dtype]
    if setting.task == "training":
        words += [f"trained in {setting.trained_dtype}", setting.optimizer]
        words += [f"{setting.accumulation} micro-batches a step"] if setting.accumulation > 1 else []
        words += ["checkpointing"] if setting.checkpointing else []
    words += [f"frozen weights in {setting.quantisation}"] if setting.quantisation != "none" else []
    return ", ".join(words)


def stage_in_words(prediction: Prediction) -> str:
    """Where in the step the peak falls."""
    kind, _, place = prediction.stage.partition(" ")
    if kind == "optimizer":
        return "in the optimizer's update"
    if prediction.stage == "next token":
        return "at the first new token"
    passing = f"in the {kind} pass"
    if not place:
        return f"{passing}, at the output head" if kind == "backward" else f"{passing}, before the first layer"
    return f"{passing}, at layer {int(place.partition('.')[2]) + 1}"
