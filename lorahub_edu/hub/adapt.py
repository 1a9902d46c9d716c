"""ADAPT: find the weights of a composition on a handful of examples, without gradients (or with them, to compare).

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 3.3: minimise L + α · Σ|wᵢ| over w in [-1.5, 1.5]ᴺ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from lorahub_edu import results
from lorahub_edu.data.fewshot import PromptedRow, ScoringBatch
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.hub import workers
from lorahub_edu.hub.compose import ModuleStack, compose, stack
from lorahub_edu.hub.history import History, SearchLog, fingerprint, join
from lorahub_edu.hub.population import Population
from lorahub_edu.hub.searches import Search, Space, make_search, needs_gradient
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.models import pretrained
from lorahub_edu.scoring import scoring_batches

L1 = 0.05  # the paper's α, on the mean of |wᵢ| as in the released code
BUDGET = 40  # the paper's largest number of steps
FINALISTS = 5
SUMMARY_FILE = "adapt.json"
# optimizer="auto": the composition that a sweep found best, and what it is searched with.
AUTO = {"optimizer": "greedy", "composition": "exact", "budget": 120}
CHOICES = ("loss", "exact match")


@dataclass(frozen=True)
class SearchConfig:
    """How the weights are searched for.

    Attributes:
        optimizer: "auto", "cma", "random", "greedy", "gradient", any of nevergrad's names ("ngopt", "shiwa", …), or a
            function of (space, budget, seed) that returns a search (`searches`).
        budget: candidates to score; None is the paper's 40, or 120 for "auto". A gradient step counts as one.
        seed: of the search.
        composition: "paper" or "exact"; None is the paper's, or exact for "auto".
        choose: the candidate that is kept: "loss" is the one of the lowest objective; "exact match" is the one that
            answers most examples exactly, and among those has the lowest objective.
        l1: factor of the mean of |wᵢ|.
        original_scale: divide the loss by the number of examples. The released code divides a mean once more, so with
            five examples its L1 term weighs five times as much as in the paper.
        options: for the search, for example `start` or `sigma`.
    """

    optimizer: str | Callable[..., Search] = "auto"
    budget: int | None = None
    seed: int = 0
    composition: str | None = None
    choose: str = "loss"
    l1: float = L1
    original_scale: bool = False
    options: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.choose not in CHOICES:
            raise CourseError(f"Candidates can't be chosen by {self.choose!r}. {near_matches(self.choose, CHOICES)}")

    def filled(self) -> SearchConfig:
        """The same with nothing left open: "auto" by its name, and the defaults of budget and composition."""
        default = AUTO if self.optimizer == "auto" else {"composition": "paper", "budget": BUDGET}
        return replace(
            self,
            optimizer=default.get("optimizer", self.optimizer),
            budget=default["budget"] if self.budget is None else self.budget,
            composition=self.composition or default["composition"],
        )

    def loss_scale(self, examples: int) -> float:
        """What the mean loss of the examples is divided by."""
        return examples if self.original_scale else 1.0

    def objectives(self, losses: Sequence[float], weights: np.ndarray, examples: int) -> np.ndarray:
        """(P,) what a search minimises: loss plus L1 term of candidates (P, N)."""
        return np.asarray(losses) / self.loss_scale(examples) + self.l1 * np.abs(weights).mean(1)


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

    def summary(self) -> dict:
        """The result as json can hold it."""
        return {
            "algorithm": self.algorithm,
            "composition": self.composition,
            "loss": self.loss,
            "evaluations": len(self.history),
            "failed": self.history.failed,
            "weights": {name: float(w) for name, w in zip(self.names, self.weights, strict=True)},
        }


def adapt(
    model: PreTrainedModel,
    modules: Sequence[AdapterFile] | ModuleStack,
    examples: Sequence[PromptedRow],
    config: SearchConfig = SearchConfig(),  # noqa: B008 - it is frozen
    *,
    executor: Executor | None = None,
    final_model: PreTrainedModel | Callable[[], PreTrainedModel] | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
    on_batch: Callable[[History], None] | None = None,
) -> Adapted:
    """Search the weights under which the composed modules fit the examples best.

    Args:
        model: the base model; in bfloat16 the search is about three times as fast and ranks candidates alike.
        examples: encoded examples (`fewshot.encode`), usually five.
        executor: scores parts of each population in other processes. The modules must then lie on disk, and the model
            must be one of the course's. Only weights and losses travel.
        final_model: the same base in float32, or a function that loads it. It scores the best few candidates again, and
            chooses. None takes the search's own losses.
        folder: keeps every scored batch and the result; a search that was killed continues from there.
        on_batch: called with the history after each batch.

    Raises:
        CourseError: no module or example, modules that don't belong together, an unknown optimizer, a budget below the
            search's population, every candidate failed, or the folder holds another search.

    Source: Huang et al. 2023, section 3.3 and 4.1; claims H4, H5, H13, H18.
    """
    if not examples:
        raise CourseError("There are no examples to adapt to: give at least one.")
    config = config.filled()
    stacked = modules if isinstance(modules, ModuleStack) else stack(modules, composition=config.composition)
    space = Space(len(stacked))
    search, algorithm = make_search(config.optimizer, space, config.budget, config.seed, **config.options)
    log = SearchLog(folder, fingerprint(stacked, examples, _log_settings(model, config, len(examples), algorithm)))
    bar = tqdm(total=config.budget, disable=not progress, unit="candidate", dynamic_ncols=True)
    history = None
    with Population(model, stacked, config.composition) as population, bar:
        score = _scorer(population, modules, examples, config.optimizer, executor)
        for history in _histories(search, score, log, config, len(examples)):
            _show(bar, history, stacked.names)
            if on_batch:
                on_batch(history)
        if history is None:
            raise CourseError(f"The search ({algorithm}) ended without a candidate: it must yield at least one.")
        weights, loss = _best(history, population, final_model, examples, config)
    module = compose(stacked, weights, config.composition)
    adapted = Adapted(stacked.names, weights, loss, module, config.composition, algorithm, history)
    if folder is not None:
        results.write_json(Path(folder) / SUMMARY_FILE, adapted.summary())
    return adapted


def _log_settings(model: PreTrainedModel, config: SearchConfig, examples: int, algorithm: str) -> dict[str, object]:
    """What a search's losses depend on, beside modules and examples."""
    return {
        "base model": (pretrained.name_of(model) or type(model).__name__, str(model.dtype)),
        # a function's repr is another one in every process
        "optimizer": config.optimizer if isinstance(config.optimizer, str) else algorithm,
        "composition": config.composition,
        "budget": config.budget,
        "seed": config.seed,
        "l1": config.l1,
        "loss scale": config.loss_scale(examples),
        "options": config.options,
    }


