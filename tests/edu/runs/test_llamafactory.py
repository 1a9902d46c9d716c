"""A recipe for LLaMA-Factory: keys that it and transformers know, the same tokens, and adapters that load here."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import peft
import pytest
import torch
import yaml
from transformers import Seq2SeqTrainingArguments

from lorahub_edu.data import alpaca
from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapter_files
from lorahub_edu.models import pretrained, profiles, tiny
from lorahub_edu.runs import llamafactory, recipes

# Keys of LLaMA-Factory 0.9.5's own (model_args.py, data_args.py, finetuning_args.py), as far as an export may use them.
OWN_KEYS = {
    "model_name_or_path", "model_revision", "disable_gradient_checkpointing", "quantization_bit",
    "quantization_method", "quantization_type", "double_quantization", "stage", "finetuning_type", "lora_rank",
    "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora", "dataset", "eval_dataset", "dataset_dir",
    "template", "cutoff_len",
}  # fmt: skip
COLUMNS = {"prompt", "query", "response", "history", "system"}


@pytest.fixture
def exported(tmp_path: Path):
    """Exports a shipped recipe with a few rows of the learner's own."""

    def export(recipe: str, profile: str | None = None, **method: object) -> tuple[dict, dict, Path]:
        rows = tmp_path / "rows.json"
        rows.write_text(json.dumps([vars(example) for example in alpaca.shipped_examples()[:40]]))
        content = yaml.safe_load(recipes.find(recipe).read_text(encoding="utf-8"))
        content["data"] |= {"rows": str(rows), "train": 30, "validation": 5}
        content["method"] |= method
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
        path = llamafactory.export(tmp_path / "mine.yaml", tmp_path / "out", profile=profile)
        return (
            yaml.safe_load(path.read_text()),
            json.loads((path.parent / "dataset_info.json").read_text()),
            path.parent,
        )

    return export


@pytest.mark.parametrize("recipe", ["llama_7b_lora_alpaca", "llama_7b_qlora_12gb", "llama_3_8b_lora_alpaca"])
def test_keys_are_known_there(recipe: str, exported) -> None:
    settings, described, folder = exported(recipe)
    of_transformers = {one.name for one in fields(Seq2SeqTrainingArguments)}
    assert set(settings) <= OWN_KEYS | of_transformers
    assert set(described) == {settings["dataset"], settings["eval_dataset"]}
    for part in described.values():
        assert set(part["columns"]) <= COLUMNS
        row = json.loads((folder / part["file_name"]).read_text())[0]
        assert set(part["columns"].values()) == set(row)
    assert settings["max_steps"] == 1172 and settings["learning_rate"] == recipes.read(recipe).profile.learning_rate
    assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == 128
    assert settings.get("quantization_bit") == (4 if "qlora" in recipe else None)
    assert settings["template"] == "empty" and settings["cutoff_len"] == 512
    assert json.loads((folder / "mine_train.json").read_text())[0]["instruction"].startswith(
        profiles.get_base(settings["model_name_or_path"]).start + "Below is an instruction"
    )


def test_variants_of_lora(exported) -> None:
    for name in ("rslora", "dora"):
        settings, *_ = exported("llama_7b_lora_alpaca", name=name)
        assert settings[f"use_{name}"] is True
    with pytest.raises(CourseError, match="whole numbers for α, and mine has 12.5"):
        exported("llama_7b_lora_alpaca", alpha=12.5)


@pytest.mark.real
def test_the_small_twins_rows_have_the_same_tokens(exported) -> None:
    """Its template "empty" tokenises the two texts apart without special tokens and joins them: so does this."""
    if not pretrained.is_prepared("SmolLM2-135M-Instruct"):
        pytest.skip("the real model is not here: run make setup")
    settings, described, folder = exported("llama_7b_lora_alpaca", "cpu")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings["model_name_or_path"])
    rows = json.loads((folder / described["mine_train"]["file_name"]).read_text())
    theirs, ours = tokens_of_both(tokenizer, rows)
    assert ours == theirs and len(ours) == len(rows) > 10


def test_rows_of_a_tokenizer_with_a_start_token_have_the_same_tokens() -> None:
    """As a LLaMA's: a start token before every text, added by the tokenizer."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.tokenizer()
    start, end = tokenizer.unk_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.unk_token_id)]
    )
    base = profiles.BaseModel("mine", "", start=start, end=end)
    theirs, ours = tokens_of_both(tokenizer, llamafactory.text_rows(alpaca.shipped_examples()[:20], base))
    assert ours == theirs and len(ours) == 20


def tokens_of_both(tokenizer, rows: list[dict[str, str]]) -> tuple[list, list]:
    """Token ids and labels of every exported row as LLaMA-Factory makes them, and as this course does."""
    examples = {alpaca.format_prompt(example): example for example in alpaca.shipped_examples()}
    theirs, ours = [], []
    for row in rows:
        prompt, response = (tokenizer.encode(row[key], add_special_tokens=False) for key in ("instruction", "output"))
        example = next(example for text, example in examples.items() if row["instruction"].endswith(text))
        encoded = alpaca.encode(example, tokenizer, 2048)
        theirs.append((prompt + response, [alpaca.IGNORED] * len(prompt) + response))
        ours.append((encoded.input_ids, encoded.labels))
    return theirs, ours


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}])
def test_its_adapters_load_here(variant: dict, tmp_path: Path) -> None:
    """Made as its model/adapter.py makes them: PEFT's LoraConfig with these arguments, float32, save_pretrained."""
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM, inference_mode=False, r=8, target_modules=["q_proj", "v_proj"],
        lora_alpha=16, lora_dropout=0.05, use_dora=False, modules_to_save=None, **variant,
    )  # fmt: skip
    theirs = peft.get_peft_model(tiny.model(), config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    theirs.save_pretrained(tmp_path)
    mine = tiny.model()
    adapter_files.put_adapter(mine, adapter_files.read_adapter(tmp_path))
    ids = torch.arange(10, 30)[None]
    torch.testing.assert_close(mine(ids).logits, theirs.eval()(ids).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mine(ids).logits, tiny.model()(ids).logits, atol=1e-3)


def test_what_can_not_be_exported(tmp_path: Path, exported) -> None:
    with pytest.raises(CourseError, match="'llama_adapter', which LLaMA-Factory does not train"):
        llamafactory.export("llama_7b_adapter_alpaca", tmp_path)
    with pytest.raises(CourseError, match="can't load it: take cpu"):
        exported("llama_7b_lora_alpaca", "tiny")
    (tmp_path / "file").write_text("")
    (tmp_path / "out").write_text("")
    with pytest.raises(CourseError, match="Can't write"):
        exported("llama_7b_lora_alpaca")
