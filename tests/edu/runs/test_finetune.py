"""The main job from rows to an adapter that PEFT loads, in the tiny profile and on the real model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch

from lorahub_edu import evaluation
from lorahub_edu.data import alpaca
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.lora import adapter_files
from lorahub_edu.models import pretrained, tiny
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.runs import finetune, recipes


def test_tiny_from_rows_to_peft(tmp_path: Path) -> None:
    profile = replace(get_profile("tiny"), train_steps=8)
    done = finetune.finetune(profile, out=tmp_path, progress=False)
    assert done.loss_after < done.loss_before and not done.interrupted
    ids = torch.arange(10, 30)[None]
    mine = tiny.model()
    adapter_files.put_adapter(mine, adapter_files.read_adapter(done.adapter))
    theirs = peft.PeftModel.from_pretrained(tiny.model(), done.adapter).eval()
    torch.testing.assert_close(mine(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mine(ids).logits, tiny.model()(ids).logits)


def test_two_runs_of_one_seed_end_alike_and_another_seed_does_not(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        done = finetune.finetune("tiny", {"train_steps": 2}, out=tmp_path / name, seed=seed, progress=False)
        weights.append(adapter_files.read_adapter(done.adapter).weights)
    site = next(iter(weights[0]))
    assert all(torch.equal(weights[0][s][i], weights[1][s][i]) for s in weights[0] for i in (0, 1))
    assert not torch.equal(weights[0][site][0], weights[2][site][0])


def test_alpha_keeps_its_ratio_to_the_rank() -> None:
    profile = get_profile("gpu24")
    assert finetune.lora_config(profile).scaling == finetune.lora_config(profile.changed(rank=32)).scaling == 2.0
    assert finetune.lora_config(profile).dtype == torch.float32  # A and B on a bfloat16 base
    assert finetune.lora_config(get_profile("cpu")).dtype is None


def test_the_gpu24_settings_on_a_small_model(tmp_path: Path) -> None:
    """bfloat16 base, float32 A and B, autocast, checkpointing, dropout: the same path as on the GPU, on a CPU."""
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([vars(example) for example in alpaca.shipped_examples()[:40]]))
    profile = replace(
        get_profile("gpu24"), base_model=tiny.NAME, device="cpu", train_rows=32, validation_rows=8, block_size=192,
        batch_size=8, train_steps=6, warmup_steps=0, learning_rate=2e-2,
    )  # fmt: skip
    done = finetune.finetune(profile, data=rows, out=tmp_path / "run", progress=False)
    assert done.loss_after < done.loss_before - 0.02
    weights = adapter_files.read_adapter(done.adapter).weights
    assert all(tensor.dtype == torch.float32 for pair in weights.values() for tensor in pair)
    assert any(B.abs().max() > 0 for _, B in weights.values())


def test_rank_stabilised_lora_is_the_courses_own(tmp_path: Path) -> None:
    done = finetune.finetune("tiny", {"train_steps": 1}, out=tmp_path, method="rslora", progress=False)
    configs = adapter_files.read_adapter(done.adapter).configs.values()
    assert all(config.rank_stabilised and config.scaling == 8.0 / 4**0.5 for config in configs)


def test_a_method_of_peft_with_tokens_before_the_rows_pads_them(tmp_path: Path) -> None:
    done = finetune.finetune(
        "tiny", {"train_steps": 2}, out=tmp_path, method="prefix", settings={"length": 4, "scale": 0.1}, progress=False
    )
    assert done.training.losses[1] < done.training.losses[0] + 0.1
    loaded = peft.PeftModel.from_pretrained(tiny.model(), done.adapter)
    assert loaded.active_peft_config.num_virtual_tokens == 4


def test_an_unknown_method(tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="no method 'lorra'. Did you mean 'lora'"):
        finetune.finetune("tiny", out=tmp_path, method="lorra", progress=False)
    with pytest.raises(CourseError, match="rank=4 is for lora and rslora; qlora has settings of its own"):
        finetune.finetune("tiny", {"rank": 4}, out=tmp_path, method="qlora", progress=False)
    assert not list(tmp_path.iterdir())


def test_too_few_rows(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n' * 5)
    for validation, message in ((5, "5 rows can't be held back of 5"), (0, "0 rows can't"), (-1, "-1 rows can't")):
        with pytest.raises(CourseError, match=f"{message}.*another --validation"):
            changes = {"validation_rows": validation}
            finetune.finetune("tiny", changes, data=rows, out=tmp_path / "run", progress=False)
    rows.write_text('{"instruction": "a", "output": "b"}\n')
    with pytest.raises(CourseError, match="1 rows can't be held back of 1: at least 1 is needed, and 1 to train on"):
        finetune.finetune("tiny", data=rows, out=tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("profile", "count", "held"),
    [
        ("gpu24", 1000, 200), ("gpu24", 2001, 400), ("gpu24", 10_000, 2000), ("gpu24", 3, 1), ("cpu", 1000, 24),
        ("cpu", 50, 10), ("tiny", 1000, 16), ("tiny", 2, 1),
    ],
)  # fmt: skip
def test_own_rows_train_under_every_profile(tmp_path: Path, capsys, profile: str, count: int, held: int) -> None:
    """The rows held back scale down, which is said, and are disjoint from those trained on."""
    profile, rows = get_profile(profile), tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"instruction": "Say {i}", "output": "{i}"}}\n' for i in range(count)))
    training, validation = finetune.split_rows(profile, rows, 0, offline=True, progress=True)
    assert len(validation) == held and len(training) == min(count - held, profile.train_rows)
    assert not {row.output for row in training} & {row.output for row in validation}
    said = f"{held} of them are held back for validation, not {profile.validation_rows:,}"
    assert (said in capsys.readouterr().out) == (held < profile.validation_rows)
    training, validation = finetune.split_rows(profile, rows, 0, True, True, validation_rows=count - 1)
    assert (len(training), len(validation)) == (1, count - 1)
    assert "held back" not in capsys.readouterr().out


def test_the_settings_of_the_source_need_all_rows(tmp_path: Path, monkeypatch) -> None:
    """A cached demo of 999 rows is no answer for the run on 49,759; the message names the command that gets them."""
    monkeypatch.setenv(assets.LOCAL_VARIABLE, str(tmp_path))
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "home"))
    demo = tmp_path / "demo.json"
    demo.write_text(json.dumps([vars(example) for example in alpaca.shipped_examples()]))
    fetch = assets.fetch
    monkeypatch.setattr(assets, "fetch", lambda name, **more: demo if name == "alpaca" else fetch(name, **more))
    big = get_profile("gpu24")
    with pytest.raises(CourseError, match=r"(?s)06391b656a06.*lorahub-edu fetch --profile gpu24.*--data alpaca"):
        finetune.split_rows(big, None, 0, offline=True, progress=False)
    assert len(finetune.split_rows(big, "alpaca", 0, offline=True, progress=False)[1]) == 37  # a fifth of 189
    assert len(finetune.split_rows(get_profile("cpu"), None, 0, offline=True, progress=False)[1]) == 24


def test_all_rows_are_one_edition_of_alpaca() -> None:
    assert assets.ASSETS["alpaca-52k"].editions == assets.ASSETS["alpaca"].editions[:1]


def test_the_gpu_is_looked_for_first(tmp_path: Path, monkeypatch) -> None:
    """Before rows are read, and before a recipe's memory is said to fit."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = []
    with pytest.raises(CourseError, match="needs an NVIDIA GPU"):
        finetune.finetune("gpu24", data=tmp_path / "none.json", out=tmp_path / "run", progress=False)
    with pytest.raises(CourseError, match="needs an NVIDIA GPU"):
        recipes.run("llama_7b_lora_alpaca", "gpu24", out=tmp_path / "run", report=said.append)
    assert not said


