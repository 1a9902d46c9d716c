"""The comparison of methods: a method on a task at a learning rate and a seed, what it costs, and the grid of both.

The rate of each method is chosen by one search for all; then come the other seeds, then the costs.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorahub_edu import evaluation, scoring
from lorahub_edu.data import fewshot, tasks
from lorahub_edu.errors import CourseError
from lorahub_edu.methods import files
from lorahub_edu.methods.attach import Attached, attach, count_trainable, detach
from lorahub_edu.methods.kinds import get_method, parts_of
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.training.descent import autocast
from lorahub_edu.training.loop import TrainingConfig, train
from lorahub_studies import engine
from lorahub_studies.comparison_tables import chosen_rates, summarise
from lorahub_studies.variants import VARIANTS, Variant, get_variant

# Steps of 8 rows a task. Chosen before any rival was looked at, with a seed that no run here has: the base answers
# none of their items, and after so many steps LoRA at its middle rate between a tenth and nine tenths of them.
TASKS = {"num2words": 8, "upper": 10}
VALIDATION_ROWS = 32  # training items that no run trains on: the learning rate is chosen by their loss
COST_TASK = "upper"  # whose rows are trained on
COST_PROMPT = "Please explain how weight decay works"  # the source's, claim R14
COST_TOKENS, COST_GENERATIONS = 24, 3  # tokens generated at a time, and how often, after a warm-up
COST_STEPS = 3  # of which the first is a warm-up and not counted


@dataclass(frozen=True)
class MethodRun:
    """What one run measures; it can be sent to a worker as it is. Rows in batches of `batch_size`."""

    variant: str
    task: str
    rate: float
    seed: int
    steps: int
    profile: str = "cpu"
    batch_size: int = 8
    test_items: int = 60


@dataclass(frozen=True)
class Cost:
    """What one measurement of cost needs: a line of the comparison, the base, and rows in a step."""

    variant: str
    profile: str = "cpu"
    batch_size: int = 8


def attach_variant(variant: Variant, model: PreTrainedModel, seed: int = 0) -> Attached:
    """Put a line of the comparison on a model, at its size.

    Full fine-tuning and QLoRA don't keep the base: give them a model of their own.
    """
    budget = count_trainable(model, parts_of("lora", {})) if variant.matched else None
    methods = {  # without a copy of the base, which would count as their memory
        name: {**settings, "keep_base": False} if _changes_base(name) else dict(settings)
        for name, settings in variant.methods.items()
    }
    return attach(model, methods, budget=budget, seed=seed, dtype=torch.float32)


def _changes_base(method: str) -> bool:
    return "keep_base" in get_method(method).settings


def _needs_own_base(variant: Variant) -> bool:
    return any(_changes_base(method) for method in variant.methods)


def _load(profile: str, variant: Variant) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base: in float32 where its own weights are trained, else in half precision."""
    dtype = torch.float32 if "full" in variant.methods else pretrained.quick_dtype()
    # Rows here are short: on a CPU, eager attention is the faster one for them, above all backwards.
    return pretrained.load(profile, dtype=dtype, attention="eager")