def _histories(
    search: Search, score: Callable[[np.ndarray], dict], log: SearchLog, config: SearchConfig, examples: int
) -> Iterator[History]:
    """The history after each batch that the search tries, scored or replayed."""
    batches: list[dict] = []
    candidates = next(search, None)
    while candidates is not None:
        scores = log.replay(candidates) or log.append(candidates, score(candidates))
        feedback = objectives = config.objectives(scores["losses"], candidates, examples)  # (P,)
        batches.append(scores | {"weights": candidates, "objectives": objectives})
        yield join(batches)
        if "gradients" in scores:
            slopes = np.asarray(scores["gradients"]) / config.loss_scale(examples)  # (P, N)
            feedback = (objectives, slopes + config.l1 * np.sign(candidates) / candidates.shape[1])
        try:
            candidates = search.send(feedback)
        except StopIteration:
            break


def _scorer(
    population: Population,
    modules: Sequence[AdapterFile] | ModuleStack,
    examples: Sequence[PromptedRow],
    optimizer: str | Callable,
    executor: Executor | None,
) -> Callable[[np.ndarray], dict[str, list]]:
    """A function that scores candidates (P, N): here, by backpropagation, or in an executor's workers."""
    batches = scoring_batches(population.model, examples)
    if needs_gradient(optimizer):
        return lambda candidates: _with_gradient(population, candidates, batches)
    if executor is None:
        return lambda candidates: population.losses_and_strict(candidates, batches)
    return workers.scorer(executor, population.model, modules, examples, population.composition)


