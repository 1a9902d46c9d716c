"""Adapters on disk: PEFT reads what is saved here and the other way round; damaged files are refused whole."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapter_files, adapters
from lorahub_edu.lora.adapter_files import CONFIG_FILE, WEIGHTS_FILE, put_adapter, read_adapter, save_adapter
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import tiny

IDS = torch.arange(24).view(2, 12)


def adapted(config: LoRAConfig | None = None, adapter: str = "default"):
    model = tiny.model().double()
    adapters.inject(model, config or LoRAConfig(rank=4, alpha=8), adapter, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in adapters.lora_layers(model):
            layer.lora_B[adapter].normal_(std=0.1, generator=generator)
    return model


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear", r"model\.layers\.[01]\.mlp\..*_proj"])
@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_peft_loads_what_is_saved_here(tmp_path: Path, targets, rank_stabilised) -> None:
    model = adapted(LoRAConfig(rank=4, alpha=8, target_modules=targets, rank_stabilised=rank_stabilised))
    folder = save_adapter(model, tmp_path / "mine")
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    theirs = peft.PeftModel.from_pretrained(tiny.model().double(), folder, autocast_adapter_dtype=False).eval()
    torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits, rtol=1e-10, atol=1e-10)
    expected = {name for name, _ in adapters.lora_layers(model)}
    found = {n for n, m in theirs.base_model.model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert found == expected


def peft_model(**options):
    torch.manual_seed(2)
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **options)
    return peft.get_peft_model(tiny.model(), config, autocast_adapter_dtype=False).double().eval()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "o_proj"]},
        {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "use_rslora": True},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"1.*q_proj": 32}},
        {"target_modules": ["up_proj"], "layers_to_transform": [1, 3]},
    ],
)
def test_loads_what_peft_saved(tmp_path: Path, options: dict) -> None:
    theirs = peft_model(**options)
    theirs.save_pretrained(tmp_path / "theirs")
    mine = tiny.model().double()
    put_adapter(mine, read_adapter(tmp_path / "theirs"), "from_peft")
    torch.testing.assert_close(mine(IDS).logits, theirs(IDS).logits, rtol=1e-10, atol=1e-10)
    # and once more round: what was loaded is saved so that PEFT gets the same
    save_adapter(mine, tmp_path / "again", "from_peft")
    back = peft.PeftModel.from_pretrained(tiny.model().double(), tmp_path / "again", autocast_adapter_dtype=False)
    torch.testing.assert_close(back.eval()(IDS).logits, theirs(IDS).logits, rtol=1e-10, atol=1e-10)


def test_t5_both_ways(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    base = T5ForConditionalGeneration(config).double().eval()
    inputs = {"input_ids": torch.arange(1, 21).view(2, 10), "labels": torch.arange(1, 13).view(2, 6)}
    theirs = peft.get_peft_model(
        copy.deepcopy(base),
        peft.LoraConfig(r=4, target_modules=["q", "v"], init_lora_weights=False, task_type="SEQ_2_SEQ_LM"),
        autocast_adapter_dtype=False,
    ).eval()
    theirs.save_pretrained(tmp_path / "t5")
    mine = copy.deepcopy(base)
    put_adapter(mine, read_adapter(tmp_path / "t5"))
    torch.testing.assert_close(mine(**inputs).logits, theirs(**inputs).logits, rtol=1e-10, atol=1e-10)
    save_adapter(mine, tmp_path / "t5-again")
    back = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "t5-again", autocast_adapter_dtype=False)
    torch.testing.assert_close(back.eval()(**inputs).logits, theirs(**inputs).logits, rtol=1e-10, atol=1e-10)


def test_two_adapters_from_disk_side_by_side(tmp_path: Path) -> None:
    save_adapter(adapted(LoRAConfig(rank=2)), tmp_path / "a")
    save_adapter(adapted(LoRAConfig(rank=3, target_modules=("up_proj",))), tmp_path / "b")
    model = tiny.model().double()
    put_adapter(model, read_adapter(tmp_path / "a"), "a")
    put_adapter(model, read_adapter(tmp_path / "b"), "b")
    both = {name for _, layer in adapters.lora_layers(model) for name in layer.configs}
    assert both == {"a", "b"}
    adapters.set_adapter(model, "a")
    torch.testing.assert_close(model(IDS).logits, adapted(LoRAConfig(rank=2))(IDS).logits, rtol=1e-10, atol=1e-10)


def test_saving_again_replaces_only_the_adapter(tmp_path: Path) -> None:
    folder = save_adapter(adapted(), tmp_path / "mine")
    (folder / "README.md").write_text("my notes")
    save_adapter(adapted(LoRAConfig(rank=2)), folder)
    assert next(iter(read_adapter(folder).configs.values())).rank == 2
    assert (folder / "README.md").read_text() == "my notes"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]  # no leftovers beside it


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args, **_kwargs) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapter_files, "save_file", full)
    with pytest.raises(CourseError, match="No space left"):
        save_adapter(adapted(), tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


# Bad input: each refused with what was seen, and the model unchanged.


def assert_refused(folder: Path, match: str, model=None, **options) -> None:
    model = model or tiny.model().double()
    before = {name for name, _ in model.named_parameters()}
    with pytest.raises(CourseError, match=match):
        put_adapter(model, read_adapter(folder), **options)
    assert {name for name, _ in model.named_parameters()} == before


def rewrite(folder: Path, **changes) -> None:
    file = folder / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_missing_files(tmp_path: Path) -> None:
    assert_refused(tmp_path, "adapter_config.json is missing")
    folder = save_adapter(adapted(), tmp_path / "mine")
    (folder / WEIGHTS_FILE).unlink()
    assert_refused(folder, "adapter_model.safetensors is missing")


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    folder = save_adapter(adapted(), tmp_path / "mine")
    (folder / WEIGHTS_FILE).unlink()
    trap = tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return (trap.touch, ())

    torch.save({"weight": Trap()}, folder / "adapter_model.bin")
    assert_refused(folder, "which could run any code")
    assert_refused(folder / "adapter_model.bin", "which could run any code")
    assert not trap.exists()


def test_a_pickle_under_the_name_of_safetensors(tmp_path: Path) -> None:
    folder = save_adapter(adapted(), tmp_path / "mine")
    torch.save({"weight": torch.zeros(2)}, folder / WEIGHTS_FILE)
    assert_refused(folder, "can't be read as safetensors")


def test_a_file_cut_short(tmp_path: Path) -> None:
    folder = save_adapter(adapted(), tmp_path / "mine")
    whole = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(whole[: len(whole) // 2])
    assert_refused(folder, "cut short")
    (folder / WEIGHTS_FILE).write_bytes(whole)
    (folder / CONFIG_FILE).write_text('{"r": 4,')
    assert_refused(folder, "not readable JSON")


def test_a_rank_that_does_not_agree_with_the_tensors(tmp_path: Path) -> None:
    folder = save_adapter(adapted(), tmp_path / "mine")
    rewrite(folder, r=8)
    assert_refused(folder, r"A \(4, 128\).*says rank 8")
    rewrite(folder, r=0)
    assert_refused(folder, "r = 0")


def test_another_base_model(tmp_path: Path) -> None:
    folder = save_adapter(adapted(), tmp_path / "mine", base_model="tiny", base_model_sha256="a" * 64)
    assert_refused(folder, "trained on another base model .tiny, SHA-256 aaaaaaaaaaaa", base_model_sha256="b" * 64)
    put_adapter(tiny.model().double(), read_adapter(folder), base_model_sha256="a" * 64)
    config = tiny.config()
    config.hidden_size = 64
    smaller = type(tiny.model())(config)
    assert_refused(folder, r"which is \(128, 64\) in this model, but the adapter was made for \(128, 128\)", smaller)
    config = tiny.config()
    config.num_hidden_layers = 2
    assert_refused(
        folder, "adapts model.layers.2.self_attn.q_proj, which this model does not have", type(tiny.model())(config)
    )


def test_strange_tensors(tmp_path: Path) -> None:
    folder = save_adapter(adapted(), tmp_path / "mine")
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file(tensors | {"base_model.model.lm_head.weight": torch.zeros(2)}, folder / WEIGHTS_FILE)
    assert_refused(folder, "not a LoRA A or B")
    first = next(iter(tensors))
    save_file({key: value for key, value in tensors.items() if key != first}, folder / WEIGHTS_FILE)
    assert_refused(folder, "has only B of A and B")


def test_unknown_adapter_and_taken_name(tmp_path: Path) -> None:
    model = adapted()
    with pytest.raises(CourseError, match="no adapter 'defualt' to save. Did you mean 'default'"):
        save_adapter(model, tmp_path / "mine", "defualt")
    folder = save_adapter(model, tmp_path / "mine")
    assert_refused(folder, "has an adapter 'default' already", model)
