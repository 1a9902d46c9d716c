"""Any adapter through the course's instruments: what it is, what it does, what it did to the weights, what it cost.

Every judgement stands beside its control: the base model, the merged model, and the same update made smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from lorahub_edu import evaluation
from lorahub_edu.data import tasks
from lorahub_edu.data.alpaca import Encoded
from lorahub_edu.data.fewshot import rows_for
from lorahub_edu.forgetting import texts
from lorahub_edu.forgetting.texts import Texts
from lorahub_edu.lora import adapter_files, adapters
from lorahub_edu.lora.adapter_files import AdapterFile
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.results import Table
from lorahub_edu.scoring import Scores, score
from lorahub_edu.spectra import updates
from lorahub_edu.spectra.bases import BaseSpectra
from lorahub_edu.spectra.intruders import IntruderCounts, count
from lorahub_edu.spectra.updates import base_of, base_weights

SHRUNK = 0.7  # the control's factor on the whole update
EPSILONS = (0.5, 0.6, 0.8)


@dataclass(frozen=True)
class AdapterReport:
    """What was measured of one adapter; shows itself as one page.

    `scores` on the task's test items and `text`, the mean loss on `plain` text in nats a token, are by state: "base",
    "adapter", "shrunk". `base_parameters` is a number, `size` is in bytes (0 if the adapter is in memory only),
    `merge_error` the largest difference of a merged logit by the logits' range.
    """

    file: AdapterFile
    base_model: str
    base_parameters: int
    size: int
    merge_error: float
    spectrum: IntruderCounts
    task: str
    scores: dict[str, Scores]
    text: dict[str, float]
    plain: Texts

    @property
    def parameters(self) -> int:
        return sum(A.numel() + B.numel() for A, B in self.file.weights.values())

    @property
    def forgetting(self) -> float:
        """Rise of the loss on plain text, nats a token."""
        return self.text["adapter"] - self.text["base"]

    def tables(self) -> list[Table]:
        """The page's parts: what the adapter is, what it does, and what it did to the weights."""
        return [self._identity(), self._behaviour(), self._traces()]

    def _repr_markdown_(self) -> str:
        return "\n\n".join(table._repr_markdown_() for table in self.tables())

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))

    __repr__ = __str__

    def _identity(self) -> Table:
        configs = self.file.configs.values()
        ranks = ", ".join(map(str, sorted({config.rank for config in configs})))
        scalings = ", ".join(f"{scaling:g}" for scaling in sorted({round(config.scaling, 4) for config in configs}))
        projections = ", ".join(sorted({name.rpartition(".")[2] for name in self.file.weights}))
        lines = [
            ("base model", self.base_model),
            ("matrices", f"{len(self.file.weights)}: {projections}"),
            ("rank, scaling", f"{ranks}, {scalings}"),
            ("parameters", f"{self.parameters:,} ({self.parameters / self.base_parameters:.2%} of the base)"),
            ("merged against apart", f"logits differ by {self.merge_error:.1e} of their range"),
        ]
        if self.size:
            lines.insert(4, ("on disk", f"{self.size / 1e6:.1f} MB"))
        return Table(("the adapter", self.file.path.name), tuple(lines))

    def _behaviour(self) -> Table:
        scores, lines = self.scores.values(), []
        if scores:
            lines = [
                (f"{self.task}: strict exact match", *(f"{found.strict.mean():.0%}" for found in scores)),
                (f"{self.task}: answer-only exact match", *(f"{found.answer_only.mean():.0%}" for found in scores)),
                (f"{self.task}: loss, nats a token", *(f"{found.losses[0]:.3f}" for found in scores)),
            ]
        lines.append(("plain text: loss, nats a token", *(f"{loss:.3f}" for loss in self.text.values())))
        count, tokens = self.plain.sequences.shape
        caption = (
            f"Plain text: {count} sequences of {tokens} tokens, {self.plain.label}. The last column is the control: "
            f"the same update times {SHRUNK}."
        )
        return Table(("what it does", "base", "adapter", f"update × {SHRUNK}"), tuple(lines), caption)

    def _traces(self) -> Table:
        rows = self.spectrum.rows
        lines = [
            (f"intruders at ε = {epsilon}", f"{found} of {self.spectrum.k * len(rows)} vectors")
            for epsilon, found in zip(self.spectrum.epsilons, self.spectrum.intruders, strict=True)
        ]
        for label, values in (
            ("σ₁(ΔW) / σ₁₀(W₀)", [row.spike_ratio for row in rows]),
            ("‖ΔW‖ / ‖W₀‖", [row.relative_size for row in rows]),
            ("effective rank of ΔW", [row.effective_rank for row in rows]),
        ):
            lines.append((label, f"{np.median(values):.2g} ({min(values):.2g} to {max(values):.2g})"))
        lines.append(("forgetting", f"{self.forgetting:+.3f} nats a token of plain text"))
        return Table(("what it did to the weights", "all matrices, or the median with its range"), tuple(lines))


