"""Training the zoo: one LoRA module for each small task, saved in half precision with its card."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import lru_cache
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorahub_edu import results
from lorahub_edu.data import fewshot, tasks
from lorahub_edu.data.tasks import Task
from lorahub_edu.errors import CourseError
from lorahub_edu.hub.zoo import CARD_FILE, Card, card, sha256_of
from lorahub_edu.lora import adapter_files, adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import pretrained
from lorahub_edu.scoring import Scores, score
from lorahub_edu.training.loop import TrainingConfig, train
from lorahub_studies.baselines import remove_adapters
from lorahub_studies.jobs import finished

CONFIG = LoRAConfig(rank=8, alpha=16.0, target_modules=("q_proj", "v_proj"), dtype=torch.float32)
TRAINING = TrainingConfig(
    steps=30, learning_rate=5e-3, batch_size=16, micro_batch_size=16, batching="padded", warmup_steps=5,
    schedule="cosine",
)  # fmt: skip
CARD_ITEMS = 100  # held-out items that a card's scores rest on


def training_rows(task: Task, tokenizer: PreTrainedTokenizerBase, data_seed: int = 0) -> list[fewshot.PromptedRow]:
    """A task's training items with its instruction wordings taken in turn, shuffled by the seed."""
    items = list(task.train)
    random.Random(f"{task.name}/{data_seed}").shuffle(items)
    wordings = [task.instructions[i % len(task.instructions)] for i in range(len(items))]
    prompts = [tasks.prompt(wording, item.input) for wording, item in zip(wordings, items, strict=True)]
    return fewshot.encode(tokenizer, prompts, [item.output for item in items])


@dataclass(frozen=True)
class ModuleJob:
    """One module to train; it can be sent to a worker as it is. The folder is one that the worker sees.

    Alpha is twice the rank. `init_seed` draws A: modules of one seed share their starting A, and so, roughly, a basis
    of rank space. `data_seed` orders the items.
    """

    task: str
    folder: str
    profile: str = "cpu"
    init_seed: int = 0
    data_seed: int = 0
    rank: int = 8
    learning_rate: float = TRAINING.learning_rate
    steps: int = TRAINING.steps


def train_module(job: ModuleJob, loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> Card:
    """Train one task's module, save it in half precision with its card in <folder>/<task>.

    `loaded` are the base model in bfloat16, which is left as it was, and its tokenizer.
    Raises CourseError: unknown task, or the folder can't be written.
    """
    name, lora = job.task, replace(CONFIG, rank=job.rank, alpha=2.0 * job.rank)
    config = replace(TRAINING, steps=job.steps, learning_rate=job.learning_rate, seed=job.data_seed)
    task = tasks.get(name)
    started = time.perf_counter()
    model, tokenizer = loaded
    base_name = pretrained.name_of(model)
    sha256 = pretrained.base_sha256(base_name) if base_name else None
    held_out = fewshot.rows_for(model, tokenizer, task.instructions[0], task.test[:CARD_ITEMS])
    held_out.sort(key=lambda row: row.tokens)
    before = score(model, held_out)
    adapters.inject(model, lora, adapter=name, seed=job.init_seed)
    try:
        rows = [row.encoded() for row in training_rows(task, tokenizer, job.data_seed)]
        train(model, rows, config, progress=False)
        for _, layer in adapters.lora_layers(model):  # scored as it will be saved
            layer.lora_A[name].data = layer.lora_A[name].data.half()
            layer.lora_B[name].data = layer.lora_B[name].data.half()
        after = score(model, held_out)
        where = adapter_files.save_adapter(
            model, Path(job.folder) / name, name, base_model=base_name, base_model_sha256=sha256
        )
    finally:
        remove_adapters(model)
    result = Card(
        task=name,
        instruction=task.instructions[0],
        base_model=base_name or model.config._name_or_path,
        base_model_sha256=sha256,
        training_items=len(task.train),
        test_items=len(held_out),
        init_seed=job.init_seed,
        data_seed=job.data_seed,
        rank=lora.rank,
        alpha=lora.alpha,
        steps=config.steps,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        **_measured(before, "before"),
        **_measured(after, "after"),
        seconds=round(time.perf_counter() - started, 1),
        weights_sha256=sha256_of(where / adapter_files.WEIGHTS_FILE),
        device=results.describe_device(),
        versions=results.library_versions(),
        date=date.today().isoformat(),
    )
    results.write_json(where / CARD_FILE, asdict(result))
    return result


def _measured(scores: Scores, when: str) -> dict[str, float]:
    means = {"loss": scores.losses[0], "strict": scores.strict.mean(), "answer_only": scores.answer_only.mean()}
    return {f"{name}_{when}": round(float(value), 4) for name, value in means.items()}


@lru_cache(maxsize=1)
def base(profile: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model of this process, in bfloat16; the last one is kept."""
    # Prompts here are short: eager attention makes a step of 16 rows about twice as fast as the fused kernel.
    return pretrained.load(profile, dtype=torch.bfloat16, attention="eager")


def run(job: ModuleJob) -> dict:
    """Train a job's module with this process's base model: its card, as a row."""
    return asdict(train_module(job, base(job.profile)))


def train_zoo(
    task_names: Sequence[str] | None,
    folder: str | Path,
    *,
    own_init: bool = False,
    profile: str = "cpu",
    executor: Executor | None = None,
    report: Callable[[Card], None] = lambda card: None,
) -> list[Card]:
    """Train a module for each task. You can stop it at any time: finished modules are kept, the same call continues.

    `task_names` None takes every task of kind "module". `own_init` draws every module's A from a seed of its own
    instead of one for all. An `executor` trains in other processes, or on other machines that see the folder. `report`
    gets each finished card.
    Raises CourseError: an unknown task, or the folder holds a module that was started from another A.
    """
    wanted = list(task_names or tasks.names("module"))
    for name in wanted:
        tasks.get(name)  # an unknown task is named before the first minute of training
    seeds = {name: 1 + tasks.names().index(name) if own_init else 0 for name in wanted}
    missing = [name for name in wanted if not (Path(folder) / name / CARD_FILE).is_file()]
    others = [name for name in wanted if name not in missing and card(name, folder).init_seed != seeds[name]]
    if others:
        raise CourseError(
            f"{folder} holds modules that were started from another A ({', '.join(others)}), so that together with new "
            f"ones they would be neither a zoo of one start nor of starts of their own. Choose another folder."
        )
    settings = {"steps": TRAINING.steps, "learning_rate": TRAINING.learning_rate}
    where = str(Path(folder).resolve())
    jobs = [ModuleJob(name, where, profile, init_seed=seeds[name], **settings) for name in missing]
    failed = {}
    for job, _, reason in finished(jobs, run, executor):
        if reason:
            failed[job.task] = reason
        else:
            report(card(job.task, folder))
    if failed:
        raise CourseError(f"{len(failed)} modules could not be trained: {failed}. The same command tries them again.")
    return [card(name, folder) for name in wanted]
