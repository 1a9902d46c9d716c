"""Every setting of PEFT's LoraConfig with odd values, adapters that PEFT makes with them, and the logits of both sides.

`python tests/helpers/peft_settings.py > docs/adapters.md` writes the table that the documentation shows.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import peft
import torch
from peft.tuners.lora.config import (
    ArrowConfig,
    BdLoraConfig,
    CordaConfig,
    EvaConfig,
    KasaConfig,
    LoraGAConfig,
    LoraRuntimeConfig,
    MontecloraConfig,
    VeloraConfig,
)

from lorahub_edu.lora.adapter_files import CONFIG_FILE, put_adapter, read_adapter
from lorahub_edu.models import tiny

IDS = torch.arange(24).view(2, 12)
LOADS = {
    "task_type": ["CAUSAL_LM", None],
    "peft_type": ["LORA"],
    "auto_mapping": [{"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}],
    "peft_version": ["99.0"],
    "base_model_name_or_path": ["someone/llama", None],
    "revision": ["main"],
    "inference_mode": [True, False],
    "r": [2],
    "lora_alpha": [5, 2.5, 0],
    "lora_dropout": [0.3],
    "use_rslora": [True],
    "target_modules": ["all-linear", r".*\.[02]\..*up_proj", ["k_proj"]],
    "exclude_modules": [["v_proj"], r".*\.0\..*"],
    "rank_pattern": [{"v_proj": 2}, {r"1\..*q_proj": 7}],
    "alpha_pattern": [{"q_proj": 3, "1.self_attn.q_proj": 99}, {r"[01]\..*q_proj": 0.5}],
    "layers_to_transform": [[0, 2], 1],
    "layers_pattern": ["layers"],
    "megatron_core": ["another.core"],
    "qalora_group_size": [8],
    "runtime_config": [LoraRuntimeConfig()],
    "loftq_config": [{"loftq_bits": 4}],
    "eva_config": [EvaConfig()],
    "corda_config": [CordaConfig()],
    "lora_ga_config": [LoraGAConfig()],
    "init_lora_weights": [True, False, "gaussian", "orthogonal", "eva"],
}
REFUSED = {
    "init_lora_weights": ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica"],
    "bias": ["all", "lora_only"],
    "modules_to_save": [["lm_head"]],
    "megatron_config": [{"tensor_model_parallel_size": 1}],
    "trainable_token_indices": [[1, 2]],
    "fan_in_fan_out": [True],
    "use_dora": [True],
    "velora_config": [VeloraConfig()],
    "alora_invocation_tokens": [[3]],
    "use_qalora": [True],
    "monteclora_config": [MontecloraConfig()],
    "layer_replication": [[[0, 4], [2, 4]]],
    "lora_bias": [True],
    "target_parameters": [["mlp.up_proj.weight"]],
    "use_bdlora": [BdLoraConfig(nblocks=2)],
    "arrow_config": [ArrowConfig()],
    "kasa_config": [KasaConfig()],
    "ensure_weight_tying": [True],
}


def rewrite(folder: Path, **changes: object) -> None:
    file = folder / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def saved_by_peft(folder: Path, **settings: object) -> Path:
    """An adapter with random A and B, made and saved by PEFT; what PEFT can't make on this model is only written."""
    plain = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    try:
        torch.manual_seed(0)
        model = peft.get_peft_model(tiny.model(), peft.LoraConfig(**plain | settings))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data += 0.05 * torch.randn(parameter.shape)
        model.save_pretrained(folder)
        return folder
    except Exception:
        written = {key: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for key, v in settings.items()}
        rewrite(saved_by_peft(folder), **written)
        return folder


@torch.no_grad()
def logits_by_peft(folder: Path) -> torch.Tensor:
    return peft.PeftModel.from_pretrained(tiny.model(), folder).eval()(IDS).logits


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    model = tiny.model()
    put_adapter(model, read_adapter(folder))
    return model(IDS).logits


def pairs(table: dict[str, list]) -> list[tuple[str, object]]:
    return [(setting, value) for setting, values in table.items() for value in values]


def page() -> str:
    """The two tables as a page of the documentation: what is tested is what it says."""
    lines = [
        "# Adapters of other tools",
        "",
        "An adapter in PEFT's layout loads here and computes PEFT's logits, or it is refused in one line.",
        "The table has every setting of PEFT's `LoraConfig`. `python tests/helpers/peft_settings.py` writes it,",
        "and `tests/edu/lora` compares each value with PEFT. A setting that PEFT does not have yet loads only",
        "where it is off.",
        "",
        "| setting | gives PEFT's logits with | is refused with |",
        "|---|---|---|",
    ]
    for setting in [*LOADS, *(setting for setting in REFUSED if setting not in LOADS)]:
        cells = [", ".join(f"`{_shown(value)}`" for value in table.get(setting, [])) for table in (LOADS, REFUSED)]
        if setting not in LOADS:
            cells[0] = "its default"
        lines.append(f"| `{setting}` | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    shown = type(value).__name__ if dataclasses.is_dataclass(value) else json.dumps(value)
    return shown.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