@pytest.mark.real
def test_real_llama_on_real_rows(smollm, tmp_path: Path) -> None:
    """Three steps on SmolLM2 with Alpaca's rows: the loss on the trained rows falls, and PEFT computes the same."""
    if assets.locate("alpaca") is None:
        pytest.skip("Alpaca's rows are not here")
    profile = replace(
        get_profile("cpu"), train_rows=4, validation_rows=2, block_size=96, train_steps=3, warmup_steps=0,
        batch_size=3, micro_batch_size=2, learning_rate=1e-3, dropout=0.0,
    )  # fmt: skip
    done = finetune.finetune(profile, out=tmp_path, offline=True, progress=False)
    assert done.training.losses[-1] < done.training.losses[0] - 0.05
    assert adapter_files.read_adapter(done.adapter).base_model_sha256 == pretrained.base_sha256(profile.base_model)
    base, tokenizer = smollm
    ids = tokenizer(alpaca.format_prompt(alpaca.shipped_examples()[0]), return_tensors="pt")["input_ids"]
    mine, _ = pretrained.load("cpu", offline=True)
    theirs = peft.PeftModel.from_pretrained(pretrained.load("cpu", offline=True)[0], done.adapter).eval()
    adapter_files.put_adapter(
        mine, adapter_files.read_adapter(done.adapter), base_model_sha256=pretrained.base_sha256(profile.base_model)
    )
    with torch.no_grad():
        torch.testing.assert_close(mine(ids).logits, theirs(ids).logits, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(mine(ids).logits, base(ids).logits, atol=1e-3)
    assert evaluation.perplexity(done.loss_after) > 1
