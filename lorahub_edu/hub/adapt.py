"""ADAPT: find the weights of a composition on a handful of examples, without gradients (or with them, to compare).

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 3.3: minimise L + α · Σ|wᵢ| over w in [-1.5, 1.5]ᴺ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from lorahub_edu import results
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.hub.compose import ModuleStack, compose, stack
from lorahub_edu.hub.history import History, SearchLog, fingerprint, join
from lorahub_edu.hub.population import Population
from lorahub_edu.hub.searches import Space, make_search, needs_gradient
from lorahub_edu.hub.workers import Job, evaluate
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.models import pretrained
from lorahub_edu.scoring import scoring_batches

L1 = 0.05  # the paper's α, on the mean of |wᵢ| as in the released code
BUDGET = 40  # the paper's largest number of steps
FINALISTS = 5
SUMMARY_FILE = "adapt.json"
# optimizer="auto": the composition that a sweep found best, and what it is searched with.
AUTO = {"optimizer": "greedy", "composition": "exact", "budget": 120, "choose": "loss"}
CHOICES = ("loss", "exact match")


@dataclass(frozen=True)
class Adapted:
    """What an adaptation gave: the chosen weights, the composed module, and how it came about."""

    names: tuple[str, ...]
    weights: np.ndarray
    loss: float
    module: AdapterFile
    composition: str
    algorithm: str
    history: History

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The modules of the largest |weight| with their weights."""
        order = np.argsort(-np.abs(self.weights))[:count]
        return [(self.names[i], float(self.weights[i])) for i in order if self.weights[i]]


