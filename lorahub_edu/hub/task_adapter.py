"""From a task and modules to a saved adapter, in one call: what `lorahub-edu adapt` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lorahub_edu.data import fewshot, tasks
from lorahub_edu.data.targets import find_task, rows_for, split
from lorahub_edu.data.tasks import Item
from lorahub_edu.errors import CourseError
from lorahub_edu.hub import compose, zoo
from lorahub_edu.hub.adapt import Adapted, adapt
from lorahub_edu.hub.zoo import SHIPPED
from lorahub_edu.lora import adapter_files
from lorahub_edu.models import pretrained
from lorahub_edu.scoring import Scores, score

ADAPTER_FOLDER = "adapter"
USUAL_SHOTS = 5


@dataclass(frozen=True)
class Done:
    """What an adaptation gave, and how the base and the new adapter do on the task's test items, where it has some."""

    found: Adapted
    folder: Path
    rank: int
    examples: int
    before: Scores | None
    after: Scores | None

    def __str__(self) -> str:
        history = self.found.history
        lines = [
            f"algorithm  {self.found.algorithm}; composition: {self.found.composition}",
            f"search     {len(history)} candidates on {self.examples} examples in {history.seconds[-1]:.0f} s"
            + (f", {history.failed} of them failed" if history.failed else ""),
            f"loss       {self.found.loss:.3f} nats a token on the examples",
            "weights    " + ", ".join(f"{name} {weight:+.2f}" for name, weight in self.found.top()),
        ]
        if self.before is not None:
            for label, scores in (("base", self.before), ("adapted", self.after)):
                lines.append(
                    f"test       {label:8s} strict exact match {scores.strict.mean():.0%}, answer only "
                    f"{scores.answer_only.mean():.0%}, loss {scores.losses[0]:.2f}, {scores.strict.shape[1]} items"
                )
        lines.append(f"adapter    {self.folder / ADAPTER_FOLDER} (rank {self.rank}, PEFT's layout)")
        return "\n".join(lines)


def adapt_to(
    task: str,
    *,
    modules: Sequence[str] = (),
    folder: str | Path = SHIPPED,
    optimizer: str = "auto",
    composition: str | None = None,
    budget: int | None = None,
    draw: int = 0,
    seed: int = 0,
    rank: int | None = None,
    original_scale: bool = False,
    test_items: int = 100,
    profile: str | None = None,
    base_model: str = "",
    out: str | Path = Path("runs/adapt"),
    progress: bool = True,
) -> Done:
    """Adapt a composition of modules to a task's few examples and save it as an adapter.

    Args:
        task: a task's name ("bbh/<name>" for BIG-Bench Hard), or a JSONL file of your own examples.
        modules: what `zoo.load` takes; none is the whole zoo.
        folder: the zoo that module names are looked up in.
        optimizer: as for `adapt`; "gradient" needs float32 and takes it.
        composition: as for `adapt`.
        budget: candidates to score.
        draw: which five of a named task's examples.
        seed: of the search.
        rank: brings the adapter to this rank at most (a truncated SVD); None keeps it exact, at rank N·r for "exact".
        original_scale: as for `adapt`.
        test_items: how many of the task's test items to score before and after; 0 scores none.
        profile: names the base model.
        base_model: a base to use instead of the profile's, such as "flan-t5-large".
        out: the search's log, its summary and the adapter; a search that was killed goes on from there.
        progress: show a bar.

    Returns:
        What came out.

    Raises:
        CourseError: a rank below 1, fewer than no test items, or what `adapt`, `zoo.load` and `tasks.read` refuse.
    """
    if (rank is not None and rank < 1) or test_items < 0:
        raise CourseError(f"rank={rank}, test_items={test_items}: take a rank of 1 or more, and 0 items for no test.")
    own = Path(task).suffix == ".jsonl" or Path(task).is_file()
    asked = tasks.read(task) if own else find_task(task)
    if own:
        examples, tested = list(asked.train), list(asked.test[:test_items])
    else:
        examples, tested = split(asked, draw, USUAL_SHOTS, test_items)
    if not examples:
        raise CourseError(f"{task} has no example to adapt to: give at least one row.")
    files = zoo.load(list(modules) or None, folder)
    dtype = torch.float32 if optimizer == "gradient" else torch.bfloat16
    model, tokenizer = pretrained.load(profile, base=base_model, dtype=dtype)
    instruction = asked.instructions[0]
    rows = rows_for(model, tokenizer, instruction, examples)
    _check_base(files, pretrained.name_of(model))
    found = adapt(
        model, files, rows, optimizer, budget, seed,
        composition=composition, original_scale=original_scale, folder=out, progress=progress,
        final_model=lambda: pretrained.load(profile, base=base_model, dtype=torch.float32)[0],
    )  # fmt: skip
    module = found.module
    if rank is not None and rank < _rank(module):
        module = compose.refactor(module, rank)
    before = after = None
    judged = pretrained.load(profile, base=base_model, dtype=torch.float32)[0]
    if tested:
        made = _test_batches(judged, tokenizer, instruction, tested)
        before = score(judged, made)
    adapter_files.put_adapter(judged, module)
    if tested:
        after = score(judged, made)
    adapter_files.save_adapter(
        judged,
        Path(out) / ADAPTER_FOLDER,
        base_model=module.base_model,
        base_model_sha256=module.base_model_sha256,
    )
    return Done(found, Path(out), _rank(module), len(examples), before, after)


def _rank(module: adapter_files.AdapterFile) -> int:
    return max(config.rank for config in module.configs.values())


def _test_batches(model, tokenizer, instruction: str, items: Sequence[Item]) -> list:  # noqa: ANN001 - as rows_for
    rows = rows_for(model, tokenizer, instruction, items)
    return fewshot.batches(model.config, sorted(rows, key=lambda row: row.tokens))


def _check_base(files: Sequence[adapter_files.AdapterFile], name: str | None) -> None:
    """A module of another base is named before any time is spent."""
    expected = pretrained.base_sha256(name) if name else None
    for file in files:
        if expected and file.base_model_sha256 and file.base_model_sha256 != expected:
            raise CourseError(
                f"Module {file.path.name!r} was trained on {file.base_model} (SHA-256 {file.base_model_sha256[:12]}), "
                f"not on {name} ({expected[:12]}): choose the profile of its base, or another module."
            )
