"""Scoring candidates in other processes: names and weights travel, models and modules are loaded there, once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock

import numpy as np

from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.hub import zoo
from lorahub_edu.hub.compose import stack
from lorahub_edu.hub.population import Population
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


def evaluate(job: Job, candidates: np.ndarray) -> dict[str, list[float]]:
    """Score candidates in a worker process, which keeps the model and the modules of its last job.

    Args:
        job: what to load.
        candidates: (P, N).

    Returns:
        "losses" and "strict", P numbers each.
    """
    with _TURN:
        population, made = _worker(job)
        with population:
            scores = population.score(candidates, made)
    return {"losses": scores.losses.tolist(), "strict": scores.strict.mean(1).tolist()}


@lru_cache(maxsize=1)
def _worker(job: Job) -> tuple[Population, list]:
    model, _ = pretrained.load(replace(get_profile("cpu"), base_model=job.base_model), dtype=job.dtype)
    stacked = stack(zoo.load(job.module_folders), composition=job.composition)
    rows = [PromptedRow(list(prompt), list(answer)) for prompt, answer in job.rows]
    return Population(model, stacked, job.composition), scoring_batches(model, rows)
