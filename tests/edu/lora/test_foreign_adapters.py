"""Adapters as other tools and years left them: PEFT's logits, or one clear line, and never a silent difference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from peft_settings import IDS, logits, logits_by_peft, rewrite, saved_by_peft
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorahub_edu.errors import CourseError
from lorahub_edu.lora.adapter_files import CONFIG_FILE, WEIGHTS_FILE, put_adapter, read_adapter
from lorahub_edu.models import tiny

pytestmark = pytest.mark.filterwarnings("ignore")
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
    r"(?:(?:k_proj|v_proj|q_proj|up_proj)))"
)
YEAR_2023 = {"enable_lora": None, "merge_weights": False, "modules_to_save": None, "fan_in_fan_out": False}
SAVED = {
    "ranks and alphas by pattern, rank-stabilised": {
        "r": 8,
        "use_rslora": True,
        "target_modules": "all-linear",
        "rank_pattern": {r"[02]\..*_proj": 3, "^model.layers.1.mlp.down_proj": 5},
        "alpha_pattern": {r"layers\.1\..*": 32, "down_proj": 1},
    },
    "some layers without some of their matrices": {
        "target_modules": ["q_proj", "up_proj"],
        "layers_to_transform": [0, 3],
        "layers_pattern": "layers",
        "exclude_modules": r".*\.3\.mlp.*",
    },
    "Unsloth's expression": {"target_modules": UNSLOTH},
    "whole names": {"target_modules": ["model.layers.1.self_attn.q_proj", "3.mlp.down_proj"]},
    "two initialisations ago": {"init_lora_weights": "gaussian", "task_type": "CAUSAL_LM", "lora_alpha": 2.5},
}
REWRITTEN = {
    "a config of 2023": YEAR_2023,
    "a 4-bit base of another owner": {
        "base_model_name_or_path": "unsloth/llama-3-8b-bnb-4bit",
        "auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
    },
    "a list that its file does not fill": {"target_modules": ["q_proj", "v_proj", "up_proj"]},
}


@pytest.mark.parametrize("settings", SAVED.values(), ids=SAVED)
def test_saved_by_peft(tmp_path: Path, settings: dict) -> None:
    folder = saved_by_peft(tmp_path, **settings)
    assert json.loads((folder / CONFIG_FILE).read_text())["peft_version"] == peft.__version__  # PEFT made it
    assert_equal(folder)


@pytest.mark.parametrize("changes", REWRITTEN.values(), ids=REWRITTEN)
def test_a_config_of_another_tool(tmp_path: Path, changes: dict) -> None:
    folder = saved_by_peft(tmp_path)
    rewrite(folder, **changes)
    assert_equal(folder)


def assert_equal(folder: Path) -> None:
    torch.testing.assert_close(logits(folder), logits_by_peft(folder), rtol=1e-5, atol=1e-5)
    assert (logits(folder) - tiny.model()(IDS).logits).abs().max() > 1e-3


def test_a_pickle_of_tensors_is_read_without_running_it(tmp_path: Path) -> None:
    folder = saved_by_peft(tmp_path)
    torch.save(load_file(folder / WEIGHTS_FILE), folder / "adapter_model.bin")
    expected = logits(folder)
    (folder / WEIGHTS_FILE).unlink()
    assert_equal(folder)
    assert torch.equal(logits(folder), expected)
    torch.save({"weights": [torch.ones(2)]}, folder / "adapter_model.bin")
    with pytest.raises(CourseError, match="can't be read as bin .*something else than named tensors"):
        read_adapter(folder)


TRAINED = {
    "a head kept whole": ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\]"),
    "an adapted head, saved with its base": ({"target_modules": ["q_proj", "lm_head"]}, "lm_head.base_layer.weight"),
    "embeddings": ({"target_modules": ["embed_tokens"]}, "embed_tokens.*not a LoRA A or B"),
    "new tokens": ({"trainable_token_indices": [5, 6]}, r"trainable_token_indices = \[5, 6\]"),
    "DoRA": ({"use_dora": True}, "use_dora = True"),
    "biases of B": ({"lora_bias": True}, "lora_bias = True"),
}


@pytest.mark.parametrize(("settings", "message"), TRAINED.values(), ids=TRAINED)
def test_more_than_a_and_b_is_refused(tmp_path: Path, settings: dict, message: str) -> None:
    folder = saved_by_peft(tmp_path, **settings)
    assert (logits_by_peft(folder) - tiny.model()(IDS).logits).abs().max() > 1e-3  # PEFT made it and loads it
    assert_refused(folder, message)


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(CourseError, match=message) as refused:
        put_adapter(tiny.model(), read_adapter(folder))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


RENAMED = {
    "adapted twice": (lambda key: f"base_model.model.{key}", "base_model.model.model.*does not have"),
    "compiled": (lambda key: key.replace("model.model", "model._orig_mod.model", 1), "_orig_mod.*does not have"),
    "a decoder without its head": (lambda key: key.replace("model.model.", "model.", 1), "layers.0.*does not have"),
    "a part of a model that sees": (lambda key: key.replace(".layers", ".language_model.layers"), "does not have"),
    "with the adapter's name": (lambda key: key.replace(".weight", ".default.weight"), "not a LoRA A or B"),
    "another library's names": (lambda key: key.replace("lora_A", "lora_down"), "not a LoRA A or B"),
    "no letter": (lambda key: key.replace("lora_A", "lora_"), "not a LoRA A or B"),
    "a layer that the config leaves out": (
        lambda key: key.replace("q_proj", "o_proj"),
        "o_proj, which target_modules in adapter_config.json leaves out",
    ),
}


@pytest.mark.parametrize(("rename", "message"), RENAMED.values(), ids=RENAMED)
def test_names_that_peft_skips_without_a_word_are_refused(
    tmp_path: Path, rename: Callable[[str], str], message: str
) -> None:
    folder = saved_by_peft(tmp_path)
    tensors = {rename(key): tensor for key, tensor in load_file(folder / WEIGHTS_FILE).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    assert_refused(folder, message)


ADDED: dict[str, tuple[str, Tensor]] = {
    "a length of DoRA": ("lora_magnitude_vector", torch.ones(128)),
    "kohya's alpha": ("alpha", torch.tensor(4.0)),
}


@pytest.mark.parametrize(("name", "tensor"), ADDED.values(), ids=ADDED)
def test_a_tensor_too_many_is_refused(tmp_path: Path, name: str, tensor: Tensor) -> None:
    folder = saved_by_peft(tmp_path)
    tensors = load_file(folder / WEIGHTS_FILE) | {f"base_model.model.model.layers.0.self_attn.q_proj.{name}": tensor}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    assert_refused(folder, f"{name}.*not a LoRA A or B")


def test_an_expression_that_is_none(tmp_path: Path) -> None:
    folder = saved_by_peft(tmp_path)
    rewrite(folder, target_modules="q_proj(")
    assert_refused(folder, "target_modules.*valid regular expression")
