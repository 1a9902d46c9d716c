"""What is saved loads again, here and in PEFT, gives the same outputs, and is refused where it doesn't belong."""

from __future__ import annotations

import json

import pytest
import torch
from attached_methods import BITSANDBYTES, COMBINED, EVERY, assert_same, batch, each, snapshot, stir
from peft import PeftModel
from safetensors.torch import load_file

from lorahub_edu.errors import CourseError
from lorahub_edu.lora.adapter_files import put_adapter, read_adapter
from lorahub_edu.methods import files, kinds
from lorahub_edu.methods.attach import attach, detach
from lorahub_edu.models import tiny
from lorahub_edu.models.tiny import LlamaForCausalLM
from lorahub_edu.training.losses import last_hidden_states

OF_PEFT = each(name for name, m in kinds.METHODS.items() if m.made_by == "PEFT" and name != "qlora")


@torch.no_grad()
def states(model) -> torch.Tensor:
    return last_hidden_states(model.eval(), batch())


def attached_and_stirred(method):
    made = attach(tiny.model(), method)
    stir(made)
    return made


@pytest.mark.parametrize("method", [*EVERY, *COMBINED, {"lora": {"target_modules": ["o_proj"]}, "houlsby": {}}])
def test_saved_and_loaded_it_answers_the_same(method, tmp_path) -> None:
    made = attached_and_stirred(method)
    folder = files.save(made, tmp_path / "saved")
    base = tiny.model()
    before = snapshot(base)
    loaded = files.load(base, folder)
    torch.testing.assert_close(states(loaded.model), states(made.model), rtol=1e-5, atol=1e-5)
    assert loaded.parts.keys() == made.parts.keys() and loaded.trainable == 0
    if not {"full", "qlora"} & set(made.parts):
        assert files.weight_bytes(folder) < 4 * made.trainable + 30_000 * len(made.parts)  # weights and headers
    detach(loaded)
    assert_same(snapshot(base), before)


@pytest.mark.parametrize("name", OF_PEFT)
def test_peft_loads_what_is_pefts(name: str, tmp_path) -> None:
    made = attached_and_stirred(name)
    theirs = PeftModel.from_pretrained(tiny.model(), files.save(made, tmp_path / "saved"))
    torch.testing.assert_close(states(theirs), states(made.model))


@pytest.mark.parametrize("name", OF_PEFT)
def test_what_peft_saved_is_recognised(name: str, tmp_path) -> None:
    made = attached_and_stirred(name)
    made.model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = files.load(tiny.model(), tmp_path)
    assert list(loaded.parts) == [name]
    torch.testing.assert_close(states(loaded.model), states(made.model))


def test_the_courses_own_reader_loads_a_lora(tmp_path) -> None:
    made = attached_and_stirred("lora")
    ours = tiny.model()
    put_adapter(ours, read_adapter(files.save(made, tmp_path / "saved")))
    torch.testing.assert_close(states(ours), states(made.model))


def test_an_adapter_is_safetensors_and_a_small_json(tmp_path) -> None:
    made = attached_and_stirred("houlsby")
    folder = files.save(made, tmp_path / "saved")
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_model.safetensors", "method.json"]
    assert sum(tensor.numel() for tensor in load_file(folder / "adapter_model.safetensors").values()) == made.trainable
    described = json.loads((folder / "method.json").read_text(encoding="utf-8"))
    assert described["methods"] == {"houlsby": {"bottleneck": 8}} and described["base_model"] == "tiny-random-llama"


@BITSANDBYTES
def test_a_loaded_qlora_stands_on_four_bits_again(tmp_path) -> None:
    from bitsandbytes.nn import Linear4bit

    folder = files.save(attached_and_stirred("qlora"), tmp_path / "saved")
    base = tiny.model()
    files.load(base, folder)
    assert isinstance(base.get_submodule("model.layers.0.mlp.up_proj"), Linear4bit)


def test_an_earlier_save_is_replaced_and_nothing_else(tmp_path) -> None:
    folder = files.save(attached_and_stirred("lora"), tmp_path / "saved")
    files.save(attached_and_stirred("ia3"), folder)
    assert list(files.load(tiny.model(), folder).parts) == ["ia3"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(CourseError, match="something else"):
        files.save(attached_and_stirred("ia3"), tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text(encoding="utf-8") == "keep"


def _other_base() -> LlamaForCausalLM:
    config = tiny.config()
    config.num_hidden_layers, config.hidden_size, config.head_dim = 2, 64, 16
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("name", ["lora", "houlsby", "full", "prefix", "llama_adapter", "bitfit"])
def test_another_base_is_refused_and_stays_as_it_is(name: str, tmp_path) -> None:
    folder = files.save(attached_and_stirred(name), tmp_path / "saved")
    other = _other_base()
    before = snapshot(other)
    with pytest.raises(CourseError):
        files.load(other, folder)
    assert_same(snapshot(other), before)


def test_a_pickle_is_not_opened(tmp_path) -> None:
    folder = files.save(attached_and_stirred("lora"), tmp_path / "saved")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CourseError, match="pickles are not opened"):
        files.load(tiny.model(), folder)


@pytest.mark.parametrize("name", ["lora", "pfeiffer"])
def test_a_damaged_file_is_refused(name: str, tmp_path) -> None:
    folder = files.save(attached_and_stirred(name), tmp_path / "saved")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    base = tiny.model()
    before = snapshot(base)
    with pytest.raises(CourseError):
        files.load(base, folder)
    assert_same(snapshot(base), before)


def test_the_hash_of_another_base_is_noticed(tmp_path, monkeypatch) -> None:
    folder = files.save(attached_and_stirred("lora"), tmp_path / "saved")
    described = json.loads((folder / "method.json").read_text(encoding="utf-8"))
    (folder / "method.json").write_text(json.dumps(described | {"base_model_sha256": "a" * 64}), encoding="utf-8")
    monkeypatch.setattr(files.pretrained, "base_sha256", lambda _name: "b" * 64)
    with pytest.raises(CourseError, match="another base"):
        files.load(tiny.model(), folder)


def test_a_folder_without_a_method_is_refused(tmp_path) -> None:
    with pytest.raises(CourseError, match="holds no saved method"):
        files.load(tiny.model(), tmp_path)
    (tmp_path / "method.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CourseError, match="damaged"):
        files.load(tiny.model(), tmp_path)
    (tmp_path / "method.json").unlink()
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "OFT"}', encoding="utf-8")
    with pytest.raises(CourseError, match="'OFT' adapter"):
        files.load(tiny.model(), tmp_path)