def adapt(
    model: PreTrainedModel,
    modules: Sequence[AdapterFile] | ModuleStack,
    examples: Sequence[PromptedRow],
    optimizer: str | Callable = "auto",
    budget: int | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    *,
    composition: str | None = None,
    choose: str | None = None,
    l1: float = L1,
    original_scale: bool = False,
    final_model: PreTrainedModel | Callable[[], PreTrainedModel] | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
    on_batch: Callable[[History], None] | None = None,
    **options: object,
) -> Adapted:
    """Search the weights under which the composed modules fit the examples best.

    Args:
        model: the base model; in bfloat16 the search is about three times as fast and ranks candidates alike.
        modules: at least one module of this base.
        examples: encoded examples (`fewshot.encode`), usually five.
        optimizer: "auto", "cma", "random", "greedy", "gradient", any of nevergrad's names ("ngopt", "shiwa", …), or a
            callable of (space, budget, seed) that returns a search (`searches`).
        budget: candidates to score; None is the paper's 40, or 120 for "auto". A gradient step counts as one.
        seed: of the search.
        executor: scores parts of each population in other processes; the modules must lie on disk then, and the model
            must be one of the course's. Only weights and losses travel.
        composition: "paper" or "exact"; None is the paper's, or exact for "auto".
        choose: which of the scored candidates is kept: "loss", the lowest objective, or "exact match", the one that
            answers most examples exactly and among those the lowest objective; None is "loss" unless "auto" says else.
        l1: factor of the mean of |wᵢ|.
        original_scale: divide the loss by the number of examples, as the released code does (it divides a mean once
            more, so with five examples its L1 term weighs five times as much as in the paper).
        final_model: the same base in float32, or a function that loads it: scores the best few candidates again, and
            chooses. None takes the search's own losses.
        folder: keeps every scored batch; a search that was killed goes on from there. The result is written there too.
        progress: show a bar with the best loss, the top weights and the time left.
        on_batch: called with the history after each batch.
        **options: for the search, for example `start` or `sigma`.

    Returns:
        The weights, the composed module and the history.

    Raises:
        CourseError: no module or example, modules that don't belong together, an unknown optimizer, a budget below the
            search's population, every candidate failed, or the folder holds another search.

    Source: Huang et al. 2023, section 3.3 and 4.1; claims H4, H5, H13, H18.
    """
    if not examples:
        raise CourseError("There are no examples to adapt to: give at least one.")
    auto = optimizer == "auto"
    optimizer = AUTO["optimizer"] if auto else optimizer
    composition = composition or (AUTO["composition"] if auto else "paper")
    budget = budget if budget is not None else (AUTO["budget"] if auto else BUDGET)
    choose = choose or (AUTO["choose"] if auto else "loss")
    if choose not in CHOICES:
        raise CourseError(f"Candidates can't be chosen by {choose!r}. {near_matches(choose, CHOICES)}")
    stacked = modules if isinstance(modules, ModuleStack) else stack(modules, composition=composition)
    search, algorithm = make_search(optimizer, Space(len(stacked)), budget, seed, **options)
    scale = len(examples) if original_scale else 1.0
    named = optimizer if isinstance(optimizer, str) else algorithm  # a function's repr is another one in every process
    base = (pretrained.name_of(model) or type(model).__name__, str(model.dtype))  # losses in bfloat16 are other ones
    settings = (base, named, composition, budget, seed, l1, scale, options)
    log = SearchLog(folder, fingerprint(stacked, examples, *settings))
    score = _scorer(model, modules, stacked, examples, composition, executor, needs_gradient(optimizer))
    started = time.perf_counter() - log.seconds
    tried: list[dict] = []
    bar = tqdm(total=budget, disable=not progress, unit="candidate", dynamic_ncols=True)
    with Population(model, stacked, composition) as population, bar:
        candidates = next(search, None)
        while candidates is not None:
            part = log.replay(candidates)
            if part is None:
                part = score(population, candidates) | {"seconds": time.perf_counter() - started}
                log.append(candidates, part)
            penalty = l1 * np.abs(candidates).mean(1)  # (P,)
            objectives = np.asarray(part["losses"]) / scale + penalty  # (P,)
            tried.append(part | {"weights": candidates, "objectives": objectives})
            history = join(tried)
            _show(bar, history, stacked.names, len(candidates))
            if on_batch:
                on_batch(history)
            feedback = objectives
            if "gradients" in part:
                slope = np.asarray(part["gradients"]) / scale + l1 * np.sign(candidates) / candidates.shape[1]  # (P, N)
                feedback = (objectives, slope)
            try:
                candidates = search.send(feedback)
            except StopIteration:
                break
        if not tried:
            raise CourseError(f"The search ({algorithm}) ended without a candidate: it must yield at least one.")
        best = _rank(history.objectives, history.strict, choose)
        if not len(best):
            raise CourseError(
                f"All {len(history)} candidates gave a loss that is not finite: are the modules of this base model, "
                f"and finite? lorahub-edu zoo verify tells."
            )
        weights, loss = history.weights[best[0]], float(history.losses[best[0]])
        if final_model is not None:
            finalists = _distinct(history.weights[best], FINALISTS)
            weights, loss = _choose(
                finalists, stacked, composition, examples, final_model, population, choose, l1, scale
            )
    found = Adapted(
        stacked.names, weights, loss, compose(stacked, weights, composition), composition, algorithm, history
    )
    if folder is not None:
        results.write_json(Path(folder) / SUMMARY_FILE, summary(found))
    return found


def summary(found: Adapted) -> dict:
    """What an adaptation gave, as json can hold it."""
    return {
        "algorithm": found.algorithm,
        "composition": found.composition,
        "loss": found.loss,
        "evaluations": len(found.history),
        "failed": found.history.failed,
        "weights": {name: float(w) for name, w in zip(found.names, found.weights, strict=True)},
    }


