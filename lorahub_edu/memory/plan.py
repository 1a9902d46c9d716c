"""Does a step fit: its predicted tensors, what it takes beyond them, the memory there is, and the cheapest change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from lorahub_edu.errors import CourseError
from lorahub_edu.memory.predict import Prediction, predict
from lorahub_edu.memory.setting import FULL, GB, Setting
from lorahub_edu.memory.tracker import ACTIVATIONS, LOGITS, OPTIMIZER, PARTS, WEIGHTS
from lorahub_edu.results import Table

GIB, MIB = 1 << 30, 1 << 20
CONTEXT = GIB // 2  # what the driver, the CUDA context and loaded kernels take of a card before any tensor
SHORTEST = 128  # tokens: no shorter block is proposed
KINDS = ("micro-batch", "checkpointing", "optimizer", "method", "base", "block")  # of changes, cheapest first
# The parts that each kind can make smaller; the others stay at least as large.
SAVES = {"optimizer": (OPTIMIZER,), "base": (WEIGHTS,), "method": PARTS}


@dataclass(frozen=True)
class Allowance:
    """Bytes beyond the tensors: workspaces of kernels, and what the allocator holds and can't hand out."""

    workspace: int
    allocator: int

    @property
    def total(self) -> int:
        return self.workspace + self.allocator


@dataclass(frozen=True)
class Plan:
    """A step, what it is predicted to take, and what is available; everything in bytes."""

    config: PreTrainedConfig
    setting: Setting
    prediction: Prediction
    allowance: Allowance
    available: int

    @property
    def needed(self) -> int:
        return self.prediction.peak + self.allowance.total

    @property
    def room(self) -> int:
        """What stays free; below zero, what is missing."""
        return self.available - self.needed

    @property
    def fits(self) -> bool:
        return self.room >= 0


def capacity(gigabytes: float) -> int:
    """The bytes that a card sold with so many GB leaves for tensors: these are GiB, and the driver takes its part."""
    if not gigabytes * GIB > CONTEXT:
        raise CourseError(f"No model fits on a GPU with {gigabytes:g} GB: give the size of the card, such as 24.")
    return round(gigabytes * GIB) - CONTEXT


def plan(config: PreTrainedConfig, setting: Setting, available: int) -> Plan:
    """Predict a step and compare it with the available bytes. Raises as `predict`."""
    prediction = predict(config, setting)
    return Plan(config, setting, prediction, allowance(config, setting, prediction), available)


def allowance(config: PreTrainedConfig, setting: Setting, prediction: Prediction) -> Allowance:
    """What to add to the predicted tensors of a step.

    On a GPU: cuBLAS takes 32 MiB at most (8 MiB before Hopper). Flash attention's backward pass sums the gradient of
    the queries in float32, four bytes for each of B x T x d entries. torch's allocator serves requests of 1 to 10 MiB
    from segments of 20 MiB and larger ones from segments in steps of 2 MiB; free pieces of the wrong size are lost:
    128 MiB and 2.5 % of the tensors. Both numbers come from playing the requests of a 7B's step, with 4 to 16 layers,
    through those rules; this project has not measured them on a GPU. `capacity` subtracts the driver's own memory.

    On a CPU: half precision multiplies the last position's hidden states by the output head row by row, and copies
    the head for each (a slice of a batch is not contiguous, and the kernel wants it so). glibc's malloc keeps freed
    pieces below 32 MiB for later and can't always use them. In the course's own runs that came to about a quarter of
    everything but the weights, and up to 64 MiB at the end of its heap; no rule was found that fits every run
    (`results/memory_plan.json` has them). With the environment variable MALLOC_MMAP_THRESHOLD_=65536 malloc gives
    pieces back at once, for some more time, and this allowance is not needed.
    """
    if setting.device == "cpu":
        copies = setting.task == "generation" and setting.dtype != "float32" and not config.is_encoder_decoder
        head = 2 * config.vocab_size * config.hidden_size if copies else 0
        others = prediction.peak - prediction.parts[WEIGHTS]
        return Allowance(setting.micro_batch * head, 64 * MIB + round(0.25 * others))
    sums = 4 * setting.micro_batch * setting.block * config.hidden_size if setting.task == "training" else 0
    return Allowance(32 * MIB + sums, 128 * MIB + round(0.025 * prediction.peak))


@dataclass(frozen=True)
class Change:
    """One change or several: what to do, its cost, the options that do it, and the setting and the plan with it."""

    words: str
    cost: str
    options: str
    setting: Setting
    plan: Plan | None = None


def tried_changes(current: Plan, only: Sequence[str] = ()) -> Iterator[Change]:
    """Changes of a plan that does not fit, each with its plan, from the cheapest on; the first that fits is the last.

    What leaves the result as it is costs less than what changes it, and of two such the quicker one costs less:
    1. A smaller micro-batch, and more of them for one optimizer step: the same gradient, little more time.
    2. Gradient checkpointing: the same gradient, every layer's forward pass a second time.
    3. An 8-bit optimizer: nearly the same steps (Dettmers et al. 2021 found no loss), no more time.
    4. LoRA instead of every weight: another method.
    5. A 4-bit base: other frozen weights (QLoRA found almost no loss), every product unpacks its weight first.
    6. A shorter block: long rows are dropped or cut, so the data are others.

    Each is tried alone in this order, then all up to each of them together. Of several sizes of one change only those
    are tried that a search by halves needs. `only` are the members of `KINDS` to try; empty tries all.
    """
    kinds = [kind for kind in KINDS if not only or kind in only]
    for sizes in (*_alone(current, kinds), *_together(current.setting, kinds)):
        tried = _mildest(current, sizes)
        yield from tried
        if tried and tried[-1].plan.fits:
            return