def _with_gradient(population: Population, candidates: np.ndarray, batches: list[ScoringBatch]) -> dict[str, list]:
    """Losses and their gradients by backpropagation through the composition: one pass forward and one back."""
    W = torch.tensor(candidates, dtype=torch.float32, requires_grad=True)  # (P, N)
    losses, slopes = torch.zeros(len(candidates)), torch.zeros(candidates.shape)
    labels = sum(len(batch.labels) for batch in batches)
    for batch in batches:
        part = population.loss(W, batch).cpu() * (len(batch.labels) / labels)  # (P,)
        slopes += torch.autograd.grad(part.sum(), W)[0]  # of w alone: the base model's weights collect none
        losses += part.detach()
    population.use(None)
    strict = [float("nan")] * len(candidates)  # not computed: a gradient step needs the loss only
    return {"losses": losses.double().tolist(), "strict": strict, "gradients": slopes.double().tolist()}


def _rank(objectives: np.ndarray, strict: np.ndarray, choose: str) -> np.ndarray:
    """Indices of the candidates that did not fail, the best first; earlier ones win ties."""
    finite = np.flatnonzero(~np.isnan(objectives))
    exact = np.nan_to_num(strict[finite]) if choose == "exact match" else np.zeros(len(finite))
    return finite[np.lexsort((objectives[finite], -exact))]


def _distinct(candidates: np.ndarray, count: int) -> np.ndarray:
    """The first few candidates that differ, in order: (<=count, N)."""
    first = np.unique(candidates[: 3 * count], axis=0, return_index=True)[1]
    return candidates[np.sort(first)[:count]]


def _best(
    history: History,
    population: Population,
    final_model: PreTrainedModel | Callable[[], PreTrainedModel] | None,
    examples: Sequence[PromptedRow],
    config: SearchConfig,
) -> tuple[np.ndarray, float]:
    """The weights that are kept and their loss, by the search's own scores or by the final model's."""
    ranking = _rank(history.objectives, history.strict, config.choose)
    if not len(ranking):
        raise CourseError(
            f"All {len(history)} candidates gave a loss that is not finite: are the modules of this base model, "
            f"and finite? lorahub-edu zoo verify tells."
        )
    if final_model is None:
        return history.weights[ranking[0]], float(history.losses[ranking[0]])
    finalists = _distinct(history.weights[ranking], FINALISTS)
    judge = final_model if isinstance(final_model, PreTrainedModel) else final_model()
    if judge is population.model:
        scores = population.score(finalists, examples)
    else:
        with Population(judge, population.modules, population.composition) as exact:
            scores = exact.score(finalists, examples)
    ranking = _rank(config.objectives(scores.losses, finalists, len(examples)), scores.strict.mean(1), config.choose)
    best = int(ranking[0]) if len(ranking) else 0  # the first where all of them fail
    return finalists[best], float(scores.losses[best])


def _show(bar: tqdm, history: History, names: Sequence[str]) -> None:
    bar.update(len(history) - bar.n)
    if history.failed < len(history):
        best = int(np.nanargmin(history.objectives))
        order = np.argsort(-np.abs(history.weights[best]))[:3]
        top = " ".join(f"{names[i]} {history.weights[best][i]:+.2f}" for i in order)
        bar.set_postfix_str(f"best loss {history.losses[best]:.3f}: {top}")
