"""What LoRAHub is compared with: tuning on the same few examples by LoRA, IA3 or in full, with the paper's settings.

Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 4.1: 40 epochs on the five examples, learning rate 2e-4
for LoRA and IA3 and 3e-5 for full fine-tuning. Claim H8.

"soups" is LoRA Soups' learned concatenation (Prabhakar et al. 2024, arXiv 2410.13025): the modules stay as they are,
and each has a weight in each layer, which gradient descent finds. Claim X7 is decided for it as for the other mergers:
by `adapting_tables.verdict_over_targets` on strict exact match against "cma_40". This was written before the first run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import IA3Config, inject_adapter_in_model
from peft.tuners.ia3 import IA3Layer
from torch import nn
from transformers import PreTrainedModel

from lorahub_edu.data.fewshot import PromptedRow, ScoringBatch
from lorahub_edu.hub.compose import ModuleStack
from lorahub_edu.hub.population import Population
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.scoring import label_states, scoring_batches
from lorahub_edu.training.descent import Descent, schedule, seeded
from lorahub_edu.training.losses import output_logits


@dataclass(frozen=True)
class FewShotTuning:
    """How a few examples are tuned on: which parameters, at what rate, for how many passes over all examples."""

    kind: str  # "lora", "ia3", "full" or "soups"
    learning_rate: float
    epochs: int = 40


# "lora_fast" is no baseline of the paper: the rate at which this course's zoo learns, because at the paper's rate forty
# steps hardly move an adapter whose B starts at zero.
TUNINGS = {
    "lora": FewShotTuning("lora", 2e-4),
    "ia3": FewShotTuning("ia3", 2e-4),
    "full": FewShotTuning("full", 3e-5),
    "lora_fast": FewShotTuning("lora", 5e-3),
    "soups": FewShotTuning("soups", 0.1),  # the rate of "gradient_40", which has one weight for all layers
}


def attention_targets(model: PreTrainedModel) -> tuple[str, str]:
    """The names of a model's query and value projections, which LoRAHub's modules adapt."""
    return ("q", "v") if model.config.model_type == "t5" else ("q_proj", "v_proj")


@contextmanager
def tuned(
    model: PreTrainedModel,
    examples: Sequence[PromptedRow],
    tuning: FewShotTuning,
    seed: int = 0,
    modules: ModuleStack | None = None,
) -> Iterator[list[float]]:
    """The model tuned on the examples while the block runs; afterwards it is as before (except "full").

    "full" changes the weights for good, and needs them in float32: bfloat16 loses steps this small to rounding. Every
    step takes all examples. The seed draws A. "soups" weighs the `modules`, stacked for the exact composition.

    Yields: The mean loss of each step, in nats a token.
    Source: Huang et al. 2023, section 4.1; Liu et al. 2022 (IA3), arXiv 2205.05638.
    """
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        if tuning.kind == "lora":
            config = LoRAConfig(rank=8, alpha=16.0, target_modules=attention_targets(model), dtype=torch.float32)
            adapters.inject(model, config, adapter="fewshot", seed=seed)
        elif tuning.kind == "ia3":
            model.requires_grad_(False)
            with seeded(seed, model.device):
                inject_adapter_in_model(IA3Config(**_ia3_targets(model)), model, adapter_name="fewshot")
            for name, parameter in model.named_parameters():  # PEFT makes them in the base's dtype when injecting
                if "ia3_l" in name:
                    parameter.data = parameter.data.float()
                    parameter.requires_grad_(True)
        else:
            model.requires_grad_(tuning.kind == "full")
        with ExitStack() as added:
            if tuning.kind == "soups":
                population = added.enter_context(Population(model, modules, "exact"))
                for layer in population.layers.values():
                    layer.weights = nn.Parameter(torch.full((1, len(modules)), 1 / len(modules)))
            yield _fit(model, examples, tuning)
    finally:
        remove_adapters(model)
        if hasattr(model, "peft_config"):  # PEFT would take the next tuning for a second adapter, and warn
            del model.peft_config
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required[name])


def remove_adapters(model: PreTrainedModel) -> None:
    """Put the base's layers back in place of LoRA and IA3 layers."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, adapters.LoRALinear | IA3Layer):
            model.set_submodule(name, layer.base_layer)


def _ia3_targets(model: PreTrainedModel) -> dict[str, list[str]]:
    """Keys, values and the feed-forward's inner activations, as in the IA3 paper."""
    if model.config.model_type == "t5":
        return {"target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]}
    return {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}


def _fit(model: PreTrainedModel, examples: Sequence[PromptedRow], tuning: FewShotTuning) -> list[float]:
    """The loss of each full-batch step; one step is one epoch, as the examples fit into one batch."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    descent = Descent(parameters, schedule("linear", tuning.learning_rate, 0, tuning.epochs))
    batches = scoring_batches(model, examples)
    total = sum(len(batch.labels) for batch in batches)

    def loss(batch: ScoringBatch) -> torch.Tensor:
        hidden = label_states(model, batch, 1)[0]  # (L, d)
        logits = output_logits(model, hidden).float()  # (L, V)
        return F.cross_entropy(logits, batch.labels.to(logits.device), reduction="sum") / total

    return [descent.step(loss(batch) for batch in batches).loss for _ in range(tuning.epochs)]
