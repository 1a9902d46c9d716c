"""Every setting of the installed PEFT: the logits are PEFT's, or the adapter is refused by name and value."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from pathlib import Path

import peft
import pytest
import torch
from peft_settings import IDS, LOADS, REFUSED, logits, logits_by_peft, page, pairs, rewrite, saved_by_peft
from safetensors.torch import load_file, save_file

from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapters
from lorahub_edu.lora.adapter_files import CONFIG_FILE, WEIGHTS_FILE, put_adapter, read_adapter
from lorahub_edu.models import tiny

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NEEDED = {"layers_pattern": {"layers_to_transform": [1, 3]}}


def test_every_setting_of_the_installed_peft_is_in_a_table() -> None:
    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} == LOADS.keys() | REFUSED.keys()
    kind = typing.get_type_hints(peft.LoraConfig)["init_lora_weights"]
    named = {name for option in typing.get_args(kind) for name in typing.get_args(option)}
    assert named - {"pissa_niter_[number of iters]"} <= {*LOADS["init_lora_weights"], *REFUSED["init_lora_weights"]}


def test_the_page_of_the_documentation_is_what_is_tested() -> None:
    written = Path(__file__).resolve().parents[3] / "docs" / "adapters.md"
    assert written.read_text(encoding="utf-8") == page(), (
        "write it: python tests/helpers/peft_settings.py > docs/adapters.md"
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("setting", "value"), pairs(LOADS))
def test_gives_the_logits_of_peft(tmp_path: Path, setting: str, value: object) -> None:
    folder = saved_by_peft(tmp_path, **NEEDED.get(setting, {}) | {setting: value})
    torch.testing.assert_close(logits(folder), logits_by_peft(folder), rtol=1e-5, atol=1e-5)
    assert (logits(folder) - tiny.model()(IDS).logits).abs().max() > 1e-3 or value == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("setting", "value"), pairs(REFUSED))
def test_is_refused_by_name_and_value(tmp_path: Path, setting: str, value: object) -> None:
    folder = saved_by_peft(tmp_path, **{setting: value})
    rewrite(folder, **{setting: json.loads(json.dumps(value, default=dataclasses.asdict))})
    seen = json.loads((folder / CONFIG_FILE).read_text())[setting]
    with pytest.raises(CourseError, match=re.escape(f"{setting} = {seen!r}")):
        read_adapter(folder)


def test_a_setting_that_peft_does_not_have_yet(tmp_path: Path) -> None:
    folder = saved_by_peft(tmp_path)
    plain = logits(folder)
    rewrite(folder, use_tomorrow=False, tomorrow_config=None)  # how PEFT writes a method that is not used
    assert torch.equal(logits(folder), plain)
    rewrite(folder, use_tomorrow=True)
    with pytest.raises(CourseError, match="use_tomorrow = True"):
        read_adapter(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("initialisation", ["pissa", "olora"])
def test_a_base_that_changed_converted_by_peft(tmp_path: Path, initialisation: str) -> None:
    """What the refusal advises: PEFT saves the difference as plain LoRA of twice the rank."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=initialisation)
    model = peft.get_peft_model(tiny.model(), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = initialisation
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "done", path_initial_model_for_weight_conversion=tmp_path / "start")
    torch.testing.assert_close(logits(tmp_path / "done"), model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"r": 96}, {"rank_pattern": {"1.self_attn.v_proj": 200}, "use_rslora": True}])
def test_a_rank_above_the_size_of_a_matrix(tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict) -> None:
    folder = saved_by_peft(tmp_path, **settings)
    torch.testing.assert_close(logits(folder), logits_by_peft(folder), rtol=1e-5, atol=1e-5)
    assert "a smaller rank would give the same" in caplog.text
    model = tiny.model()
    put_adapter(model, read_adapter(folder))
    adapters.merge(model)
    torch.testing.assert_close(model(IDS).logits, logits_by_peft(folder), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_computes_as_in_peft(tmp_path: Path, dtype: torch.dtype, base: torch.dtype) -> None:
    folder = saved_by_peft(tmp_path, target_modules="all-linear")
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(folder / WEIGHTS_FILE).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    mine = tiny.model().to(base)
    put_adapter(mine, read_adapter(folder))
    theirs = peft.PeftModel.from_pretrained(tiny.model().to(base), folder).eval()
    tolerance = 1e-6 if base == torch.float32 else 0.0
    torch.testing.assert_close(mine(IDS).logits, theirs(IDS).logits, rtol=0, atol=tolerance)
    assert (mine(IDS).logits - tiny.model().to(base)(IDS).logits).abs().max() > 0.1


@pytest.mark.parametrize("missing", ["r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"])
def test_a_missing_setting_has_pefts_default(tmp_path: Path, missing: str) -> None:
    folder = saved_by_peft(tmp_path, r=8, lora_alpha=5, use_rslora=False)
    settings = json.loads((folder / CONFIG_FILE).read_text())
    del settings[missing]
    (folder / CONFIG_FILE).write_text(json.dumps(settings))
    torch.testing.assert_close(logits(folder), logits_by_peft(folder), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("r", None),
        ("r", "4"),
        ("r", 4.5),
        ("r", -1),
        ("lora_alpha", None),
        ("lora_alpha", "8"),
        ("lora_alpha", [8]),
        ("lora_alpha", float("nan")),
        ("lora_dropout", None),
        ("lora_dropout", "0.1"),
        ("use_rslora", "yes"),
        ("target_modules", 5),
        ("target_modules", ["q_proj", 5]),
        ("rank_pattern", 5),
        ("rank_pattern", {"q_proj": "4"}),
        ("alpha_pattern", {"q_proj": None}),
        ("alpha_pattern", {"q_proj(": 4}),
        ("init_lora_weights", 5),
        ("peft_type", ["LORA"]),
        ("peft_type", "IA3"),
        ("base_model_name_or_path", 5),
    ],
)
def test_odd_values_are_refused_in_one_line(tmp_path: Path, setting: str, value: object) -> None:
    folder = saved_by_peft(tmp_path)
    rewrite(folder, **{setting: value})
    with pytest.raises(CourseError, match=setting if setting != "peft_type" else "describes a") as refused:
        read_adapter(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "null", "{" * 100_000, '{"r": ' + "9" * 5000 + "}", '{"r": "\\ud800"}']
)
def test_files_that_hold_no_settings(tmp_path: Path, text: str) -> None:
    folder = saved_by_peft(tmp_path)
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(CourseError) as refused:
        read_adapter(folder)
    assert "\n" not in str(refused.value)
