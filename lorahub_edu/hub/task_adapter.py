"""From a task and modules to a saved adapter, in one call: what `lorahub-edu adapt` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from lorahub_edu.data import fewshot, tasks
from lorahub_edu.data.fewshot import find_task, rows_for, split
from lorahub_edu.errors import CourseError
from lorahub_edu.hub import candidates, compose, zoo
from lorahub_edu.hub.adapt import Adapted, SearchConfig, adapt
from lorahub_edu.hub.searches import needs_gradient
from lorahub_edu.lora import adapter_files
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import Profile
from lorahub_edu.scoring import Scores, score

ADAPTER_FOLDER = "adapter"
USUAL_SHOTS = 5


@dataclass(frozen=True)
class TaskAdapter:
    """A saved adapter, and the scores of the base and of the adapter on the task's test items, if it has any."""

    adapted: Adapted
    folder: Path
    rank: int
    examples: int
    before: Scores | None
    after: Scores | None

    def __str__(self) -> str:
        adapted, history = self.adapted, self.adapted.history
        lines = [
            f"algorithm  {adapted.algorithm}; composition: {adapted.composition}",
            f"search     {len(history)} candidates on {self.examples} examples in {history.seconds[-1]:.0f} s"
            + (f", {history.failed} of them failed" if history.failed else ""),
            f"loss       {adapted.loss:.3f} nats a token on the examples",
            "weights    " + ", ".join(f"{name} {weight:+.2f}" for name, weight in adapted.top()),
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
    config: SearchConfig = SearchConfig(),  # noqa: B008 - it is frozen
    *,
    modules: Sequence[str] = (),
    folder: str | Path = zoo.SHIPPED,
    prefilter: str = "",
    draw: int = 0,
    rank: int | None = None,
    test_items: int = 100,
    profile: Profile | str | None = None,
    base: str = "",
    out: str | Path = Path("runs/adapt"),
    progress: bool = True,
) -> TaskAdapter:
    """Adapt a composition of modules to a task's few examples and save it as an adapter.

    Args:
        task: a task's name ("bbh/<name>" for BIG-Bench Hard), or a JSONL file of your own examples.
        config: as for `adapt`; the optimizer "gradient" needs float32 and takes it.
        modules: what `zoo.load` takes; none is the whole zoo, which is in `folder`.
        prefilter: takes only some of the modules in `folder`; see `candidates.prefilter`.
        draw: which five of a named task's examples.
        rank: brings the adapter to this rank at most (a truncated SVD); None keeps it exact, at rank N·r for "exact".
        base: the base model's name or folder, also of modules that name another; "" takes the profile's.
        test_items: how many of the task's test items to score before and after.
        out: the search's log, its summary and the adapter; a search that was killed continues from there.
    Raises CourseError: a rank below 1, fewer than no test items, or what `adapt`, `zoo.load` and `tasks.read` refuse.
    """
    if (rank is not None and rank < 1) or test_items < 0:
        raise CourseError(f"rank={rank}, test_items={test_items}: take a rank of 1 or more, and 0 items for no test.")
    if tasks.is_file(task):
        target = tasks.read(task)
        examples, tested = list(target.train), list(target.test[:test_items])
    else:
        target = find_task(task)
        examples, tested = split(target, draw, USUAL_SHOTS, test_items)
    if not examples:
        raise CourseError(f"{task} has no example to adapt to: give at least one row.")
    dtype = torch.float32 if needs_gradient(config.optimizer) else torch.bfloat16
    model, tokenizer = pretrained.load(profile, base=base, dtype=dtype)
    rows = rows_for(model, tokenizer, target.instructions[0], examples)
    if prefilter:
        modules = candidates.prefilter(prefilter, folder, model, tokenizer, target.instructions[0], rows, config.seed)
    files = zoo.load(list(modules) or None, folder)
    if base:
        files = [replace(file, base_model=base) for file in files]
    name = pretrained.name_of(model)
    for file in files if name else ():
        file.check_base(pretrained.base_sha256(name), name, "Choose the profile of its base, or another module.")
    exact_model = cache(lambda: pretrained.load(profile, base=base, dtype=torch.float32)[0])  # loaded after the search
    adapted = adapt(model, files, rows, config, final_model=exact_model, folder=out, progress=progress)
    module, model = adapted.module, exact_model()
    exact_rank = max(config.rank for config in module.configs.values())
    if rank is not None and rank < exact_rank:
        module = compose.refactor(module, rank)
    before = after = None
    if tested:
        rows = rows_for(model, tokenizer, target.instructions[0], tested)
        batches = fewshot.batches(model.config, sorted(rows, key=lambda row: row.tokens))
        before = score(model, batches)
    adapter_files.put_adapter(model, module)
    if tested:
        after = score(model, batches)
    adapter_files.save_adapter(
        model, Path(out) / ADAPTER_FOLDER, base_model=module.base_model, base_model_sha256=module.base_model_sha256
    )
    return TaskAdapter(adapted, Path(out), min(rank or exact_rank, exact_rank), len(examples), before, after)