def _scorer(
    model: PreTrainedModel,
    modules: Sequence[AdapterFile] | ModuleStack,
    stacked: ModuleStack,
    examples: Sequence[PromptedRow],
    composition: str,
    executor: Executor | None,
    gradient: bool,
) -> Callable[[Population, np.ndarray], dict]:
    """A function that scores candidates: here, by gradient, or by an executor's workers."""
    made = scoring_batches(model, examples)
    if gradient:
        return lambda population, candidates: _with_gradient(population, candidates, made)
    if executor is None:

        def here(population: Population, candidates: np.ndarray) -> dict:
            scores = population.score(candidates, made)
            return {"losses": scores.losses.tolist(), "strict": scores.strict.mean(1).tolist()}

        return here
    name = pretrained.name_of(model)
    files = () if isinstance(modules, ModuleStack) else tuple(modules)
    if name is None or not files or not all(Path(file.path).is_dir() for file in files):
        raise CourseError(
            "Workers load everything themselves, so with an executor the base must be one of the course's models and "
            "the modules must be given as read from disk, not as a stack."
        )
    rows = tuple((tuple(row.prompt_ids), tuple(row.answer_ids)) for row in examples)
    job = Job(
        name, str(model.dtype).removeprefix("torch."), tuple(str(Path(f.path).resolve()) for f in files),
        composition, rows,
    )  # fmt: skip
    workers = getattr(executor, "_max_workers", None) or 2

    def elsewhere(_population: Population, candidates: np.ndarray) -> dict:
        parts = [part for part in np.array_split(candidates, workers) if len(part)]
        answers = [future.result() for future in [executor.submit(evaluate, job, part) for part in parts]]
        return {key: [value for answer in answers for value in answer[key]] for key in ("losses", "strict")}

    return elsewhere


def _with_gradient(population: Population, candidates: np.ndarray, made: list) -> dict:
    """Losses and their gradients by backpropagation through the composition: one pass forward and one back."""
    W = torch.tensor(candidates, dtype=torch.float32, requires_grad=True)  # (P, N)
    total, slopes = torch.zeros(len(candidates)), torch.zeros(candidates.shape)
    labels = sum(len(batch.labels) for batch in made)
    for batch in made:
        part = population.loss(W, batch).cpu() * (len(batch.labels) / labels)  # (P,)
        slopes += torch.autograd.grad(part.sum(), W)[0]  # of w alone: the base model's weights collect none
        total += part.detach()
    population.use(None)
    strict = [float("nan")] * len(candidates)  # not looked at: a gradient step sees the loss only
    return {"losses": total.double().tolist(), "strict": strict, "gradients": slopes.double().tolist()}


def _rank(objectives: np.ndarray, strict: np.ndarray, choose: str) -> np.ndarray:
    """Places of the candidates that did not fail, the best first; earlier ones win ties."""
    alive = np.flatnonzero(~np.isnan(objectives))
    exact = np.nan_to_num(strict[alive]) if choose == "exact match" else np.zeros(len(alive))
    return alive[np.lexsort((objectives[alive], -exact))]


def _distinct(candidates: np.ndarray, count: int) -> np.ndarray:
    """The first few candidates that differ, in order: (<=count, N)."""
    first = np.unique(candidates[: 3 * count], axis=0, return_index=True)[1]
    return candidates[np.sort(first)[:count]]


def _choose(
    finalists: np.ndarray,
    stacked: ModuleStack,
    composition: str,
    examples: Sequence[PromptedRow],
    final_model: PreTrainedModel | Callable[[], PreTrainedModel],
    population: Population,
    choose: str,
    l1: float,
    scale: float,
) -> tuple[np.ndarray, float]:
    """The best of the finalists by the final model's scores, and its loss; the first where all of them fail."""
    judge = final_model if isinstance(final_model, PreTrainedModel) else final_model()
    if judge is population.model:
        scores = population.score(finalists, examples)
    else:
        with Population(judge, stacked, composition) as exact:
            scores = exact.score(finalists, examples)
    objectives = scores.losses / scale + l1 * np.abs(finalists).mean(1)
    ranking = _rank(objectives, scores.strict.mean(1), choose)
    best = int(ranking[0]) if len(ranking) else 0
    return finalists[best], float(scores.losses[best])


def _show(bar: tqdm, history: History, names: Sequence[str], done: int) -> None:
    bar.update(done)
    if history.failed < len(history):
        best = int(np.nanargmin(history.objectives))
        order = np.argsort(-np.abs(history.weights[best]))[:3]
        top = " ".join(f"{names[i]} {history.weights[best][i]:+.2f}" for i in order)
        bar.set_postfix_str(f"best loss {history.losses[best]:.3f}: {top}")
