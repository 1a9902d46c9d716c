"""A tiny T5 and modules where FLAN-T5-large and LoRAHub's published modules would lie once they were fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hub_modules
import tiny_t5
from transformers import T5ForConditionalGeneration

from lorahub_edu.hub import zoo

COMMIT = "0" * 40


def cached_base(cache: Path, repo: str, model: T5ForConditionalGeneration) -> None:
    """Lay a model where the hub's library keeps those it has fetched."""
    folder = cache / ("models--" + repo.replace("/", "--"))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    model.save_pretrained(folder / "snapshots" / COMMIT)
    tiny_t5.tokenizer().save_pretrained(folder / "snapshots" / COMMIT)


def fetched_modules(repos: Sequence[str], std: float = 0.3) -> list[Path]:
    """Lay random modules of the tiny T5 where the course keeps modules that it fetched under these names."""
    model = tiny_t5.model()
    made = hub_modules.random_modules(model, len(repos), targets=(".q", ".v"), std=std, base=("any", None))
    folder = zoo.own_zoo() / "hub"
    return [hub_modules.write(file, folder, repo.replace("/", "--")) for file, repo in zip(made, repos, strict=True)]
