"""What the benchmarks of adapting share: modules on disk, and five examples of a target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from lorahub_edu.data import fewshot, tasks
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.hub import zoo
from lorahub_edu.lora import adapter_files, adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import get_profile

A_SPREAD, B_SPREAD = 0.033, 0.024  # about those of modules trained on the course's tasks
EXAMPLES = 5


@dataclass(frozen=True)
class Examples:
    """Five examples of a target, as texts for the original and as encoded rows for ours."""

    prompts: list[str]
    answers: list[str]
    rows: list[PromptedRow]


def examples(tokenizer: PreTrainedTokenizerBase, target: str, draw: int = 0) -> Examples:
    """A draw of five examples of one of the course's targets."""
    task = tasks.get(target)
    items = tasks.draw(task, draw, EXAMPLES)
    prompts = [tasks.prompt(task.instructions[0], item.input) for item in items]
    answers = [item.output for item in items]
    return Examples(prompts, answers, fewshot.encode(tokenizer, prompts, answers))


def module_folders(profile: str, count: int, given: str, scratch: Path) -> tuple[list[Path], str]:
    """Folders of modules in PEFT's layout, and what they are in words.

    Args:
        profile: names the base model.
        count: how many.
        given: a folder of modules; "" takes the shipped zoo if it is of this base and large enough, and otherwise
            writes random modules, which take as long to compose and to compute as trained ones.
        scratch: where random ones go.

    Returns:
        The folders, in alphabetical order, and their description.
    """
    source = Path(given) if given else zoo.SHIPPED
    names = zoo.names(source)
    if given and len(names) < count:
        raise SystemExit(f"{source} holds {len(names)} modules, fewer than {count}: give --modules {len(names)}.")
    if given or (len(names) >= count and get_profile(profile).base_model != "tiny-random-llama"):
        return [source / name for name in names[:count]], "modules of the zoo"
    return save_random_modules(profile, count, scratch), "random modules"


def save_random_modules(profile: str, count: int, scratch: Path) -> list[Path]:
    """Folders of modules with random A and B, the same ones each time, of the profile's rank on q and v."""
    settings = get_profile(profile)
    model, _ = pretrained.load(settings, dtype=torch.float32, offline=True)
    adapters.inject(model, LoRAConfig(rank=settings.rank, alpha=settings.alpha))
    generator = torch.Generator().manual_seed(0)
    folders = []
    for number in range(count):
        for _, layer in adapters.lora_layers(model):
            with torch.no_grad():
                layer.lora_A["default"].normal_(std=A_SPREAD, generator=generator)
                layer.lora_B["default"].normal_(std=B_SPREAD, generator=generator)
        folders.append(adapter_files.save_adapter(model, scratch / f"module{number:03}"))
    return folders
