"""A recipe for LLaMA-Factory: its rows, dataset_info.json and the YAML that trains the same thing there.

Keys are those of LLaMA-Factory 0.9.5. Its template "empty" hands a row on as it is, so the rows carry this course's
prompt and the base's own start and end tokens, and their tokens and labels are the same as here. Two things differ: the
order in which rows are drawn, and that rows longer than the block are cut there and left out here. What it trains is
saved in PEFT's layout, and `adapter_files.read_adapter` reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from lorahub_edu.data.alpaca import Example, format_prompt
from lorahub_edu.errors import CourseError
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import BaseModel, get_base
from lorahub_edu.results import write_json
from lorahub_edu.runs.finetune import split_rows, training_config
from lorahub_edu.runs.recipes import Recipe, read, twin

SEED = 0  # of the split into rows to train on and rows held back, too
TRAINED_THERE = ("lora", "rslora", "dora", "qlora")


def export(recipe: str | Path, folder: str | Path, *, profile: str | None = None, offline: bool = False) -> Path:
    """Write a recipe for LLaMA-Factory, with a profile its small twin: the YAML for `llamafactory-cli train`.

    Raises CourseError: the recipe is wrong, LLaMA-Factory has no such method, the rows can't be had, or the folder
        can't be written.
    """
    recipe = twin(read(recipe), profile) if profile else read(recipe)
    if recipe.method not in TRAINED_THERE:
        raise CourseError(
            f"{recipe.name} is a recipe for {recipe.method!r}, which LLaMA-Factory does not train: choose a recipe for "
            f"one of {', '.join(TRAINED_THERE)}."
        )
    base, name, folder = get_base(recipe.profile.base_model), recipe.name, Path(folder)
    training, validation = split_rows(recipe.profile, recipe.rows, SEED, offline, progress=False)
    parts = {f"{name}_train": training, f"{name}_validation": validation}
    columns = {"prompt": "instruction", "response": "output"}
    model = str(pretrained.prepare(base.name)) if base.asset else base.repo
    if model is None or base.is_folder:
        raise CourseError(f"{base.name} has no name elsewhere, so LLaMA-Factory can't load it: take cpu.")
    settings = run_settings(recipe, model, folder, list(parts))
    for part, rows in parts.items():
        write_json(folder / f"{part}.json", text_rows(rows, base))
    write_json(folder / "dataset_info.json", {p: {"file_name": f"{p}.json", "columns": columns} for p in parts})
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def run_settings(recipe: Recipe, model: str, folder: Path, parts: Sequence[str]) -> dict[str, object]:
    """What LLaMA-Factory's YAML says for a recipe: `parts` names the rows to train on and those held back.

    Raises CourseError: α is no whole number, which is all that LLaMA-Factory takes.
    """
    profile, config = recipe.profile, training_config(recipe.profile)
    if profile.alpha != int(profile.alpha):
        raise CourseError(f"LLaMA-Factory takes whole numbers for α, and {recipe.name} has {profile.alpha}.")
    targets = profile.target_modules
    return {
        "model_name_or_path": model,
        **({"model_revision": profile.revision} if profile.revision else {}),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": profile.rank,
        "lora_alpha": int(profile.alpha),
        "lora_dropout": profile.dropout,
        "lora_target": "all" if targets == "all-linear" else ",".join(targets),
        **({f"use_{recipe.method}": True} if recipe.method in ("rslora", "dora") else {}),
        **({"quantization_bit": 4} if recipe.method == "qlora" else {}),  # NF4, quantised twice, is the default there
        "dataset_dir": str(folder),
        "dataset": parts[0],
        "eval_dataset": parts[1],
        "template": "empty",
        "cutoff_len": profile.block_size,
        "output_dir": str(folder / "adapter"),
        "max_steps": config.steps,
        "per_device_train_batch_size": profile.micro_batch_size,
        "gradient_accumulation_steps": -(-profile.batch_size // profile.micro_batch_size),
        "per_device_eval_batch_size": profile.micro_batch_size,
        "learning_rate": profile.learning_rate,
        "lr_scheduler_type": profile.schedule,
        "warmup_steps": profile.warmup_steps,
        "weight_decay": profile.weight_decay,
        "max_grad_norm": config.clip_norm,
        "optim": "adamw_torch",
        "disable_gradient_checkpointing": not profile.gradient_checkpointing,
        "bf16": profile.dtype == "bfloat16",
        "fp16": profile.dtype == "float16",
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": config.validate_every,
        "save_steps": config.checkpoint_every,
        "seed": SEED,
        "report_to": "none",
    }


def text_rows(rows: Sequence[Example], base: BaseModel) -> list[dict[str, str]]:
    """Rows as text that needs no template: the prompt with the start token, the answer with the end token."""
    return [{"instruction": base.start + format_prompt(row), "output": row.output + base.end} for row in rows]
