"""One trial of the comparison: a target, a draw of five examples, and how one approach does on the test items.

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 4; claims H3 to H16.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from lorahub_edu.data import tasks
from lorahub_edu.data.fewshot import PromptedRow, find_task, rows_for, split
from lorahub_edu.hub import zoo
from lorahub_edu.hub.adapt import Adapted, SearchConfig, adapt
from lorahub_edu.hub.compose import ModuleStack, stack
from lorahub_edu.hub.population import Population
from lorahub_edu.models import pretrained
from lorahub_edu.scoring import Scores, score
from lorahub_studies import mergers
from lorahub_studies.approaches import METHODS, Approach
from lorahub_studies.baselines import TUNINGS, tuned

LEFT_OUT_METHODS = (
    "zero_shot", "in_context", "single", "released_40", "cma_40", "cma_l1_0", "cma_l1_025", "cma_120", "gradient_40",
    "auto",
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """What one trial measures; it can be sent to a worker as it is.

    `target` is a task of `data.tasks`, or "bbh/" and one of `data.bbh`. `draw` is the seed of the five examples, and of
    whatever the method draws. `modules` are what `zoo.load` takes; () is the whole zoo in `folder`. The trial runs in
    bfloat16 ("full" loads its own float32 copy), on at most `test_items`. `base_model` "" is the profile's.
    """

    target: str
    draw: int
    method: str
    modules: tuple[str, ...] = ()
    folder: str = str(zoo.SHIPPED)
    profile: str = "cpu"
    shots: int = 5
    test_items: int = 120
    base_model: str = ""


def plan(targets: Sequence[str] = (), methods: Sequence[str] = (), draws: int = 3, **settings: object) -> list[Trial]:
    """The trials of a sweep, draw after draw and target after target; by default all verdict targets and all methods.

    `settings` are further fields of `Trial`.
    """
    return [
        Trial(target, draw, method, **settings)
        for draw in range(draws)
        for target in targets or tasks.names("target")
        for method in methods or METHODS
    ]


def left_out(draws: int = 5, test_items: int = 60, profile: str = "cpu", folder: str = str(zoo.SHIPPED)) -> list[Trial]:
    """Trials on fresh targets: three in five of the modules' own tasks, each with its own module left out of the zoo.

    What this study decides was written here before its first run:

    - "A is above B" is decided by `adapting_tables.verdict_over_targets` on strict exact match, and H11 on answer-only
      exact match too: H4 "cma_40" over "zero_shot", H5 "cma_40" over "released_40", H11 "cma_40" over "in_context", H12
      "cma_40" over "single", X2 "gradient_40" over "cma_40", X3 "auto" over "cma_120".
    - H20 is shown if the mean over targets of the largest |w| falls in every draw from α = 0 ("cma_l1_0") over 0.05
      ("cma_40") to 0.25 ("cma_l1_025").
    """
    names = zoo.names(folder)
    return [
        Trial(target, draw, method, tuple(name for name in names if name != target), folder, profile, 5, test_items)
        for draw in range(draws)
        for i, target in enumerate(names)
        if i % 5 < 3
        for method in LEFT_OUT_METHODS
    ]


class Bench:
    """A base model and its modules stacked both ways, kept between trials."""

    def __init__(self, profile: str, modules: tuple[str, ...], folder: str, base_model: str = "") -> None:
        self.profile, self.base_model = profile, base_model
        # eager: sequences are short, and tuning on them is a fifth faster than with the fused kernel
        self.model, self.tokenizer = pretrained.load(profile, base=base_model, dtype=torch.bfloat16, attention="eager")
        self.files = zoo.load(modules or None, folder)
        self.merged: dict[str, ModuleStack] = {}
        self.stacks = {how: stack(self.files, composition=how, dtype=torch.float32) for how in ("paper", "exact")}

    def merger(self, kind: str) -> ModuleStack:
        """All modules as one, by a merger's name; made once."""
        if kind not in self.merged:
            file = mergers.merge(self.model, self.files, kind)
            self.merged[kind] = stack([file], composition="exact", dtype=torch.float32)
        return self.merged[kind]

    def composed_scores(self, weights: np.ndarray, composition: str, rows: list) -> Scores:
        """Scores of compositions, (candidates, modules); one at a time, so that every method is judged alike."""
        with Population(self.model, self.stacks[composition], composition) as population:
            return population.score(weights, rows)


@lru_cache(maxsize=1)
def bench(profile: str, modules: tuple[str, ...], folder: str, base_model: str = "") -> Bench:
    """The bench of this process for a zoo; the last one is kept."""
    return Bench(profile, modules, folder, base_model)


