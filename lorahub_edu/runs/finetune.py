"""The main job in one call: a base model, Alpaca rows, LoRA, training, and an adapter that PEFT can load."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn
from transformers import PreTrainedModel

from lorahub_edu import evaluation
from lorahub_edu.data import alpaca
from lorahub_edu.data.batching import PACKED_ATTENTION
from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapter_files, adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.memory.setting import FULL, OWN, Setting, memory_watched
from lorahub_edu.methods import files, kinds
from lorahub_edu.methods.attach import attach
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import Profile, get_profile
from lorahub_edu.results import write_json
from lorahub_edu.training.descent import autocast
from lorahub_edu.training.loop import TrainingConfig, TrainingResult, train

RUN_FILE = "run.json"  # what a run was, beside its adapter
NO_CHANGES: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning run did: losses in nats a token before and after, the history, where the adapter lies."""

    adapter: Path | None
    loss_before: float
    loss_after: float
    training: TrainingResult

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped from the keyboard; the same call continues it."""
        return self.training.stopped == "interrupted"

    def __str__(self) -> str:
        if self.interrupted:
            return f"Stopped after step {self.training.steps}. The same command continues from there."
        before, after = (evaluation.perplexity(loss) for loss in (self.loss_before, self.loss_after))
        return (
            f"Validation loss {self.loss_before:.3f} before, {self.loss_after:.3f} after {self.training.steps} steps "
            f"(perplexity {before:.1f} → {after:.1f}). Adapter: {self.adapter}"
        )


def lora_config(profile: Profile, rank_stabilised: bool = False) -> LoRAConfig:
    """The profile's LoRA settings. A and B of a base in a short dtype are float32, where small updates don't vanish."""
    dtype = torch.float32 if profile.dtype != "float32" else None
    return LoRAConfig(**_shared(LoRAConfig, profile) | {"rank_stabilised": rank_stabilised, "dtype": dtype})


def training_config(profile: Profile, **changes: object) -> TrainingConfig:
    """The profile's training settings, with changes by name."""
    steps = profile.train_steps
    own = {
        "steps": steps,
        "autocast": profile.dtype if profile.dtype != "float32" else None,
        "validate_every": max(1, steps // 4),
        "checkpoint_every": max(1, steps // 20),
    }
    return TrainingConfig(**_shared(TrainingConfig, profile) | own | changes)


def _shared(kind: type, profile: Profile) -> dict[str, object]:
    """The fields of a dataclass that a profile has too."""
    return {field.name: getattr(profile, field.name) for field in fields(kind) if hasattr(profile, field.name)}


def finetune(
    profile: Profile | str | None = None,
    changes: Mapping[str, object] = NO_CHANGES,
    *,
    method: str = "lora",
    settings: Mapping[str, object] = NO_CHANGES,
    data: str | Path | None = None,
    out: str | Path = "runs/alpaca",
    seed: int = 0,
    anyway: bool = False,
    offline: bool = False,
    progress: bool = True,
    report_to: str = "",
) -> FinetuneResult:
    """Fine-tune a profile's base model, with LoRA or another method.

    Args:
        changes: fields of the profile that are otherwise, as for `Profile.changed`. Exactly so many `validation_rows`
            are held back; without them, at most a fifth of the rows.
        method: a key of `methods.kinds.METHODS`; "lora" and "rslora" take their settings from the profile.
        data: a file of rows or the name of a set (`alpaca.SETS`); None is the profile's.
        out: a folder for checkpoints, log.jsonl and the finished adapter; a run in this folder is continued.
        seed: fixes A, the split, the order of rows and dropout.
        anyway: run even if the planner says that it does not fit the GPU.
        report_to: "tensorboard" or "trackio" receives each step's figures.
    Raises CourseError: the model, the rows or the settings are wrong, or memory ran out. On a GPU also a step that
        would not fit, before the model is loaded. For memory the message names the cheapest change that helps.
    Source: claim R9 (Raschka 2023, the hyper-parameters of the `gpu24` profile).
    """
    profile = (profile if isinstance(profile, Profile) else get_profile(profile)).changed(**changes)
    kind = kinds.LAYERS if method in OWN else kinds.get_method(method).kind
    settings, rank = dict(settings), changes.get("rank")
    if rank is not None and method not in OWN:
        raise CourseError(
            f"rank={rank} is for {' and '.join(OWN)}; {method} has settings of its own: change them there."
        )
    if kind == kinds.PROMPT and profile.batching == "packed":
        profile = replace(profile, batching="padded")
    config = training_config(profile, seed=seed)
    pretrained.check_device(profile)
    held = changes.get("validation_rows")
    training_rows, validation_rows = split_rows(profile, data, seed, offline, progress, held)
    watched = memory_watched(
        profile.base_model,
        memory_setting(profile, method, settings),
        profile.device,
        only=("micro-batch", "checkpointing", "block"),
        anyway=anyway,
        override="--anyway",
    )
    with _reporting(report_to, Path(out), asdict(profile)) as on_step, watched:
        attention = PACKED_ATTENTION if profile.batching == "packed" else "sdpa"
        # A card that has room for the base in 4 bits may have none for it before: that happens in ordinary memory.
        device = "cpu" if method == "qlora" else None
        model, tokenizer = pretrained.load(
            profile, attention=attention, device=device, offline=offline, revision=profile.revision
        )
        rows = alpaca.encode_rows(training_rows, tokenizer, profile.block_size, too_long="drop")
        validation = alpaca.encode_rows(validation_rows, tokenizer, profile.block_size, too_long="drop")
        before = None if device else _loss(model, validation, profile, config)
        model, save = _put_on(model, profile, method, settings, seed)
        model.to(profile.device)
        before = _loss(model, validation, profile, config) if before is None else before
        result = train(model, rows, config, validation=validation, folder=out, progress=progress, on_step=on_step)
        if result.stopped == "interrupted":
            return FinetuneResult(None, before, float("nan"), result)
        after = _loss(model, validation, profile, config)
    adapter = Path(out) / "adapter"
    save(adapter)
    run = {
        "method": method,
        "rows": Path(data or profile.rows).name,
        "training_rows": len(rows),
        "steps": result.steps,
        "rows_in_a_step": config.batch_size,
        "learning_rate": config.learning_rate,
        "seed": seed,
        "loss_before": before,
        "loss_after": after,
    }
    write_json(Path(out) / RUN_FILE, run)
    return FinetuneResult(adapter, before, after, result)


def memory_setting(profile: Profile, method: str = "lora", settings: Mapping[str, object] = NO_CHANGES) -> Setting:
    """What the memory planner must know of a profile's training step."""
    return Setting(
        method=method,
        lora=lora_config(profile, method == "rslora"),
        options=dict(settings),
        micro_batch=profile.micro_batch_size,
        block=profile.block_size,
        accumulation=-(-profile.batch_size // profile.micro_batch_size),
        checkpointing=profile.gradient_checkpointing,
        dtype=profile.dtype,
        trained_dtype=profile.dtype if method == FULL else "float32",
        quantisation="nf4-dq" if method == "qlora" else "none",
        device=torch.device(profile.device).type,
    )


@contextmanager
def _reporting(to: str, folder: Path, settings: dict[str, object]) -> Iterator[Callable[[dict], None] | None]:
    """What `train` calls with each step's record, for TensorBoard or Trackio to draw; None where nothing is reported.

    TensorBoard's files go into the run's folder, and Trackio names the run after it and keeps its settings.
    """
    if not to:
        yield None
        return
    try:
        if to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter
        else:
            import trackio
    except ImportError as error:
        raise CourseError(f"--report-to {to} needs a library that is not here: pip install {to}") from error
    if to == "tensorboard":
        with SummaryWriter(folder / "tensorboard") as writer:
            yield lambda record: [
                writer.add_scalar(name, value, record["step"]) for name, value in record.items() if name != "step"
            ]
        return
    trackio.init(project="lorahub-edu", name=folder.name, config=settings)
    try:
        yield lambda record: trackio.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])
    finally:
        trackio.finish()


def _put_on(
    model: PreTrainedModel, profile: Profile, method: str, settings: dict, seed: int
) -> tuple[nn.Module, Callable[[Path], Path]]:
    """The model with its method, and what saves it: the course's own LoRA, or one of PEFT's methods."""
    if method in OWN:
        adapters.inject(model, lora_config(profile, method == "rslora"), seed=seed)
        name = profile.base_model
        return model, lambda folder: adapter_files.save_adapter(
            model, folder, base_model=name, base_model_sha256=pretrained.base_sha256(name)
        )
    settings |= {"keep_base": False} if "keep_base" in kinds.get_method(method).settings else {}
    dtype = torch.float32 if profile.dtype != "float32" else None  # under autocast that always works
    attached = attach(model, method, seed=seed, dtype=dtype, **settings)
    return attached.model, lambda folder: files.save(attached, folder)


def _loss(model: nn.Module, rows: list[alpaca.Encoded], profile: Profile, config: TrainingConfig) -> float:
    with autocast(torch.device(profile.device), config.autocast):
        return evaluation.loss(model, rows, profile.micro_batch_size, config.batching)


def split_rows(
    profile: Profile,
    data: str | Path | None,
    seed: int,
    offline: bool,
    progress: bool,
    validation_rows: int | None = None,
) -> tuple[list[alpaca.Example], list[alpaca.Example]]:
    """Rows to train on and rows that are held back; `data` is as for `finetune`.

    Held back are as many as the profile says, but at most a fifth of the rows, or exactly `validation_rows`.
    """
    rows, source = alpaca.load_rows(data or profile.rows, offline=offline)
    if progress:
        print(f"{len(rows):,} rows: {source}")
    held = validation_rows
    if held is None:
        held = min(profile.validation_rows, max(1, len(rows) // 5))
        if held < profile.validation_rows and progress:
            print(f"{held:,} of them are held back for validation, not {profile.validation_rows:,}: they are too few.")
    if not 1 <= held < len(rows):
        raise CourseError(
            f"{held:,} rows can't be held back of {len(rows):,}: at least 1 is needed, and 1 to train on. Give more "
            f"rows or another --validation."
        )
    return alpaca.split(rows, held, seed, min(profile.train_rows, len(rows) - held))
