"""ADAPT: find the weights of a composition on a handful of examples, without gradients (or with them, to compare).

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 3.3: minimise L + α · Σ|wᵢ| over w in [-1.5, 1.5]ᴺ.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from lorahub_edu import results
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.errors import CourseError
from lorahub_edu.hub.compose import ModuleStack, compose, stack
from lorahub_edu.hub.population import Population
from lorahub_edu.hub.searches import Search, Space, make_search, needs_gradient
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.models import pretrained
from lorahub_edu.scoring import scoring_batches

L1 = 0.05  # the paper's α, on the mean of |wᵢ| as in the released code
BUDGET = 40  # the paper's largest number of steps
FINALISTS = 5
LOG_FILE = "search.jsonl"
SUMMARY_FILE = "adapt.json"
# optimizer="auto": the composition that a sweep found best, and what it is searched with.
AUTO = {"optimizer": "greedy", "composition": "exact", "budget": 120}


@dataclass(frozen=True)
class SearchConfig:
    """How the weights are searched for.

    Attributes:
        optimizer: "auto", "cma", "random", "greedy", "gradient", any of nevergrad's names ("ngopt", "shiwa", …), or a
            function of (space, budget, seed) that returns a search (`searches`).
        budget: candidates to score; None is the paper's 40, or 120 for "auto". A gradient step counts as one.
        composition: "paper" or "exact"; None is the paper's, or exact for "auto".
        l1: factor of the mean of |wᵢ|.
        original_scale: divide the loss by the number of examples. The released code divides a mean once more, so with
            five examples its L1 term weighs five times as much as in the paper.
        options: for the search, for example `start` or `sigma`.
    """

    optimizer: str | Callable[..., Search] = "auto"
    budget: int | None = None
    seed: int = 0
    composition: str | None = None
    l1: float = L1
    original_scale: bool = False
    options: dict[str, object] = field(default_factory=dict)

    def filled(self) -> SearchConfig:
        """The same with nothing left open: "auto" by its name, and the defaults of budget and composition."""
        paper = {"optimizer": self.optimizer, "composition": "paper", "budget": BUDGET}
        default = AUTO if self.optimizer == "auto" else paper
        budget = default["budget"] if self.budget is None else self.budget
        composition = self.composition or default["composition"]
        return replace(self, optimizer=default["optimizer"], budget=budget, composition=composition)

    def loss_scale(self, examples: int) -> float:
        return examples if self.original_scale else 1.0

    def objectives(self, losses: Sequence[float], weights: np.ndarray, examples: int) -> np.ndarray:
        """(P,) what a search minimises: loss plus L1 term of candidates (P, N)."""
        return np.asarray(losses) / self.loss_scale(examples) + self.l1 * np.abs(weights).mean(1)


@dataclass
class History:
    """All M candidates of a search, in order: `weights` are (M, N), all else (M,).

    `losses` are nats a token on the examples, NaN where a candidate failed. `objectives`, the loss plus the L1 term,
    are what the search was sent. `strict` is the share of examples that greedy decoding would answer exactly. `seconds`
    are counted from the start to when a candidate's batch was done.
    """

    weights: np.ndarray
    losses: np.ndarray
    objectives: np.ndarray
    strict: np.ndarray
    seconds: np.ndarray

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def failed(self) -> int:
        return int(np.isnan(self.losses).sum())

    def best_so_far(self) -> np.ndarray:
        """(M,) the lowest objective among the first 1, 2, … M candidates; inf until one has not failed."""
        return np.minimum.accumulate(np.where(np.isnan(self.objectives), np.inf, self.objectives))


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
        """The modules of the largest |weight| with their weights; a weight of 0 is left out."""
        return _top(self.names, self.weights, count)


def adapt(
    model: PreTrainedModel,
    modules: Sequence[AdapterFile] | ModuleStack,
    examples: Sequence[PromptedRow],
    config: SearchConfig = SearchConfig(),  # noqa: B008 - it is frozen
    *,
    final_model: PreTrainedModel | Callable[[], PreTrainedModel] | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
    on_batch: Callable[[History], None] | None = None,
) -> Adapted:
    """Search the weights under which the composed modules fit the examples best.

    `model` is the base; in bfloat16 the search is about three times as fast and ranks candidates alike. `examples` are
    encoded (`fewshot.encode`), usually five. `final_model`, the same base in float32 or a function that loads it,
    scores the best few candidates again, and chooses; None takes the search's own losses. `folder` keeps every scored
    batch and the result, so a search that was killed continues from there. `on_batch` gets the history after each
    batch.
    Raises CourseError: no module or example, modules that don't belong together, an unknown optimizer, a budget below
        the search's population, every candidate failed, or the folder holds another search.
    Source: Huang et al. 2023, section 3.3 and 4.1; claims H4, H5, H13, H18.
    """
    if not examples:
        raise CourseError("There are no examples to adapt to: give at least one.")
    config = config.filled()
    stacked = modules if isinstance(modules, ModuleStack) else stack(modules, composition=config.composition)
    search, algorithm = make_search(config.optimizer, Space(len(stacked)), config.budget, config.seed, **config.options)
    candidates = next(search, None)
    if candidates is None:
        raise CourseError(f"The search ({algorithm}) ended without a candidate: it must yield at least one.")
    log = SearchLog(folder, _settings(model, stacked, examples, config, algorithm))
    bar = tqdm(total=config.budget, disable=not progress, unit="candidate", dynamic_ncols=True)
    with Population(model, stacked, config.composition) as population, bar:
        score = population.losses_and_slopes if needs_gradient(config.optimizer) else population.losses_and_strict
        score = partial(score, batches=scoring_batches(model, examples))
        for history in _histories(search, candidates, score, log, config, len(examples)):
            _show(bar, history, stacked.names)
            if on_batch:
                on_batch(history)
    weights, loss = _best(history, stacked, final_model, examples, config)
    module = compose(stacked, weights, config.composition)
    if folder is not None:
        summary = {
            "algorithm": algorithm,
            "composition": config.composition,
            "loss": loss,
            "evaluations": len(history),
            "failed": history.failed,
            "weights": dict(zip(stacked.names, weights.tolist(), strict=True)),
        }
        results.write_json(Path(folder) / SUMMARY_FILE, summary)
    return Adapted(stacked.names, weights, loss, module, config.composition, algorithm, history)


def _settings(
    model: PreTrainedModel, stacked: ModuleStack, examples: Sequence[PromptedRow], config: SearchConfig, algorithm: str
) -> dict[str, str]:
    """What a search's candidates and losses depend on: all of it must agree for the search to be continued."""
    flat = hashlib.sha256(stacked.flat.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    rows = hashlib.sha256(repr([(row.prompt_ids, row.answer_ids) for row in examples]).encode()).hexdigest()[:16]
    named = {
        "base model": (pretrained.name_of(model) or type(model).__name__, str(model.dtype)),
        # a function's repr is another one in every process
        "optimizer": config.optimizer if isinstance(config.optimizer, str) else algorithm,
        "composition": config.composition,
        "budget": config.budget,
        "seed": config.seed,
        "l1": config.l1,
        "loss scale": config.loss_scale(len(examples)),
        "options": config.options,
    }
    given = {"modules": f"{', '.join(stacked.names)} ({flat})", "examples": rows}
    return {key: repr(value) for key, value in named.items()} | given


def _histories(
    search: Search, candidates: np.ndarray, score: Callable, log: SearchLog, config: SearchConfig, examples: int
) -> Iterator[History]:
    """The history after each batch that the search tries, from its first candidates (P, N) on."""
    batches: list[dict] = []
    while True:
        scores = log.scores(candidates, score)
        feedback = objectives = config.objectives(scores["losses"], candidates, examples)  # (P,)
        seconds = np.full(len(candidates), scores["seconds"])
        batches.append(scores | {"weights": candidates, "objectives": objectives, "seconds": seconds})
        yield History(*(np.concatenate([np.asarray(b[f.name], float) for b in batches]) for f in fields(History)))
        if "gradients" in scores:
            slopes = np.asarray(scores["gradients"]) / config.loss_scale(examples)  # (P, N)
            feedback = (objectives, slopes + config.l1 * np.sign(candidates) / candidates.shape[1])
        try:
            candidates = search.send(feedback)
        except StopIteration:
            break


class SearchLog:
    """Scored batches on disk. A search is deterministic, so it continues once their losses have been replayed."""

    def __init__(self, folder: str | Path | None, settings: dict[str, str]) -> None:
        self.path = None if folder is None else Path(folder) / LOG_FILE
        self.recorded = [] if self.path is None else self._read(settings)
        self._started = time.perf_counter() - (self.recorded[-1]["seconds"] if self.recorded else 0.0)

    def _read(self, settings: dict[str, str]) -> list[dict]:
        """The recorded batches; a new log begins with the settings."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]  # a kill can leave a part of a line at the end
        if not whole:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
            except OSError as error:
                raise CourseError(f"Can't write {self.path}: {error.strerror}. Choose another folder.") from error
            return []
        try:
            theirs, *recorded = map(json.loads, whole.splitlines())
        except ValueError:
            theirs, recorded = {}, []
        different = [key for key, value in settings.items() if theirs.get(key) != value]
        if different:
            raise CourseError(
                f"{self.path.parent} holds another search (different: {', '.join(different)}). Use the same settings "
                f"to continue it, or another folder."
            )
        os.truncate(self.path, len(whole))
        return recorded

    def scores(self, candidates: np.ndarray, score: Callable[[np.ndarray], dict]) -> dict:
        """The recorded scores of these candidates; where the record ends, new scores, which are recorded."""
        if self.recorded:
            scores = self.recorded.pop(0)
            weights = np.asarray(scores.pop("weights"))
            if weights.shape == candidates.shape and np.allclose(weights, candidates, atol=1e-9):
                return scores
            raise CourseError(
                f"{self.path} was written by another version of the search: delete its folder and start again."
            )
        scores = score(candidates)
        scores["seconds"] = time.perf_counter() - self._started
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"weights": candidates.tolist()} | scores) + "\n")
        return scores


def _rank(objectives: np.ndarray) -> np.ndarray:
    """Indices of the candidates that did not fail, the lowest objective first; earlier ones win ties."""
    order = np.argsort(objectives, kind="stable")  # NaN last
    return order[~np.isnan(objectives[order])]


def _best(
    history: History,
    stacked: ModuleStack,
    final_model: PreTrainedModel | Callable[[], PreTrainedModel] | None,
    examples: Sequence[PromptedRow],
    config: SearchConfig,
) -> tuple[np.ndarray, float]:
    """The weights that are kept and their loss, by the search's own scores or by the final model's."""
    ranking = _rank(history.objectives)
    if not len(ranking):
        raise CourseError(
            f"All {len(history)} candidates gave a loss that is not finite: are the modules of this base model, "
            f"and finite? lorahub-edu zoo verify tells."
        )
    if final_model is None:
        return history.weights[ranking[0]], float(history.losses[ranking[0]])
    distinct = dict.fromkeys(map(tuple, history.weights[ranking]))  # a candidate can have been scored twice
    finalists = np.array(list(distinct)[:FINALISTS])  # (<=5, N)
    judge = final_model if isinstance(final_model, PreTrainedModel) else final_model()
    with Population(judge, stacked, config.composition) as population:
        scores = population.score(finalists, examples)
    ranking = _rank(config.objectives(scores.losses, finalists, len(examples)))
    best = int(ranking[0]) if len(ranking) else 0  # the first where all of them fail
    return finalists[best], float(scores.losses[best])


def _top(names: Sequence[str], weights: np.ndarray, count: int) -> list[tuple[str, float]]:
    order = np.argsort(-np.abs(weights))[:count]
    return [(names[i], float(weights[i])) for i in order if weights[i]]


def _show(bar: tqdm, history: History, names: Sequence[str]) -> None:
    bar.update(len(history) - bar.n)
    if history.failed < len(history):
        best = int(np.nanargmin(history.objectives))
        top = " ".join(f"{name} {weight:+.2f}" for name, weight in _top(names, history.weights[best], 3))
        bar.set_postfix_str(f"best loss {history.losses[best]:.3f}: {top}")
