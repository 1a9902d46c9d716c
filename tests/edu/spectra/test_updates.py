"""Where changes come from: adapters of PEFT's making, models, checkpoints; and what does not belong together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapter_files, adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import pretrained, tiny
from lorahub_edu.spectra import intruders, updates
from lorahub_edu.spectra.bases import BaseSpectra
from lorahub_edu.spectra.updates import Update


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    return tiny.model()


@pytest.fixture(scope="module")
def by_peft(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """An adapter made and saved by PEFT alone, rank-stabilised and of two ranks, and the weights that PEFT merges."""
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 3}
    )
    model = peft.get_peft_model(tiny.model(), config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3, generator=generator)
    folder = tmp_path_factory.mktemp("peft")
    model.save_pretrained(folder)
    return folder, {name: w.clone() for name, w in model.merge_and_unload().state_dict().items()}


def test_an_adapter_of_pefts_gives_the_weights_that_peft_merges(base: LlamaForCausalLM, by_peft: tuple) -> None:
    folder, merged = by_peft
    found = list(updates.iter_updates(folder, base))
    assert len(found) == 8
    for one in found:
        torch.testing.assert_close(one.weight(), merged[f"{one.name}.weight"], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(one.singular_values()[:3], torch.linalg.svdvals(one.dense(torch.float64))[:3])


def test_a_checkpoint_gives_the_differences(base: LlamaForCausalLM, by_peft: tuple, tmp_path: Path) -> None:
    folder, merged = by_peft
    tuned = tiny.model()
    tuned.load_state_dict(merged)
    tuned.save_pretrained(tmp_path / "one")
    tuned.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    assert (tmp_path / "shards" / updates.INDEX_FILE).is_file()
    for where in ("one", "shards"):
        found = {one.name: one for one in updates.iter_updates(tmp_path / where, base)}
        assert len(found) == 4 * 7  # every linear layer, and neither embedding nor head
        for one in updates.iter_updates(folder, base):
            torch.testing.assert_close(found[one.name].dense(), one.dense(), atol=1e-6, rtol=1e-4)
        for name, one in found.items():  # exactly, however far a value moved
            assert torch.equal(one.weight(torch.float64), merged[f"{name}.weight"].double())
        assert found["model.layers.0.mlp.up_proj"].is_zero()
        assert not found["model.layers.0.mlp.down_proj"].is_zero()


@pytest.mark.parametrize("save_bare", [False, True], ids=["with its head", "bare"])
def test_gpt2s_conv1d_is_counted_as_out_by_in(tmp_path: Path, save_bare: bool) -> None:
    """transformers computes x W + b with W (in, out): numpy on the transposed tensors is the reference."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0))
    saved = model.transformer if save_bare else model
    saved.save_pretrained(tmp_path / "base")
    before = {name: parameter.detach().numpy().copy() for name, parameter in saved.named_parameters()}
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            parameter.data += 0.1 * torch.randn(parameter.shape[0], 2) @ torch.randn(2, parameter.shape[1])
    saved.save_pretrained(tmp_path / "tuned")
    after = {name: parameter.detach().numpy() for name, parameter in saved.named_parameters()}
    found = intruders.count(updates.iter_updates(tmp_path / "tuned", tmp_path / "base"), BaseSpectra(tmp_path), k=3)
    assert len(found.rows) == 2 * 4  # c_attn, c_proj, c_fc, c_proj; the square c_proj too
    assert sum(found.intruders) > 0
    for row in found.rows:
        name = f"{row.name}.weight"
        left, tuned = (
            np.linalg.svd(part[name].T.astype(np.float64), full_matrices=False)[0] for part in (before, after)
        )
        assert row.shape == before[name].T.shape
        assert row.cosines == pytest.approx(np.abs(tuned[:, :3].T @ left).max(1), abs=1e-5)
    assert set(updates.base_weights(saved).names()) == {row.name for row in found.rows}
    for name in updates.base_weights(saved).names():
        assert torch.equal(updates.base_weights(saved).read(name), updates.base_weights(tmp_path / "tuned").read(name))


