"""What is saved loads again, in PEFT or as a state dict, and gives the same outputs; nothing else is overwritten."""

from __future__ import annotations

import json

import pytest
import torch
from attached_methods import COMBINED, EVERY, batch, each, stir
from peft import PeftModel
from safetensors.torch import load_file

from lorahub_edu.errors import CourseError
from lorahub_edu.lora.adapter_files import put_adapter, read_adapter
from lorahub_edu.methods import bottleneck, files, kinds
from lorahub_edu.methods.attach import attach
from lorahub_edu.models import tiny
from lorahub_edu.training.losses import last_hidden_states

OF_PEFT = each(name for name, m in kinds.METHODS.items() if m.made_by == "PEFT" and name != "qlora")


@torch.no_grad()
def states(model) -> torch.Tensor:
    return last_hidden_states(model.eval(), batch())


def attached_and_stirred(method):
    made = attach(tiny.model(), method)
    stir(made)
    return made


@pytest.mark.parametrize("method", ["full", "houlsby", "pfeiffer"])
def test_what_is_not_pefts_is_a_part_of_the_state_dict(method: str, tmp_path) -> None:
    made = attached_and_stirred(method)
    (file,) = files.save(made, tmp_path / "saved").glob("*.safetensors")
    again = attach(tiny.model(), method)
    assert not again.model.load_state_dict(load_file(file), strict=False).unexpected_keys
    torch.testing.assert_close(states(again.model), states(made.model), rtol=1e-5, atol=1e-5)


def test_each_part_of_a_combination_lies_in_a_folder_of_its_own(tmp_path) -> None:
    made = attached_and_stirred({"lora": {"target_modules": ["o_proj"]}, "houlsby": {}})  # both on the same layers
    folder = files.save(made, tmp_path / "saved")
    base = tiny.model()
    wrapped = PeftModel.from_pretrained(base, folder / "lora")
    bottleneck.insert(base, 8, after_attention=True)
    tensors = load_file(folder / "houlsby" / "adapter_model.safetensors")
    assert not base.load_state_dict(tensors, strict=False).unexpected_keys
    torch.testing.assert_close(states(wrapped), states(made.model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [*EVERY, *COMBINED])
def test_only_what_is_trained_is_written(method, tmp_path) -> None:
    made = attached_and_stirred(method)
    folder = files.save(made, tmp_path / "saved")
    tensors = [load_file(file) for file in folder.rglob("*.safetensors")]
    if "p_tuning" not in made.parts:  # of which PEFT keeps the embeddings alone
        assert sum(tensor.numel() for part in tensors for tensor in part.values()) == made.trainable
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert len(tensors) == len(made.parts) and 0 < size < 4 * made.trainable + 30_000 * len(tensors)


@pytest.mark.parametrize("name", OF_PEFT)
def test_peft_loads_what_is_pefts(name: str, tmp_path) -> None:
    made = attached_and_stirred(name)
    theirs = PeftModel.from_pretrained(tiny.model(), files.save(made, tmp_path / "saved"))
    torch.testing.assert_close(states(theirs), states(made.model))


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


def test_an_earlier_save_is_replaced_and_nothing_else(tmp_path) -> None:
    folder = files.save(attached_and_stirred("lora"), tmp_path / "saved")
    files.save(attached_and_stirred("ia3"), folder)
    assert set(json.loads((folder / "method.json").read_text(encoding="utf-8"))["methods"]) == {"ia3"}
    assert PeftModel.from_pretrained(tiny.model(), folder).peft_config["default"].peft_type == "IA3"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(CourseError, match="something else"):
        files.save(attached_and_stirred("ia3"), tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text(encoding="utf-8") == "keep"
