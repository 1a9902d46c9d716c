"""What a search for weights tried, in memory and on disk."""

from __future__ import annotations

import hashlib
import json
import os
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
    """Everything a search tried, in order.

    Attributes:
        weights: (M, N).
        losses: (M,) cross-entropy on the examples, nats a token; NaN where a candidate failed.
        objectives: (M,) loss plus the L1 term, what the search saw.
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


def join(tried: list[dict]) -> History:
    """The history of batches, each with its weights, losses, objectives, strict and seconds."""

    def joined(key: str) -> np.ndarray:
        return np.concatenate([np.asarray(part[key], dtype=float) for part in tried])

    seconds = np.concatenate([np.full(len(part["losses"]), part["seconds"]) for part in tried])
    return History(joined("weights"), joined("losses"), joined("objectives"), joined("strict"), seconds)


def fingerprint(stacked: ModuleStack, examples: Sequence[PromptedRow], *settings: object) -> dict[str, str]:
    """What must agree for a search to go on."""
    digest = hashlib.sha256(stacked.flat.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    rows = hashlib.sha256(repr([(row.prompt_ids, row.answer_ids) for row in examples]).encode()).hexdigest()[:16]
    keys = ("base model", "optimizer", "composition", "budget", "seed", "l1", "loss scale", "options")
    named = {key: repr(value) for key, value in zip(keys, settings, strict=True)}
    return named | {"modules": f"{', '.join(stacked.names)} ({digest})", "examples": rows}


class SearchLog:
    """Scored batches on disk. A search is deterministic, so replaying their losses brings it back to where it was."""

    def __init__(self, folder: str | Path | None, fingerprint: dict[str, str]) -> None:
        self.path = Path(folder) / LOG_FILE if folder is not None else None
        self.recorded: list[dict] = []
        if self.path is None:
            return
        begun = self.path.is_file() and b"\n" in self.path.read_bytes()
        if begun:  # else a kill came before the first line was whole
            self.recorded = self._read(fingerprint)
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(fingerprint) + "\n", encoding="utf-8")
        except OSError as error:
            raise CourseError(f"Can't write {self.path}: {error.strerror}. Choose another folder.") from error

    @property
    def seconds(self) -> float:
        """How long the recorded part of the search took."""
        return self.recorded[-1]["seconds"] if self.recorded else 0.0

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
                f"to go on with it, or another folder."
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

    def append(self, candidates: np.ndarray, part: dict) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"weights": candidates.tolist()} | part) + "\n")
