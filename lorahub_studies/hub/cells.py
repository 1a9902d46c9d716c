"""One cell of the comparison: a target, a draw of five examples, and how every method does on the test items."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from lorahub_edu.data import fewshot
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.data.targets import find_task, rows_for, split
from lorahub_edu.data.tasks import Item, Task
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.hub import zoo
from lorahub_edu.hub.adapt import Adapted, adapt
from lorahub_edu.hub.compose import ModuleStack, stack
from lorahub_edu.hub.population import Population
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.models import pretrained
from lorahub_edu.scoring import Scores, score
from lorahub_studies.hub.baselines import TUNINGS, tuned


@dataclass(frozen=True)
class Method:
    """One line of the comparison: what it is called on a page, and how it is run."""

    label: str
    kind: str  # "base", "context", "fixed", "single", "search" or "tune"
    settings: dict = field(default_factory=dict)


METHODS = {
    "zero_shot": Method("zero-shot", "base"),
    "in_context": Method("5-shot in-context", "context"),
    "average": Method("average of all, 1/N", "fixed", {"weights": "average"}),
    "random_weights": Method("random weights, no search", "fixed", {"weights": "random"}),
    "single": Method("best single module", "single"),
    "random_40": Method("random search, 40", "search", {"optimizer": "random", "budget": 40}),
    "ngopt_40": Method("NGOpt, 40 (the released code)", "search", {"optimizer": "ngopt", "budget": 40}),
    "cma_40": Method("CMA-ES, 40", "search", {"optimizer": "cma", "budget": 40}),
    "cma_120": Method("CMA-ES, 120", "search", {"optimizer": "cma", "budget": 120}),
    "gradient_40": Method("gradient on w, 40 steps", "search", {"optimizer": "gradient", "budget": 40}),
    "cma_exact_120": Method(
        "exact composition, CMA-ES, 120", "search", {"optimizer": "cma", "budget": 120, "composition": "exact"}
    ),
    "greedy_paper_120": Method(
        "the paper's composition, greedy, 120", "search", {"optimizer": "greedy", "budget": 120}
    ),
    "auto_60": Method("auto, 60", "search", {"optimizer": "auto", "budget": 60}),
    "auto": Method("auto, 120 (exact, greedy)", "search", {"optimizer": "auto"}),
    "lora": Method("LoRA on the five, paper's rate", "tune", {"tuning": "lora"}),
    "lora_fast": Method("LoRA on the five, the zoo's rate", "tune", {"tuning": "lora_fast"}),
    "ia3": Method("IA3 on the five", "tune", {"tuning": "ia3"}),
    "full": Method("full tuning on the five", "tune", {"tuning": "full"}),
}


@dataclass(frozen=True)
class Cell:
    """What one cell measures; it can be sent to a worker as it is.

    Attributes:
        target: a task of `data.tasks` or `data.bbh`.
        draw: seed of the five examples, and of whatever a method draws.
        methods: keys of `METHODS`.
        modules: what `zoo.load` takes; () is the whole zoo in `folder`.
        folder: the zoo that module names are looked up in.
        profile: names the base model; the cell runs in bfloat16 ("full" loads its own float32 copy).
        shots: number of examples.
        test_items: at most so many.
        base_model: a base to use instead of the profile's; "" is the profile's.
    """

    target: str
    draw: int
    methods: tuple[str, ...]
    modules: tuple[str, ...] = ()
    folder: str = str(zoo.SHIPPED)
    profile: str = "cpu"
    shots: int = 5
    test_items: int = 120
    base_model: str = ""


class Bench:
    """A base model, its modules stacked both ways, and what does not depend on the draw, kept between cells."""

    def __init__(self, profile: str, modules: tuple[str, ...], folder: str, base_model: str = "") -> None:
        self.profile, self.base_model = profile, base_model
        # eager: sequences are short, and tuning on them is a fifth faster than with the fused kernel
        self.model, self.tokenizer = pretrained.load(profile, base=base_model, dtype=torch.bfloat16, attention="eager")
        self.files = zoo.load(modules or None, folder)
        self.stacks = {how: _stack_of(self.files, how) for how in ("paper", "exact")}
        self.kept: dict[tuple, Scores] = {}

    def test(self, weights: np.ndarray | None, composition: str, test: list) -> Scores:
        """Scores of one composition, one candidate at a time, so that every method is judged alike."""
        if weights is None:
            return score(self.model, test)
        with Population(self.model, self.stacks[composition], composition) as population:
            return population.score(weights[None], test)


def _stack_of(files: list[AdapterFile], composition: str) -> ModuleStack:
    return stack(files, composition=composition, dtype=torch.float32)


@lru_cache(maxsize=1)
def bench(profile: str, modules: tuple[str, ...], folder: str, base_model: str = "") -> Bench:
    """The bench of this process for a zoo; the last one is kept."""
    return Bench(profile, modules, folder, base_model)


def run_cell(cell: Cell) -> list[dict]:
    """Run every method of a cell.

    Args:
        cell: what to measure.

    Returns:
        One row a method: target, draw, method; `strict` and `answer_only` exact match (0 to 1), `loss` and
        `answer_loss` on the test items (nats a token), `example_loss`, `evaluations` of candidates (or steps of
        tuning), `seconds` and `cpu_seconds` of adapting (not of testing), `prompt_tokens` a query, `algorithm`, and
        the largest weights.

    Raises:
        CourseError: unknown target or method, or modules that don't fit.
    """
    for method in cell.methods:
        if method not in METHODS:
            raise CourseError(f"There is no method {method!r}. {near_matches(method, METHODS)}")
    found = bench(cell.profile, cell.modules, cell.folder, cell.base_model)
    task = find_task(cell.target)
    examples, test_items = split(task, cell.draw, cell.shots, cell.test_items)
    instruction = task.instructions[0]
    rows = rows_for(found.model, found.tokenizer, instruction, examples)
    tested = sorted(rows_for(found.model, found.tokenizer, instruction, test_items), key=lambda row: row.tokens)
    made = fewshot.batches(found.model.config, tested)
    context = _Context(cell, found, task, examples, test_items, rows, tested, made)
    return [_run(context, name) for name in cell.methods]


@dataclass(frozen=True)
class _Context:
    cell: Cell
    bench: Bench
    task: Task
    examples: list[Item]
    test_items: list[Item]
    rows: list[PromptedRow]
    tested: list[PromptedRow]
    made: list


def _run(context: _Context, name: str) -> dict:
    method, bench_ = METHODS[name], context.bench
    entry = {"target": context.cell.target, "draw": context.cell.draw, "method": name}
    entry |= {"test_items": len(context.tested), "modules": len(bench_.files), "evaluations": 0, "algorithm": ""}
    entry["prompt_tokens"] = float(np.mean([len(row.prompt_ids) for row in context.tested]))
    with _stopwatch() as spent:
        if method.kind == "base":
            scores = bench_.test(None, "paper", context.made)
            spent.clear()
        elif method.kind == "context":
            shown = rows_for(
                bench_.model, bench_.tokenizer, context.task.instructions[0], context.test_items, context.examples
            )
            entry["prompt_tokens"] = float(np.mean([len(row.prompt_ids) for row in shown]))
            scores = score(bench_.model, sorted(shown, key=lambda row: row.tokens))
            spent.clear()
        elif method.kind == "tune":
            scores, entry["example_loss"] = _tune(context, method.settings["tuning"], spent)
            entry["evaluations"] = TUNINGS[method.settings["tuning"]].epochs
        else:
            found = _weights(context, method)
            spent.stop()
            entry |= {"example_loss": found["loss"], "evaluations": found["evaluations"]}
            entry |= {"algorithm": found["algorithm"], "top": found["top"], "failed": found["failed"]}
            scores = bench_.test(found["weights"], found["composition"], context.made)
    entry |= {
        "strict": float(scores.strict.mean()),
        "answer_only": float(scores.answer_only.mean()),
        "loss": float(scores.losses[0]),
        "answer_loss": float(scores.answer_losses[0]),
        "seconds": round(spent.seconds, 2),
        "cpu_seconds": round(spent.cpu, 2),
    }
    return entry


def _weights(context: _Context, method: Method) -> dict:
    """The weights that a method settles on, and how."""
    bench_, settings = context.bench, dict(method.settings)
    count = len(bench_.files)
    if method.kind == "search":
        found: Adapted = adapt(
            bench_.model, bench_.stacks[_composition(settings)], context.rows, seed=context.cell.draw, **settings
        )
        return {
            "weights": found.weights, "composition": found.composition, "loss": found.loss,
            "evaluations": len(found.history), "algorithm": found.algorithm, "failed": found.history.failed,
            "top": found.top(),
        }  # fmt: skip
    if method.kind == "single":
        with Population(bench_.model, bench_.stacks["exact"], "exact") as population:
            losses = population.score(np.eye(count), context.rows).losses
        best = int(np.nanargmin(losses))
        weights, loss, evaluations, composition = np.eye(count)[best], float(losses[best]), count, "exact"
    else:
        generator = np.random.default_rng(context.cell.draw)
        equal = settings["weights"] == "average"
        weights = np.full(count, 1 / count) if equal else generator.uniform(-1.5, 1.5, count)
        loss = float(bench_.test(weights, "paper", fewshot.batches(bench_.model.config, context.rows)).losses[0])
        evaluations, composition = 0, "paper"
    order = np.argsort(-np.abs(weights))[:5]
    top = [(bench_.stacks["paper"].names[i], float(weights[i])) for i in order if weights[i]]
    return {
        "weights": weights, "composition": composition, "loss": loss, "evaluations": evaluations, "algorithm": "",
        "failed": 0, "top": top,
    }  # fmt: skip


def _composition(settings: dict) -> str:
    return settings.get("composition") or ("exact" if settings["optimizer"] == "auto" else "paper")


def _tune(context: _Context, tuning: str, spent: _Stopwatch) -> tuple[Scores, float]:
    """Tune on the examples and test; full tuning takes a float32 copy of its own, which is thrown away."""
    model = context.bench.model
    if TUNINGS[tuning].kind == "full":
        model, _ = pretrained.load(
            context.bench.profile, base=context.bench.base_model, dtype=torch.float32, attention="eager"
        )
        spent.restart()
    with tuned(model, context.rows, tuning, seed=context.cell.draw) as history:
        spent.stop()
        return score(model, context.made), history[-1]


class _Stopwatch:
    """Wall and processor seconds, until it is stopped."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0
        self.running = True
        self.restart()

    def restart(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        if self.running:
            self.seconds, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
            self.running = False

    def clear(self) -> None:
        self.running = False


@contextmanager
def _stopwatch():  # noqa: ANN202 - yields a _Stopwatch
    watch = _Stopwatch()
    yield watch
    watch.stop()