def _mildest(current: Plan, sizes: Sequence[Change]) -> list[Change]:
    """The planned ones among sizes of a change, the mildest first, up to the mildest that fits.

    Memory falls from size to size, so the strongest is planned first, and then one of each half.
    """
    planned: dict[int, Change] = {}

    def fits(i: int) -> bool:
        planned[i] = replace(sizes[i], plan=plan(current.config, sizes[i].setting, current.available))
        return planned[i].plan.fits

    first, last = 0, len(sizes) - 1
    if sizes and fits(last):
        while first < last:
            middle = (first + last) // 2
            first, last = (first, middle) if fits(middle) else (middle + 1, last)
    return [planned[i] for i in sorted(planned) if i <= last]


def _alone(current: Plan, kinds: Sequence[str]) -> Iterator[list[Change]]:
    """The sizes of single changes, without changes that can't save what is missing."""
    for kind in kinds:
        most = sum(current.prediction.parts[part] for part in SAVES.get(kind, (ACTIVATIONS, LOGITS)))
        if most + current.allowance.total >= -current.room:
            yield _changes(kind, current.setting)


def _together(setting: Setting, kinds: Sequence[str]) -> Iterator[list[Change]]:
    """The same changes on top of each other: the smallest micro-batch, then each further change added."""
    taken: list[Change] = []
    for kind in kinds:
        choices = _changes(kind, taken[-1].setting if taken else setting)
        stacks = [[*taken, choice] for choice in (choices if kind == "block" else choices[-1:])]
        if taken and stacks:
            yield [
                Change(
                    "; ".join(change.words for change in stack),
                    "; ".join(dict.fromkeys(change.cost for change in stack)),
                    " ".join(change.options for change in stack),
                    stack[-1].setting,
                )
                for stack in stacks
            ]
        taken = stacks[-1] if stacks else taken


def _changes(kind: str, setting: Setting) -> list[Change]:
    """The changes of one kind that a setting allows, the mildest first."""
    training, full = setting.task == "training", setting.method == FULL
    if kind == "micro-batch":
        return [_smaller_micro_batch(setting, rows) for rows in _halves(setting.micro_batch, 1)]
    if kind == "block":
        lengths = {f"{length}": replace(setting, block=length) for length in _halves(setting.block, SHORTEST)}
        return [
            Change(f"shorten the block to {length} tokens", "longer rows are lost", f"--block {length}", changed)
            for length, changed in lengths.items()
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


@dataclass(frozen=True)
class Advice:
    """A model's plan, what has the available memory, and where the plan does not fit, the changes that were tried."""

    model: str
    where: str
    plan: Plan
    changes: tuple[Change, ...]

    @property
    def cheapest(self) -> Change | None:
        """The cheapest change that makes the plan fit."""
        return next((change for change in self.changes if change.plan.fits), None)

    def parts(self) -> Table:
        sizes = {part: self.plan.prediction.parts[part] for part in PARTS} | {
            "workspaces of kernels": self.plan.allowance.workspace,
            "held by the allocator": self.plan.allowance.allocator,
            "needed at the peak": self.plan.needed,
            self.where: self.plan.available,
        }
        rows = tuple((name, f"{size / GB:.2f}") for name, size in sizes.items())
        return Table((f"{self.model}, {self.plan.setting}", "GB"), rows)

    def verdict(self) -> str:
        """Whether it fits and by how much, in a sentence; where it does not, with the change to make."""
        peak = f"The peak is {_in_words(self.plan.prediction.stage)}."
        if self.plan.fits:
            return f"It fits, with {self.plan.room / GB:.1f} GB to spare. {peak}"
        return f"It does not fit: {-self.plan.room / GB:.1f} GB are missing. {peak}\n{self.remedy()}"

    def remedy(self) -> str:
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
    """Predict a step, compare it with the `available` bytes, and look for the cheapest change where it does not fit.

    `where` says what has the bytes, for the table. `only` are members of `KINDS` to try; empty tries all. Raises as
    `predict`.
    """
    current = plan(config, setting, available)
    return Advice(model, where, current, () if current.fits else tuple(tried_changes(current, only)))


def _in_words(stage: str) -> str:
    """Where in the step a stage falls."""
    kind, _, layer = stage.partition(" ")
    if kind == "optimizer":
        return "in the optimizer's update"
    if stage == "next token":
        return "at the first new token"
    if layer:
        return f"in the {kind} pass, at layer {int(layer.partition('.')[2]) + 1}"
    return f"in the {kind} pass, {'at the output head' if kind == 'backward' else 'before the first layer'}"
