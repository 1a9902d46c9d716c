"""The main job in one call: a base model, Alpaca rows, LoRA, training, and an adapter that PEFT can load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lorahub_edu import adapter_files, adapters, evaluation, models
from lorahub_edu.data import alpaca
from lorahub_edu.data.batching import PACKED_ATTENTION
from lorahub_edu.errors import CourseError
from lorahub_edu.lora import LoRAConfig
from lorahub_edu.memory.guard import memory_watched
from lorahub_edu.memory.predict import Setting
from lorahub_edu.memory.preparing import injected
from lorahub_edu.profiles import Profile, get_profile
from lorahub_edu.training import TrainingConfig, TrainingResult, train


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning run did: losses in nats a token before and after, the history, where the adapter lies."""

    adapter: Path | None
    loss_before: float
    loss_after: float
    training: TrainingResult

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped from the keyboard; the same call goes on."""
        return self.training.stopped == "interrupted"

    def __str__(self) -> str:
        if self.interrupted:
            return f"Stopped after step {self.training.steps}. The same command goes on from there."
        before, after = (evaluation.perplexity(loss) for loss in (self.loss_before, self.loss_after))
        return (
            f"Validation loss {self.loss_before:.3f} before, {self.loss_after:.3f} after {self.training.steps} steps "
            f"(perplexity {before:.1f} → {after:.1f}). Adapter: {self.adapter}"
        )


def lora_config(profile: Profile, rank: int | None = None) -> LoRAConfig:
    """The profile's LoRA settings; a short base dtype keeps A and B in float32, where small updates don't vanish.

    Args:
        profile: of the run.
        rank: another rank than the profile's; alpha then keeps its ratio to the rank.
    """
    chosen = profile.rank if rank is None else rank
    return LoRAConfig(
        rank=chosen,
        alpha=profile.alpha / profile.rank * chosen,
        dropout=profile.dropout,
        target_modules=profile.target_modules,
        dtype=torch.float32 if profile.dtype != "float32" else None,
    )


def training_config(profile: Profile, **changes: object) -> TrainingConfig:
    """The profile's training settings, with changes by name."""
    config = TrainingConfig(
        steps=profile.train_steps,
        learning_rate=profile.learning_rate,
        batch_size=profile.batch_size,
        micro_batch_size=profile.micro_batch_size,
        warmup_steps=profile.warmup_steps,
        weight_decay=profile.weight_decay,
        gradient_checkpointing=profile.gradient_checkpointing,
        autocast=profile.dtype if profile.dtype != "float32" else None,
        validate_every=max(1, profile.train_steps // 4),
        checkpoint_every=max(1, profile.train_steps // 20),
    )
    return replace(config, **{name: value for name, value in changes.items() if value is not None})


def finetune(
    profile: Profile | str | None = None,
    *,
    data: Path | None = None,
    out: str | Path = "runs/alpaca",
    steps: int | None = None,
    rank: int | None = None,
    learning_rate: float | None = None,
    batching: str = "packed",
    seed: int = 0,
    micro_batch_size: int | None = None,
    block_size: int | None = None,
    gradient_checkpointing: bool | None = None,
    anyway: bool = False,
    offline: bool = False,
    progress: bool = True,
) -> FinetuneResult:
    """Fine-tune a profile's base model with LoRA.

    Args:
        profile: a profile, its name, or None for the environment's.
        data: a file of rows; None is Alpaca by the three-step search.
        out: a folder for checkpoints, log.jsonl and the finished adapter; a run that lies there is continued.
        steps: optimizer steps; None takes the profile's, here and below.
        rank: of A and B.
        learning_rate: at its peak.
        batching: "packed", "grouped" or "padded".
        seed: fixes A, the split, the order of rows and dropout.
        micro_batch_size: rows that go through the model at one time; it changes memory and time, not the result.
        block_size: tokens; longer rows are dropped.
        gradient_checkpointing: recompute activations in the backward pass.
        anyway: run even if the planner says that it does not fit the GPU.
        offline: never open a connection.
        progress: show bars.

    Returns:
        Losses, history and the adapter's folder (None after an interrupt).

    Raises:
        CourseError: whatever is wrong with the model, the rows or the settings; on a GPU, a step that would not fit,
            before the model is loaded; and memory that ran out. Both name the cheapest change that helps.

    Source: claim R9 (Raschka 2023, the hyper-parameters of the `gpu24` profile).
    """
    profile = profile if isinstance(profile, Profile) else get_profile(profile)
    given = {
        "micro_batch_size": micro_batch_size,
        "block_size": block_size,
        "gradient_checkpointing": gradient_checkpointing,
    }
    profile = replace(profile, **{name: value for name, value in given.items() if value is not None})
    config = training_config(profile, steps=steps, learning_rate=learning_rate, batching=batching, seed=seed)
    training, validation = _split_rows(profile, data, seed, offline, progress)
    models.check_device(profile)
    with memory_watched(
        profile.base_model,
        memory_setting(profile, rank),
        profile.device,
        only=("micro-batch", "checkpointing", "block"),
        anyway=anyway,
        override="--anyway",
    ):
        attention = PACKED_ATTENTION if batching == "packed" else "sdpa"
        model, tokenizer = models.load(profile, attention=attention, offline=offline)
        encoded = alpaca.encode_rows(training, tokenizer, profile.block_size, too_long="drop")
        held_back = alpaca.encode_rows(validation, tokenizer, profile.block_size, too_long="drop")
        loss_before = evaluation.loss(model, held_back, profile.micro_batch_size, batching)

        adapters.inject(model, lora_config(profile, rank), seed=seed)
        out = Path(out)
        result = train(model, encoded, config, validation=held_back, folder=out, progress=progress)
        if result.stopped == "interrupted":
            return FinetuneResult(None, loss_before, float("nan"), result)
        loss_after = evaluation.loss(model, held_back, profile.micro_batch_size, batching)
    adapter = adapter_files.save_adapter(
        model,
        out / "adapter",
        base_model=profile.base_model,
        base_model_sha256=models.base_sha256(profile.base_model),
    )
    return FinetuneResult(adapter, loss_before, loss_after, result)


def memory_setting(profile: Profile, rank: int | None = None) -> Setting:
    """What the memory planner must know of a profile's training step.

    Args:
        profile: of the run.
        rank: another rank than the profile's.
    """
    return Setting(
        method=injected(lora_config(profile, rank)),
        micro_batch=profile.micro_batch_size,
        block=profile.block_size,
        accumulation=-(-profile.batch_size // profile.micro_batch_size),
        checkpointing=profile.gradient_checkpointing,
        dtype=profile.dtype,
        device=torch.device(profile.device).type,
    )


def _split_rows(
    profile: Profile, data: Path | None, seed: int, offline: bool, progress: bool
) -> tuple[list[alpaca.Example], list[alpaca.Example]]:
    """Rows to train on and rows that are held back."""
    rows, source = alpaca.load_rows(data or profile.name, offline=offline)
    if progress:
        print(f"{len(rows):,} rows: {source}")
    if len(rows) <= profile.validation_rows:
        raise CourseError(
            f"{len(rows)} rows are too few: profile {profile.name!r} holds back {profile.validation_rows} of them."
        )
    training_rows = min(profile.train_rows, len(rows) - profile.validation_rows)
    return alpaca.split(rows, profile.validation_rows, seed, training_rows)