@torch.no_grad()
def examine(
    adapter: str | Path | AdapterFile,
    *,
    task: str = "",
    test_items: int = 60,
    sequences: int = 64,
    profile: str | None = None,
    base_model: str = "",
) -> AdapterReport:
    """Examine an adapter, from a folder in PEFT's layout or in memory, with all of the course's measures.

    `task`, one of `data.tasks`, is scored before and after on at most `test_items`; "" scores none. The profile tiny
    takes the shipped texts as `sequences`. `base_model` is a name, a name on the hub or a folder; "" takes the
    adapter's.
    Raises CourseError: unknown task; the adapter can't be read, or belongs to another base.
    """
    asked = tasks.get(task) if task else None
    file = adapter if isinstance(adapter, AdapterFile) else adapter_files.read_adapter(adapter)
    name = base_model or base_of(file, profile)
    spectrum = count(updates.iter_updates(file, name), BaseSpectra(), epsilons=EPSILONS)
    model, tokenizer = pretrained.load(profile, base=name, dtype=torch.float32)
    total = adapters.count_parameters(model).total
    adapter_files.put_adapter(model, file, "adapter", base_model_sha256=pretrained.base_sha256(name))
    smaller = {name: replace(config, alpha=config.alpha * SHRUNK) for name, config in file.configs.items()}
    adapter_files.put_adapter(model, replace(file, configs=smaller), "shrunk")
    plain = texts.load(tokenizer, sequences=sequences, fetch=get_profile(profile).name != "tiny")
    rows = rows_for(model, tokenizer, asked.instructions[0], asked.test[:test_items]) if asked else []
    scores, losses = {}, {}
    for state, active in {"base": None, "adapter": "adapter", "shrunk": "shrunk"}.items():
        adapters.set_adapter(model, active)
        losses[state] = text_loss(model, plain.sequences)
        if rows:
            scores[state] = score(model, sorted(rows, key=lambda row: row.tokens))
    return AdapterReport(
        file=file,
        base_model=name,
        base_parameters=total,
        size=sum(path.stat().st_size for path in file.path.glob("*") if path.is_file()) if file.path.is_dir() else 0,
        merge_error=_merge_error(model, plain.sequences[:2]),
        spectrum=spectrum,
        task=task,
        scores=scores,
        text=losses,
        plain=plain,
    )


def intruder_counter(model: PreTrainedModel) -> Callable[[AdapterFile], IntruderCounts]:
    """Counts the intruder dimensions at ε = 0.5 of adapters of one base model, whose spectra stay at hand."""
    base, spectra = base_weights(model), BaseSpectra()
    return lambda file: count(updates.iter_updates(file, base), spectra)


def text_loss(model: PreTrainedModel, sequences: torch.Tensor) -> float:
    """Mean loss on sequences of tokens (S, T), in nats a token; its rise is what an adapter made the model forget."""
    rows = [Encoded(ids, ids) for ids in map(tuple, sequences.tolist())]
    return evaluation.loss(model, rows, micro_batch_size=8)


def _merge_error(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Merge, compare logits, unmerge; leaves the adapter active."""
    adapters.set_adapter(model, "adapter")
    ids = ids.to(model.device)
    apart = model(ids, use_cache=False).logits
    adapters.merge(model, "adapter")
    merged = model(ids, use_cache=False).logits
    adapters.unmerge(model)
    return float((apart - merged).abs().max() / (apart.max() - apart.min()))
