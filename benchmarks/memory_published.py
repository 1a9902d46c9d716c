"""Published figures of memory beside the planner's, with what explains each difference; no run, only predictions.

    python benchmarks/memory_published.py

Sources: litgpt's resource tables (tutorials/resource-tables.md: A100, bf16-true, Alpaca's longest row of 1,304 tokens,
LoRA with r = 8 on query and value, torch.cuda.max_memory_allocated); the course's sources for claims R9, R10, R11, R15
and H17; lit-llama's scripts, which the source of R9 to R15 ran.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.memory.plan import allowance
from lorahub_edu.memory.predict import Prediction, predict
from lorahub_edu.memory.setting import Setting
from lorahub_edu.memory.shapes import read_config
from lorahub_edu.memory.tracker import WEIGHTS

LONGEST = 1304  # tokens of Alpaca's longest row under LLaMA's tokenizer
LITGPT = Setting(lora=LoRAConfig(dropout=0.05), micro_batch=1, block=LONGEST, trained_dtype="bfloat16", loss="library")
SOURCE = replace(LITGPT, micro_batch=4, block=512)
GENERATION = Setting(method="none", task="generation", micro_batch=1, block=100)
T5 = LoRAConfig(rank=16, target_modules=("q", "v"))

LAYERS_OF_ITS_OWN = (
    "litgpt's layers are its own and keep more for the backward pass: by its two figures {theirs:.0f} KB a token and "
    "layer, by this count {ours:.0f}. What is left of its figure at zero tokens, {rest:.2f} GB, are the weights "
    "({weights:.2f} GB)."
)
OLD_KERNEL = (
    "bitsandbytes kept every linear layer's input for the backward pass then ((A, B) in MatMul4Bit), {inputs:.2f} GB "
    "here, and keeps none now; the rest are litgpt's own layers, as without quantisation."
)
FIT = "Weights, cache and a few activations: nothing else is there."


@dataclass(frozen=True)
class Figure:
    """A published figure in GB, the setting that comes nearest, and why the two differ."""

    name: str
    published_gb: float
    model: str
    setting: Setting
    why: str
    source: str = "litgpt"
    more: dict = field(default_factory=dict)


FIGURES = (
    Figure("LoRA 7B, 1 row", 21.30, "llama-7b", LITGPT, LAYERS_OF_ITS_OWN),
    Figure("LoRA 7B, 2 rows", 29.07, "llama-7b", replace(LITGPT, micro_batch=2), LAYERS_OF_ITS_OWN),
    Figure("LoRA 13B, 1 row", 38.12, "llama-13b", LITGPT, "litgpt's own layers, as for 7B."),
    Figure("QLoRA 7B, nf4", 14.14, "llama-7b", replace(LITGPT, quantisation="nf4"), OLD_KERNEL),
    Figure("QLoRA 7B, nf4-dq", 13.84, "llama-7b", replace(LITGPT, quantisation="nf4-dq"), OLD_KERNEL),
    Figure("QLoRA 13B, nf4-dq", 22.55, "llama-13b", replace(LITGPT, quantisation="nf4-dq"), OLD_KERNEL),
    Figure(
        "LLaMA-Adapter 7B, 1 row", 19.98, "llama-7b", replace(LITGPT, method="llama_adapter"),
        "litgpt's own layers; without the update of query and value they keep less than with LoRA.",
    ),
    Figure("inference 7B", 13.52, "llama-7b", GENERATION, FIT),
    Figure("inference 13B", 26.21, "llama-13b", GENERATION, FIT),
    Figure("inference 7B, nf4", 4.57, "llama-7b", replace(GENERATION, quantisation="nf4"), FIT),
    Figure("inference 7B, nf4-dq", 4.26, "llama-7b", replace(GENERATION, quantisation="nf4-dq"), FIT),
    Figure(
        "R9: LoRA 7B, 4 x 512", 21, "llama-7b", SOURCE,
        "Rows are padded to the longest of four, and few of Alpaca's reach 512 tokens; a peak of 21 GB is one of four "
        "rows of {tokens:.0f} tokens. Where four long rows do meet, the step takes the figure of this count.",
        "source",
    ),
    Figure(
        "R10: LLaMA-Adapter 7B, 4 x 512", 22, "llama-7b", replace(SOURCE, method="llama_adapter"),
        "As for LoRA; which rows met decides, so a difference of 1 GB between the two says nothing.", "source",
    ),
    Figure(
        "R11: full 7B, two GPUs of 30 GB", 60, "llama-7b",
        replace(SOURCE, method="full", micro_batch=1, checkpointing=True),
        "Weights, gradients and AdamW's two moments in bfloat16 are {states:.1f} GB, spread over the GPUs; torch's "
        "AdamW takes a fifth copy while it updates all parameters in one call, and of a shard where they are spread.",
        "source",
    ),
    Figure(
        "R11: full 7B, four GPUs of 22 GB", 88, "llama-7b",
        replace(SOURCE, method="full", checkpointing=True),
        "A quarter of those {states:.1f} GB each, and on every GPU its own activations, logits and the one layer that "
        "is gathered at a time.",
        "source",
    ),
    Figure(
        "R15: merged inference 7B", 13.56, "llama-7b", GENERATION,
        "The script that gave this figure (LLaMA-Adapter, nothing merged) loads the weights in bfloat16.", "source",
    ),
    Figure(
        "R15: unmerged inference 7B", 27.65, "llama-7b",
        replace(GENERATION, dtype="float32", method="lora"),
        "The LoRA script's default is float32: twice the bytes. A and B are {adapter_mb:.0f} MB of it.", "source",
    ),
    Figure(
        "H17: LoRAHub, FLAN-T5-large", 5, "flan-t5-large",
        Setting(lora=T5, task="scoring", micro_batch=5, block=512, dtype="float32", loss="library"),
        "Weights in float32 and one forward pass of five examples. Not in this count: twenty modules of "
        "{module_mb:.0f} MB each, and what the driver takes, which its own display adds.",
        "source",
    ),
    Figure(
        "H17: full, FLAN-T5-large", 40, "flan-t5-large",
        Setting(method="full", micro_batch=5, block=512, dtype="float32", loss="library"),
        "16 bytes a parameter are {states:.1f} GB; the rest are activations, which depend on rows and lengths that the "
        "source does not give.",
        "source",
    ),
)  # fmt: skip


def predicted(figure: Figure) -> Prediction:
    """The planner's count for a figure's setting."""
    return predict(read_config(figure.model), figure.setting)


def compare() -> list[dict]:
    """Every published figure beside the planner's: tensors and workspaces in GB, the difference, and why."""
    counts = {figure.name: predicted(figure) for figure in FIGURES}
    rows = []
    for figure in FIGURES:
        found = counts[figure.name]
        beyond = allowance(read_config(figure.model), figure.setting, found).workspace
        ours = (found.peak + beyond) / 1e9
        rows.append(
            {
                "name": figure.name,
                "source": figure.source,
                "published_gb": figure.published_gb,
                "ours_gb": round(ours, 2),
                "difference_percent": round(100 * (ours / figure.published_gb - 1), 1),
                "parts_gb": {part: round(size / 1e9, 2) for part, size in found.parts.items()},
                "why": figure.why.format(**terms(figure, counts)),
            }
        )
    return rows


