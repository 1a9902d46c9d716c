"""Scoring candidates in other processes: names and weights travel; each process loads model and modules once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
from transformers import PreTrainedModel

from lorahub_edu.data.fewshot import PromptedRow, ScoringBatch
from lorahub_edu.errors import CourseError
from lorahub_edu.hub import zoo
from lorahub_edu.hub.compose import ModuleStack, stack
from lorahub_edu.hub.population import Population
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.scoring import scoring_batches

_TURN = Lock()  # threads of one process share its model, which scores one population at a time


@dataclass(frozen=True)
class Job:
    """What a worker needs to score candidates: names and paths that it loads itself, once."""

    base_model: str
    dtype: str
    module_folders: tuple[str, ...]
    composition: str
    rows: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


def scorer(
    executor: Executor,
    model: PreTrainedModel,
    modules: Sequence[AdapterFile] | ModuleStack,
    rows: Sequence[PromptedRow],
    composition: str,
) -> Callable[[np.ndarray], dict[str, list[float]]]:
    """A function that scores candidates (P, N), a part in each of the executor's workers.

    Raises:
        CourseError: the base is not one of the course's models, or the modules don't lie on disk.
    """
    name = pretrained.name_of(model)
    files = () if isinstance(modules, ModuleStack) else tuple(modules)
    if name is None or not files or not all(Path(file.path).is_dir() for file in files):
        raise CourseError(
            "Workers load everything themselves, so with an executor the base must be one of the course's models and "
            "the modules must be given as read from disk, not as a stack."
        )
    folders = tuple(str(Path(file.path).resolve()) for file in files)
    token_ids = tuple((tuple(row.prompt_ids), tuple(row.answer_ids)) for row in rows)
    job = Job(name, str(model.dtype).removeprefix("torch."), folders, composition, token_ids)
    workers = getattr(executor, "_max_workers", None) or 2

    def score(candidates: np.ndarray) -> dict[str, list[float]]:
        parts = [part for part in np.array_split(candidates, workers) if len(part)]
        answers = list(executor.map(evaluate, [job] * len(parts), parts))
        return {key: [value for answer in answers for value in answer[key]] for key in ("losses", "strict")}

    return score


def evaluate(job: Job, candidates: np.ndarray) -> dict[str, list[float]]:
    """Scores of candidates (P, N) in a worker process, which keeps the model and the modules of its last job."""
    with _TURN:
        population, batches = _worker(job)
        with population:
            return population.losses_and_strict(candidates, batches)


@lru_cache(maxsize=1)
def _worker(job: Job) -> tuple[Population, list[ScoringBatch]]:
    model, _ = pretrained.load(replace(get_profile("cpu"), base_model=job.base_model), dtype=job.dtype)
    stacked = stack(zoo.load(job.module_folders), composition=job.composition)
    rows = [PromptedRow(list(prompt), list(answer)) for prompt, answer in job.rows]
    return Population(model, stacked, job.composition), scoring_batches(model, rows)