def run(trial: Trial) -> dict:
    """Adapt to a trial's examples and test.

    Returns: Target, draw, method; `strict` and `answer_only` exact match (0 to 1), `loss` and `answer_loss` on the test
        items (nats a token), `example_loss`, `evaluations` of candidates (or steps of tuning), `seconds` and
        `cpu_seconds` of adapting (not of testing), `prompt_tokens` a query, `algorithm`, and the largest weights.
    Raises CourseError: unknown target, or modules that don't fit.
    """
    approach = METHODS[trial.method]
    setting = bench(trial.profile, trial.modules, trial.folder, trial.base_model)
    task = find_task(trial.target)
    examples, test_items = split(task, trial.draw, trial.shots, trial.test_items)
    shots = examples if approach.kind == "context" else ()
    rows = rows_for(setting.model, setting.tokenizer, task.instructions[0], examples)
    tested = rows_for(setting.model, setting.tokenizer, task.instructions[0], test_items, shots)
    tested = sorted(tested, key=lambda row: row.tokens)
    adapted, scores = _measure(trial, approach, setting, rows, tested)
    return {
        "target": trial.target,
        "draw": trial.draw,
        "method": trial.method,
        "test_items": len(tested),
        "modules": len(setting.files),
        "evaluations": 0,
        "algorithm": "",
        "prompt_tokens": float(np.mean([len(row.prompt_ids) for row in tested])),
        **adapted,
        "strict": float(scores.strict.mean()),
        "answer_only": float(scores.answer_only.mean()),
        "loss": float(scores.losses[0]),
        "answer_loss": float(scores.answer_losses[0]),
    }


def _measure(
    trial: Trial, approach: Approach, setting: Bench, rows: list[PromptedRow], tested: list[PromptedRow]
) -> tuple[dict, Scores]:
    """What adapting to the rows took and found, and the scores of the result."""
    if approach.kind in ("base", "context"):
        return {"seconds": 0.0, "cpu_seconds": 0.0}, score(setting.model, tested)
    if approach.kind == "tune":
        model = setting.model
        tuning = TUNINGS[trial.method]
        if tuning.kind == "full":  # it changes the weights for good: a copy of its own
            model, _ = pretrained.load(trial.profile, base=trial.base_model, dtype=torch.float32, attention="eager")
        started = _clock()
        with tuned(model, rows, tuning, trial.draw, setting.stacks["exact"]) as history:
            adapted = {"example_loss": history[-1], "evaluations": len(history)} | _since(started)
            return adapted, score(model, tested)
    if approach.kind == "merge":
        return _merged_scores(trial.method, setting, rows, tested)
    started = _clock()
    weights, composition, adapted = _search(trial, approach, setting, rows)
    adapted |= _since(started)
    return adapted, setting.composed_scores(weights[None], composition, tested)


def _merged_scores(method: str, setting: Bench, rows: list, tested: list) -> tuple[dict, Scores]:
    """What a merger gives, as it is or scaled by the examples; its `seconds` are those of scaling."""
    if method == "arrow":
        wrapper = mergers.routed(setting.model, setting.files)
        scores = score(wrapper.base_model.model, tested)
        wrapper.unload()
        return {"seconds": 0.0, "cpu_seconds": 0.0}, scores
    started = _clock()
    kind = method.removesuffix("_tuned")
    with Population(setting.model, setting.merger(kind), "exact") as population:
        adapted, scale = {}, 1.0
        if method != kind:
            started = _clock()
            losses = population.score(np.array(mergers.SCALES)[:, None], rows).losses
            scale = mergers.SCALES[int(np.nanargmin(losses))]
            adapted = {"example_loss": float(np.nanmin(losses)), "evaluations": len(losses), "top": [(kind, scale)]}
        adapted |= _since(started)
        return adapted, population.score(np.array([[scale]]), tested)


def _search(trial: Trial, approach: Approach, setting: Bench, rows: list[PromptedRow]) -> tuple[np.ndarray, str, dict]:
    """The weights that a method settles on, how they compose, and what a row says of the search."""
    if approach.kind == "search":
        result = search(setting, rows, approach, trial.draw)
        return result.weights, result.composition, {
            "example_loss": result.loss, "evaluations": len(result.history), "algorithm": result.algorithm,
            "top": result.top(), "failed": result.history.failed,
        }  # fmt: skip
    count, evaluations, composition = len(setting.files), 0, "paper"
    if approach.kind == "single":
        composition, evaluations = "exact", count
        losses = setting.composed_scores(np.eye(count), composition, rows).losses
        weights, loss = np.eye(count)[np.nanargmin(losses)], np.nanmin(losses)
    else:
        generator = np.random.default_rng(trial.draw)
        equal = trial.method == "average"
        weights = np.full(count, 1 / count) if equal else generator.uniform(-1.5, 1.5, count)
        loss = setting.composed_scores(weights[None], composition, rows).losses[0]
    order = np.argsort(-np.abs(weights))[:5]
    top = [(setting.stacks["paper"].names[i], float(weights[i])) for i in order if weights[i]]
    return weights, composition, {"example_loss": float(loss), "evaluations": evaluations, "top": top, "failed": 0}


def search(setting: Bench, rows: list[PromptedRow], approach: Approach, seed: int) -> Adapted:
    """The result of an approach's search on some rows."""
    config = SearchConfig(seed=seed, **approach.settings).filled()
    return adapt(setting.model, setting.stacks[config.composition], rows, config)


def _clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(started: tuple[float, float]) -> dict[str, float]:
    """Wall and processor seconds since a reading of the clock."""
    seconds, cpu_seconds = (now - then for now, then in zip(_clock(), started, strict=True))
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2)}