def terms(figure: Figure, counts: dict[str, Prediction]) -> dict[str, float]:
    """The numbers in the explanations, each worked out from counts and published figures."""
    found, config = counts[figure.name], read_config(figure.model)
    one, two = (next(f for f in FIGURES if f.name == f"LoRA 7B, {rows}") for rows in ("1 row", "2 rows"))
    token_layers = LONGEST * read_config("llama-7b").num_hidden_layers
    theirs = (two.published_gb - one.published_gb) * 1e9
    ours = counts[two.name].peak - counts[one.name].peak
    inputs = 3 * config.hidden_size + getattr(config, "intermediate_size", 0)  # of q, k, v; o; gate, up; and down
    per_token = (found.peak - found.parts[WEIGHTS]) / (figure.setting.micro_batch * figure.setting.block)
    return {
        "theirs": theirs / token_layers / 1e3,
        "ours": ours / token_layers / 1e3,
        "rest": one.published_gb - theirs / 1e9,
        "weights": found.parts[WEIGHTS] / 1e9,
        "inputs": 2 * inputs * LONGEST * config.num_hidden_layers / 1e9,
        "tokens": (figure.published_gb * 1e9 - found.parts[WEIGHTS]) / per_token / figure.setting.micro_batch,
        "states": (4 if figure.setting.trained_dtype == "float32" else 2) * 4 * found.parameters / 1e9,
        "adapter_mb": 4 * (found.parameters - 6_738_415_616) / 1e6,
        "module_mb": 4 * (found.parameters - 783_150_080) / 1e6,
    }


if __name__ == "__main__":
    for row in compare():
        print(json.dumps(row))