def test_a_linear_layer_with_a_bias_stays_as_it_is(tmp_path: Path) -> None:
    """GPT-BigCode names its linear layers like GPT-2's Conv1D."""
    torch.manual_seed(0)
    model = GPTBigCodeForCausalLM(
        GPTBigCodeConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0)
    )
    model.save_pretrained(tmp_path)
    read = updates.base_weights(tmp_path)
    assert len(read.names()) == 4
    for name in read.names():
        assert torch.equal(read.read(name), model.get_submodule(name).weight)


def test_a_mixture_of_experts_is_counted_but_for_its_router(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=4, num_local_experts=4,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path / "base")
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "tuned")
    tensors = load_file(tmp_path / "tuned" / updates.WEIGHTS_FILE)
    tensors["model.layers.0.mlp.experts.gate_up_proj"] = torch.zeros(4, 96, 32)  # as some models keep their experts
    save_file(tensors, tmp_path / "tuned" / updates.WEIGHTS_FILE)
    found, page = intruders.examine(tmp_path / "tuned", base=str(tmp_path / "base"))
    assert len(found.rows) == 4 + 4 * 3  # attention and three matrices of each expert
    assert len(found.left_out) == 1
    assert "gate: A matrix of shape (4, 32)" in found.left_out[0]
    assert "left out: model.layers.0.mlp.experts.gate_up_proj" in page
    with pytest.raises(CourseError, match=r"model.layers.0.*no 33 strongest"):
        intruders.examine(tmp_path / "tuned", base=str(tmp_path / "base"), k=33)


def test_slices_make_up_the_whole_for_both_shapes_and_kinds() -> None:
    for m, n in ((5, 9), (9, 5)):
        generator = torch.Generator().manual_seed(0)
        base, A, B = (torch.randn(*shape, generator=generator) for shape in ((m, n), (2, n), (m, 2)))
        for one in (Update("x", base, A, B, 1.5), Update("x", base, delta=1.5 * B @ A)):
            before, after = (torch.cat(parts, 1) for parts in zip(*one.slices(width=2), strict=True))
            if m > n:
                before, after = before.T, after.T
            torch.testing.assert_close(before, base.double())
            torch.testing.assert_close(after, one.weight(torch.float64), atol=1e-6, rtol=1e-6)


def test_a_model_with_adapters_is_its_own_base(base: LlamaForCausalLM) -> None:
    model = tiny.model()
    adapters.inject(model, LoRAConfig(rank=2, alpha=8.0, target_modules=("v_proj",)), seed=0)
    of_model = updates.base_weights(model)  # layers with adapters count with the weights below them
    assert of_model.names() == updates.base_weights(base).names()
    name = "model.layers.0.self_attn.v_proj"
    assert torch.equal(of_model.read(name), base.get_submodule(name).weight)


def test_bases_by_name_by_folder_and_in_memory_are_the_same(base: LlamaForCausalLM, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path)
    name = "model.layers.2.self_attn.k_proj"
    for given in (updates.base_weights(tiny.NAME), updates.base_weights(str(tmp_path)), updates.base_weights(base)):
        assert torch.equal(given.read(name), base.get_submodule(name).weight)
        assert len(given.names()) == 28
    with pytest.raises(CourseError, match="SmolLM2-135M-Instruct"):
        updates.base_weights("SmolLM-135M-Instruct")


