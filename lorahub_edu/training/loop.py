"""One training loop for LoRA and for full fine-tuning: resumable to the bit, stopped with a word of advice.

Checkpoints are written whole or not at all and read without a pickle, and the newest intact one wins.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from lorahub_edu.data.alpaca import Encoded
from lorahub_edu.data.batching import Batch, make_batches, step_rows
from lorahub_edu.errors import CourseError
from lorahub_edu.files import save
from lorahub_edu.lora import adapters
from lorahub_edu.training.descent import Descent, autocast, gradient_checkpointing, interrupts, schedule, seeded
from lorahub_edu.training.losses import batch_loss, check_batching, mean_loss

LOG_FILE = "log.jsonl"
TENSORS_FILE = "state.safetensors"
META_FILE = "state.json"
KEEP = 2  # checkpoints: the newest, and the one before in case the disk lost the newest


@dataclass(frozen=True)
class TrainingConfig:
    """What fixes a run. Two runs of the same config, rows and starting weights end in the same weights on a CPU.

    `steps` are optimizer steps. `schedule` is one of transformers' ("linear", "cosine", …), `autocast` a dtype's name.
    """

    steps: int
    learning_rate: float = 3e-4
    batch_size: int = 16
    micro_batch_size: int = 4
    batching: str = "packed"
    warmup_steps: int = 0
    schedule: str = "linear"
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    gradient_checkpointing: bool = False
    autocast: str | None = None
    validate_every: int = 0
    checkpoint_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise CourseError(f"{name} must be at least 1, but it is {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise CourseError(f"learning_rate must be above 0, but it is {self.learning_rate}. Try 3e-4.")


@dataclass
class TrainingResult:
    """What a run did: one record a step, and why it ended ("finished" or "interrupted")."""

    history: list[dict] = field(default_factory=list)
    stopped: str = "finished"
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps done, those before a restart included."""
        return self.history[-1]["step"] if self.history else 0

    @property
    def losses(self) -> list[float]:
        """Mean training loss of each step, in nats a labelled token."""
        return [record["loss"] for record in self.history]

    @property
    def validation_losses(self) -> list[tuple[int, float]]:
        """(step, mean validation loss in nats) wherever it was taken."""
        return [(record["step"], record["validation_loss"]) for record in self.history if "validation_loss" in record]


def train(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    config: TrainingConfig,
    *,
    validation: Sequence[Encoded] = (),
    folder: str | Path | None = None,
    progress: bool = True,
    on_step: Callable[[dict], None] | None = None,
) -> TrainingResult:
    """Train every parameter that requires a gradient, in place. An interrupt ends the run after the last whole step.

    `folder` keeps checkpoints and log.jsonl, and a run that was killed continues from there. `on_step` is called with
    each step's record, for example to draw a curve.
    Raises CourseError: nothing is trainable or an adapter is merged; the model's own loss is another one
        (`losses.check_loss`); the folder holds another run; the loss is NaN or infinite (the weights are then those
        before that step); the disk is full.
    Source: Hu et al. 2021, section 4.2; loss over the labels of a whole step, as transformers' Trainer has it.
    """
    run = _Run(model, rows, config, list(validation), Path(folder) if folder else None)
    run.resume()
    started = time.perf_counter()
    was_training = model.training
    model.train()
    try:
        with gradient_checkpointing(model, config.gradient_checkpointing), interrupts() as interrupted:
            bar = tqdm(total=config.steps, initial=run.step, disable=not progress, unit="step", dynamic_ncols=True)
            with bar:
                while run.step < config.steps:
                    if (record := run.one_step(interrupted)) is None:
                        run.result.stopped = "interrupted"
                        break
                    bar.update()
                    bar.set_postfix_str(f"loss {record['loss']:.3f}, {record['tokens_per_second']:,.0f} tokens/s")
                    if on_step:
                        on_step(record)
    finally:
        model.train(was_training)
    run.save()
    run.result.seconds = time.perf_counter() - started
    if run.result.stopped == "interrupted":
        go_on = "Nothing is on disk: call train(..., folder='runs/name') to be able to go on after an interrupt."
        if folder:
            go_on = f"They are saved in {run.folder}: the same call goes on from there."
        tqdm.write(f"Stopped after step {run.step} of {config.steps}; the model holds that step's weights. {go_on}")
    return run.result


class _InterruptedError(Exception):
    """An interrupt came between two micro-batches of a step."""


