"""What a search for weights tried, in memory and on disk."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.errors import CourseError
from lorahub_edu.hub.compose import ModuleStack

LOG_FILE = "search.jsonl"


@dataclass
class History:
    """All M candidates of a search, in order.

    Attributes:
        weights: (M, N).
        losses: (M,) cross-entropy on the examples, nats a token; NaN where a candidate failed.
        objectives: (M,) loss plus the L1 term: what the search was sent.
        strict: (M,) share of the examples that greedy decoding would answer exactly, 0 to 1.
        seconds: (M,) since the start, when each candidate's batch was done.
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
        """Candidates whose loss was not finite."""
        return int(np.isnan(self.losses).sum())

    def best_so_far(self) -> np.ndarray:
        """(M,) the lowest objective among the first 1, 2, … M candidates; inf until one has not failed."""
        return np.minimum.accumulate(np.where(np.isnan(self.objectives), np.inf, self.objectives))


def join(batches: list[dict]) -> History:
    """The history of batches, each with its weights, losses, objectives, strict and seconds."""

    def joined(key: str) -> np.ndarray:
        return np.concatenate([np.asarray(batch[key], dtype=float) for batch in batches])

    seconds = np.concatenate([np.full(len(batch["losses"]), batch["seconds"]) for batch in batches])
    return History(joined("weights"), joined("losses"), joined("objectives"), joined("strict"), seconds)


def fingerprint(stacked: ModuleStack, examples: Sequence[PromptedRow], settings: dict[str, object]) -> dict[str, str]:
    """What must agree for a search to be continued."""
    digest = hashlib.sha256(stacked.flat.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    rows = hashlib.sha256(repr([(row.prompt_ids, row.answer_ids) for row in examples]).encode()).hexdigest()[:16]
    named = {key: repr(value) for key, value in settings.items()}
    return named | {"modules": f"{', '.join(stacked.names)} ({digest})", "examples": rows}


class SearchLog:
    """Scored batches on disk. A search is deterministic, so it continues once their losses have been replayed."""

    def __init__(self, folder: str | Path | None, fingerprint: dict[str, str]) -> None:
        self.path = Path(folder) / LOG_FILE if folder is not None else None
        self.recorded: list[dict] = []
        if self.path is not None:
            if self.path.is_file() and b"\n" in self.path.read_bytes():
                self.recorded = self._read(fingerprint)
            else:  # nothing yet, or a kill came before the first line was whole
                self._begin(fingerprint)
        self._started = time.perf_counter() - (self.recorded[-1]["seconds"] if self.recorded else 0.0)

    def _begin(self, fingerprint: dict[str, str]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(fingerprint) + "\n", encoding="utf-8")
        except OSError as error:
            raise CourseError(f"Can't write {self.path}: {error.strerror}. Choose another folder.") from error

    def _read(self, fingerprint: dict[str, str]) -> list[dict]:
        whole, size = [], 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except ValueError:
                break  # a kill in the middle of a line: what stands before it is whole
            if not line.endswith(b"\n"):
                break
            whole.append(entry)
            size += len(line)
        theirs = whole[0] if whole else {}
        different = [key for key, value in fingerprint.items() if theirs.get(key) != value]
        if different:
            raise CourseError(
                f"{self.path.parent} holds another search (different: {', '.join(different)}). Use the same settings "
                f"to continue it, or another folder."
            )
        os.truncate(self.path, size)
        return whole[1:]

    def replay(self, candidates: np.ndarray) -> dict | None:
        """The recorded scores of these candidates, or None where the record ends."""
        if not self.recorded:
            return None
        entry = self.recorded.pop(0)
        recorded = np.asarray(entry.pop("weights"))
        if recorded.shape != candidates.shape or not np.allclose(recorded, candidates, atol=1e-9):
            raise CourseError(
                f"{self.path} was written by another version of the search: delete its folder and start again."
            )
        return entry

    def append(self, candidates: np.ndarray, scores: dict) -> dict:
        """The scores with the seconds since the start, written at the end of the log."""
        scores = scores | {"seconds": time.perf_counter() - self._started}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"weights": candidates.tolist()} | scores) + "\n")
        return scores