def test_an_adapter_of_another_base_is_refused(by_peft: tuple, base: LlamaForCausalLM) -> None:
    file = adapter_files.read_adapter(by_peft[0])
    name = next(iter(file.weights))
    A, B = file.weights[name]
    with pytest.raises(CourseError, match="another base model"):
        updates.iter_updates(dataclasses.replace(file, weights={name: (A[:, :-1], B)}), base)
    with pytest.raises(CourseError, match="Did you mean 'model.layers.0.self_attn.q_proj'"):
        updates.iter_updates(dataclasses.replace(file, weights={"model.layer.0.self_attn.q_proj": (A, B)}), base)
    marked = dataclasses.replace(file, base_model_sha256="a" * 64)
    with pytest.raises(CourseError, match="aaaaaaaaaaaa"):
        updates.iter_updates(marked, dataclasses.replace(updates.base_weights(base), sha256="b" * 64))


def test_checkpoints_that_do_not_belong_are_refused(base: LlamaForCausalLM, tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.self_attn.q_projection.weight": torch.zeros(128, 128),
        "model.layers.1.self_attn.q_proj.weight": torch.zeros(128, 128),
    }
    save_file(tensors, tmp_path / updates.WEIGHTS_FILE)
    with pytest.raises(CourseError, match="q_projection.*Did you mean 'model.layers.0.self_attn.q_proj'"):
        updates.iter_updates(tmp_path, base)
    save_file({"model.layers.1.self_attn.q_proj.weight": torch.zeros(64, 128)}, tmp_path / updates.WEIGHTS_FILE)
    with pytest.raises(CourseError, match=r"\(128, 128\).*\(64, 128\)"):
        updates.iter_updates(tmp_path, base)
    save_file({"embed.weight": torch.zeros(4, 4)}, tmp_path / updates.WEIGHTS_FILE)
    with pytest.raises(CourseError, match="no matrix of a numbered layer"):
        updates.iter_updates(tmp_path, base)
    content = (tmp_path / updates.WEIGHTS_FILE).read_bytes()
    (tmp_path / updates.WEIGHTS_FILE).write_bytes(content[:40])
    with pytest.raises(CourseError, match="cut short"):
        updates.iter_updates(tmp_path, base)
    (tmp_path / updates.WEIGHTS_FILE).rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CourseError, match="pytorch_model.bin, a pickle"):
        updates.iter_updates(tmp_path, base)
    with pytest.raises(CourseError, match="no folder"):
        updates.iter_updates(tmp_path / "nowhere", base)


def test_quantised_bases_and_dora_are_refused_by_name(base: LlamaForCausalLM, by_peft: tuple, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(CourseError, match="gptq"):
        updates.iter_updates(by_peft[0], tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / updates.WEIGHTS_FILE)
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(128, 128, dtype=torch.int8)
    save_file(tensors, tmp_path / updates.WEIGHTS_FILE)
    with pytest.raises(CourseError, match="int8"):
        list(updates.iter_updates(by_peft[0], tmp_path))
    model = peft.get_peft_model(tiny.model(), peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    model.save_pretrained(tmp_path / "dora")
    with pytest.raises(CourseError, match="use_dora"):
        updates.iter_updates(tmp_path / "dora", base)


def test_an_update_is_factors_or_a_whole_and_fits_its_base() -> None:
    base = torch.zeros(4, 6)
    with pytest.raises(CourseError, match="give one of the two"):
        Update("x", base)
    with pytest.raises(CourseError, match="give one of the two"):
        Update("x", base, torch.zeros(2, 6), torch.zeros(4, 2), delta=base)
    with pytest.raises(CourseError, match=r"\(4, 6\).*\(4, 2\) and \(2, 5\)"):
        Update("x", base, torch.zeros(2, 5), torch.zeros(4, 2))
    with pytest.raises(CourseError, match="does not fit"):
        Update("x", base, torch.zeros(2, 6), torch.zeros(4, 3))


def test_the_courses_base_knows_its_hash() -> None:
    assert updates.base_weights(tiny.model()).sha256 is None  # made here, from no file
    if pretrained.is_prepared("SmolLM2-135M-Instruct"):
        found = updates.base_weights("SmolLM2-135M-Instruct", offline=True)
        assert found.sha256 == pretrained.base_sha256("SmolLM2-135M-Instruct")
        assert len(found.names()) == 210