class _Run:
    """The state of one run between steps."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Encoded],
        config: TrainingConfig,
        validation: list[Encoded],
        folder: Path | None,
    ) -> None:
        self.model, self.rows, self.config, self.validation, self.folder = model, rows, config, validation, folder
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise CourseError("No parameter is trainable: inject an adapter, or call model.requires_grad_(True).")
        if any(layer.merged for _, layer in adapters.lora_layers(model)):
            raise CourseError(
                "An adapter is merged into the base weights, so it can't be trained: call unmerge() first."
            )
        if not rows:
            raise CourseError("There are no rows to train on.")
        self.device = next(iter(self.parameters.values())).device
        self.descent = Descent(
            self.parameters.values(),
            schedule(config.schedule, config.learning_rate, config.warmup_steps, config.steps),
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        )
        self.pad_token_id = model.config.pad_token_id if isinstance(model.config.pad_token_id, int) else 0
        with autocast(self.device, config.autocast):
            check_batching(model, config.batching)
        self.result = TrainingResult()
        self.saved_step = -1

    @property
    def step(self) -> int:
        return self.descent.steps_done

    def fingerprint(self) -> dict[str, str]:
        """What must agree for a run to go on: every setting, the rows, and which parameters are trained."""
        described = {name: repr(value) for name, value in asdict(self.config).items() if name != "checkpoint_every"}
        digest = hashlib.sha256()
        for row in (*self.rows, *self.validation):
            digest.update(repr((row.input_ids, row.labels)).encode())
        trained = [(name, tuple(p.shape)) for name, p in self.parameters.items()]
        trained += [(name, layer.configs) for name, layer in adapters.lora_layers(self.model)]
        parameters = hashlib.sha256(repr(trained).encode()).hexdigest()[:16]
        return described | {"rows": digest.hexdigest()[:16], "parameters": parameters}

    def resume(self) -> None:
        if self.folder is None:
            return
        if (checkpoint := load_latest(self.folder)) is None:
            # The starting weights are kept too: an A that was drawn at random would be another one after a restart.
            self.save()
            self._write_log()
            return
        step, tensors, meta = checkpoint
        now, there = self.fingerprint(), meta["fingerprint"]
        different = [f"{key} ({there.get(key)} there, {now[key]} now)" for key in now if now[key] != there.get(key)]
        if different:
            raise CourseError(
                f"{self.folder} holds another run: {'; '.join(different)}. Use the same settings to go on with it, or "
                f"another folder."
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter.{name}"])
        restore_optimizer(self.descent.optimizer, list(self.parameters), tensors)
        self.descent.steps_done = self.saved_step = step
        self.result = TrainingResult(meta["history"])
        self._write_log()  # drops lines of steps that were done after the checkpoint and lost

    def save(self) -> None:
        if self.folder is None or self.saved_step == self.step:
            return
        tensors = {f"parameter.{name}": p for name, p in self.parameters.items()}
        tensors |= optimizer_tensors(self.descent.optimizer, list(self.parameters))
        meta = {"fingerprint": self.fingerprint(), "history": self.result.history}
        save_checkpoint(self.folder, self.step, tensors, meta)
        self.saved_step = self.step

    def _write_log(self) -> None:
        text = "".join(json.dumps(record) + "\n" for record in self.result.history)
        (self.folder / LOG_FILE).write_text(text, encoding="utf-8")

    def one_step(self, interrupted: threading.Event) -> dict | None:
        """One optimizer step; None when an interrupt came before it was whole (the weights are as before it)."""
        config, started = self.config, time.perf_counter()
        picked = [self.rows[i] for i in step_rows(len(self.rows), config.batch_size, self.step, config.seed)]
        batches = make_batches(picked, config.batching, config.micro_batch_size, self.pad_token_id)
        labels = sum(batch.num_labels for batch in batches)
        if labels == 0:
            raise CourseError(f"Step {self.step + 1} has no labelled token: are the answers cut off by the block size?")
        # Dropout draws from a generator that only the step decides, so a resumed step repeats it exactly.
        with seeded(config.seed * 1_000_003 + self.step, self.device):
            try:
                step = self.descent.step(self._loss(batch, interrupted) / labels for batch in batches)
            except _InterruptedError:
                return None
        seconds, tokens = time.perf_counter() - started, sum(batch.num_tokens for batch in batches)
        speed = {"tokens": tokens, "tokens_per_second": tokens / seconds, "seconds": seconds}
        record = {"step": self.step} | step._asdict() | speed
        due = config.validate_every and (self.step % config.validate_every == 0 or self.step == config.steps)
        if due and self.validation:
            with autocast(self.device, config.autocast):
                batches = make_batches(self.validation, config.batching, config.micro_batch_size, self.pad_token_id)
                record["validation_loss"] = mean_loss(self.model, batches)
        self.result.history.append(record)
        if self.folder is not None:
            with (self.folder / LOG_FILE).open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
            if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                self.save()
        return record

    def _loss(self, batch: Batch, interrupted: threading.Event) -> Tensor:
        if interrupted.is_set():
            raise _InterruptedError
        with autocast(self.device, self.config.autocast):
            return batch_loss(self.model, batch.to(self.device))


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], meta: dict) -> None:
    """Write a checkpoint to the sub-folder step-00000012, and remove all but the last two.

    Raises CourseError: the disk is full or the folder can't be written; earlier checkpoints stay.
    """
    target = folder / f"step-{step:08d}"
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    what = f"the checkpoint of step {step} (earlier ones are intact, and the same command continues from there)"
    with save.replacing(target, what, durable=True) as unfinished:
        unfinished.mkdir()
        save_file(contents, unfinished / TENSORS_FILE)
        (unfinished / META_FILE).write_text(json.dumps({"step": step} | meta), encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
    for old in _steps(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-????????"))


def load_latest(folder: Path) -> tuple[int, dict[str, Tensor], dict] | None:
    """The newest checkpoint that can be read whole: its step, its tensors, and what JSON held of it.

    None when there is none. Leftovers of a killed save are removed.
    """
    save.remove_unfinished(folder / "step")  # of every step
    for path in reversed(_steps(folder)):
        try:
            meta = json.loads((path / META_FILE).read_text(encoding="utf-8"))
            return meta.pop("step"), load_file(path / TENSORS_FILE), meta
        except (OSError, ValueError, KeyError, SafetensorError):
            continue
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """An optimizer's state as flat tensors named after its parameters, for `save`."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{names[index]}.{key}": torch.as_tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Put what `optimizer_tensors` gave back into a fresh optimizer over the same parameters."""
    numbers = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            name, _, entry = key.removeprefix("optimizer.").rpartition(".")
            state.setdefault(numbers[name], {})[entry] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