@lru_cache(maxsize=1)
def _shared(profile: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return _load(profile, VARIANTS["lora"])


class TaskRows(NamedTuple):
    """A task's rows: to train on, to choose the rate by, and to test on (held-out words)."""

    training: list[fewshot.PromptedRow]
    validation: list[fewshot.PromptedRow]
    test: list[fewshot.PromptedRow]


def rows_of(task_name: str, tokenizer: PreTrainedTokenizerBase, test_items: int) -> TaskRows:
    """A task's items with its first instruction, split the same way for every run.

    Raises CourseError: no such task, or one with too few training items.
    """
    task = tasks.get(task_name)
    if len(task.train) < 2 * VALIDATION_ROWS:
        raise CourseError(
            f"{task_name!r} has {len(task.train)} training items, too few to hold {VALIDATION_ROWS} back."
        )

    def encoded(items: tuple[tasks.Item, ...]) -> list[fewshot.PromptedRow]:
        prompts = [tasks.prompt(task.instructions[0], item.input) for item in items]
        return fewshot.encode(tokenizer, prompts, [item.output for item in items])

    rows = encoded(task.train)  # in an order that depends on no list: see tasks.get
    return TaskRows(rows[VALIDATION_ROWS:], rows[:VALIDATION_ROWS], encoded(task.test[:test_items]))


def run(job: MethodRun) -> dict:
    """Train a method on a task and test it.

    Returns: The run's settings with `trainable` parameters, `validation_loss`, `loss` and `answer_loss` on the test
        items (nats a token), `strict` and `answer_only` exact match (0 to 1), `training_losses`, and `cpu_seconds` of
        training; or `error`, in words, where the method does not run here.
    """
    variant = get_variant(job.variant)
    model, tokenizer = _load(job.profile, variant) if _needs_own_base(variant) else _shared(job.profile)
    rows = rows_of(job.task, tokenizer, job.test_items)
    config = replace(
        _config(job.steps, job.batch_size), learning_rate=job.rate, warmup_steps=max(1, job.steps // 6),
        schedule="cosine", seed=job.seed,
    )  # fmt: skip
    row = {"variant": job.variant, "task": job.task, "rate": job.rate, "seed": job.seed, "steps": job.steps}
    attached = None
    try:
        attached = attach_variant(variant, model, job.seed)
        started = time.process_time()
        result = train(attached.model, [example.encoded() for example in rows.training], config, progress=False)
        row |= {"trainable": attached.trainable, "cpu_seconds": round(time.process_time() - started, 2)}
        row["training_losses"] = [round(loss, 4) for loss in result.losses]
        return row | _tested(attached, rows)
    except Exception as error:  # a line that does not run is a result too, and must not end the others
        return row | {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        if attached is not None and not _needs_own_base(variant):
            detach(attached)


def _compute() -> str | None:
    """What everything is computed in beside float32; what is trained is always float32."""
    return "bfloat16" if pretrained.quick_dtype() is torch.bfloat16 else None


def _config(steps: int, batch_size: int) -> TrainingConfig:
    return TrainingConfig(
        steps=steps, batch_size=batch_size, micro_batch_size=batch_size, batching="padded", autocast=_compute()
    )  # fmt: skip


def _tested(attached: Attached, rows: TaskRows) -> dict:
    """Scores of a trained method on the rows that it was not trained on."""
    with autocast(attached.base.device, _compute()):
        validation, test = scoring.score(attached.model, rows.validation), scoring.score(attached.model, rows.test)
    return {
        "validation_loss": float(validation.losses[0]),
        "loss": float(test.losses[0]),
        "answer_loss": float(test.answer_losses[0]),
        "strict": float(test.strict.mean()),
        "answer_only": float(test.answer_only.mean()),
        "test_items": len(rows.test),
    }


def cost(job: Cost) -> dict:
    """What a method costs, measured in this process: call it in a fresh one, whose memory nothing else has used.

    Returns: `trainable` parameters, `disk_bytes` of what is saved, `loaded_bytes` resident with the base loaded,
        `peak_bytes` resident in the steps, processor and wall `step_seconds`, and `tokens_per_second` of greedy
        generation from one prompt, by processor time and by the clock; or `error`.
    """
    variant = get_variant(job.variant)
    entry: dict = {"variant": job.variant}
    model, tokenizer = _load(job.profile, variant)
    rows = [row.encoded() for row in rows_of(COST_TASK, tokenizer, 1).training]
    with evaluation.peak_memory(model.device) as loaded:
        pass
    try:
        attached = attach_variant(variant, model)
        clock = [(time.perf_counter(), time.process_time())]
        with evaluation.peak_memory(model.device) as memory:
            train(
                attached.model, rows, _config(COST_STEPS, job.batch_size), progress=False,
                on_step=lambda _record: clock.append((time.perf_counter(), time.process_time())),
            )  # fmt: skip
        steps = COST_STEPS - 1  # the first one also makes the optimizer's state and warms caches up
        entry |= {
            "trainable": attached.trainable,
            "loaded_bytes": loaded.before,
            "peak_bytes": memory.peak,
            "step_seconds": (clock[-1][0] - clock[1][0]) / steps,
            "step_cpu_seconds": (clock[-1][1] - clock[1][1]) / steps,
        }
        with tempfile.TemporaryDirectory() as folder:
            saved = files.save(attached, Path(folder) / "saved")
            entry["disk_bytes"] = sum(file.stat().st_size for file in saved.rglob("*.safetensors"))
        return entry | _generated(attached, tokenizer)
    except Exception as error:  # as in run
        return entry | {"error": f"{type(error).__name__}: {str(error)[:300]}"}


def _generated(attached: Attached, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Speed over the same number of tokens for all, after one generation that warms caches up."""
    with autocast(attached.base.device, _compute()):
        outs = [
            evaluation.generate(attached.model, tokenizer, [COST_PROMPT], COST_TOKENS, min_new_tokens=COST_TOKENS)
            for _ in range(1 + COST_GENERATIONS)
        ][1:]
    return {
        "tokens_per_second": statistics.median(out.tokens_per_second for out in outs),
        "tokens_per_cpu_second": statistics.median(out.new_tokens / out.cpu_seconds for out in outs),
    }


@dataclass(frozen=True)
class Grid:
    """What a sweep measures: lines of the comparison, tasks with their steps, seeds; rates are chosen at the first."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    tasks: tuple[tuple[str, int], ...] = tuple(TASKS.items())
    seeds: tuple[int, ...] = (0, 1, 2)
    profile: str = "cpu"
    batch_size: int = 8
    test_items: int = 60
    costs: bool = True

    def job(self, variant: str, task: str, rate: float, seed: int) -> MethodRun:
        """One run of the grid."""
        steps = dict(self.tasks)[task]
        return MethodRun(variant, task, rate, seed, steps, self.profile, self.batch_size, self.test_items)

    def searches(self) -> list[MethodRun]:
        """The runs that rates are chosen by: every rate of every line, at the first seed."""
        return [
            self.job(variant, task, rate, self.seeds[0])
            for task, _ in self.tasks
            for variant in self.variants
            for rate in get_variant(variant).rates
        ]

    def repeats(self, rows: Sequence[Mapping]) -> list[MethodRun]:
        """The runs at the chosen rates with the other seeds, given the rows of the searches."""
        return [
            self.job(variant, task, rate, seed)
            for (task, variant), rate in chosen_rates(rows).items()
            for seed in self.seeds[1:]
        ]

    def measurements(self) -> list[Cost]:
        """The measurements of cost."""
        return [Cost(name, self.profile, self.batch_size) for name in self.variants if self.costs]


def plan(
    variants: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: int = 3,
    steps: int | None = None,
    test_items: int = 60,
    profile: str | None = None,
    costs: bool = True,
) -> Grid:
    """A grid as the command line names it; what is empty or None is the comparison's own.

    Raises CourseError: a task whose steps are not known.
    """
    unknown = [task for task in tasks if steps is None and task not in TASKS]
    if unknown:
        raise CourseError(f"How many steps on {', '.join(unknown)}? Give --steps; known are {', '.join(TASKS)}.")
    chosen = tuple((task, steps or TASKS[task]) for task in tasks or TASKS)
    lines = tuple(variants) or tuple(VARIANTS)
    return Grid(lines, chosen, tuple(range(seeds)), get_profile(profile).name, test_items=test_items, costs=costs)


def progress(grid: Grid, folder: str | Path) -> str:
    """How many runs a grid has, and how many of their rows are missing in a folder, in words."""
    jobs = [*grid.searches(), *grid.measurements()]
    of = len(jobs) + len(grid.tasks) * len(grid.variants) * (len(grid.seeds) - 1)
    jobs += grid.repeats([row for row in engine.stored(grid.searches(), folder) if row])
    return f"{of} runs and measurements of cost, {of - len(jobs) + len(engine.missing(jobs, folder))} still to be done."


def sweep(
    grid: Grid, folder: str | Path, *, report: Callable[[dict], None] = lambda row: None, **options: Any
) -> list[dict]:
    """Measure whatever of a grid a folder does not hold yet; the arguments are those of `engine.run`.

    Costs are always measured one after the other, each in a fresh process. Returned are the rows of all runs (of each
    line and task the searches, and the chosen rate at every seed), then the costs.
    """

    def measured(jobs: Sequence[object], work: Callable, **more: Any) -> list[dict]:
        return engine.run(jobs, work, folder, report=lambda job, row: report(row), **options | more)

    searched = measured(grid.searches(), run)
    repeated = measured(grid.repeats(searched), run)
    return searched + repeated + measured(grid.measurements(), _cost_alone, executor=None)


def _cost_alone(job: Cost) -> dict:
    """What a line costs, in a process of its own that nothing else has used memory in."""
    threads = torch.get_num_threads()  # a cluster's options for its workers are in this process's environment too
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (threads,)) as fresh:
        return fresh.submit(cost, job).result()


def write(rows: Sequence[Mapping], grid: Grid, into: Path | None = None) -> Path:
    """Write a sweep's rows and summary with their provenance to <results>/methods.json."""
    settings = asdict(grid) | {"tasks": dict(grid.tasks), "base_model": get_profile(grid.profile).base_model}
    kept = [{key: value for key, value in row.items() if key != "training_losses"} for row in rows]
    return engine.write(kept, "methods", settings, summarise(rows), into)
