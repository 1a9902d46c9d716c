"""Recipes: what they fix, what they are predicted to take, their small twins, and every way to write one wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import yaml
from typer.testing import CliRunner

from lorahub_edu import results
from lorahub_edu.cli import app
from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapter_files
from lorahub_edu.memory.shapes import read_config
from lorahub_edu.models import pretrained, tiny
from lorahub_edu.models.profiles import PROFILES
from lorahub_edu.runs import finetune, recipes

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))

import predict_recipes  # noqa: E402

LORA_7B = "llama_7b_lora_alpaca"
SHIPPED = (
    "llama_2_7b_lora_alpaca", "llama_3_8b_lora_alpaca", "llama_7b_adapter_alpaca",
    LORA_7B, "llama_7b_lora_dolly", "llama_7b_qlora_12gb",
)  # fmt: skip


def written(folder: Path, change: Callable[[dict], object], recipe: str = LORA_7B) -> Path:
    """A copy of a shipped recipe with something changed."""
    content = yaml.safe_load(recipes.find(recipe).read_text(encoding="utf-8"))
    change(content)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_shipped_recipes() -> None:
    assert recipes.names() == sorted(SHIPPED)
    assert recipes.find("llama_7b_lora_alpaca.yaml") == recipes.find(LORA_7B)


def test_loras_recipe_is_the_sources_run() -> None:
    """Raschka 2023's LoRA listing, which the gpu24 profile holds too (see test_house)."""
    found = recipes.read(LORA_7B)
    assert replace(found.profile, revision="") == PROFILES["gpu24"]
    assert (found.method, found.rows, found.profile.schedule, found.card_gb) == ("lora", "alpaca-52k", "linear", 24.0)


def test_llama_adapters_recipe_is_the_sources_run() -> None:
    """The listing beside it: rate 9e-3, weight decay 0.02, a warm-up of 50,000 x 2 // 4 iterations of 4 rows."""
    found = recipes.read("llama_7b_adapter_alpaca")
    profile = found.profile
    assert (profile.learning_rate, profile.weight_decay, profile.batch_size) == (9e-3, 0.02, 128)
    assert profile.warmup_steps == (50_000 * 2 // 4) * 4 // 128
    assert profile.train_steps * 128 // 4 == 62_400
    assert (found.method, found.settings["length"]) == ("llama_adapter", 10)


def test_predictions_in_the_files_are_the_planners() -> None:
    """Written by tools/predict_recipes.py; runs that take the same are predicted once."""
    figures = {}
    for name in SHIPPED:
        found = recipes.read(name)
        profile = found.profile
        sizes = profile.micro_batch_size, profile.block_size, profile.gradient_checkpointing, profile.dtype
        shape = read_config(profile.base_model).to_json_string()
        same = (shape, sizes, found.method, str(found.settings), found.card_gb)
        figures.setdefault(same, predict_recipes.prediction(recipes.planned(found)))
        assert dict(found.prediction) == pytest.approx(figures[same], abs=0.05), name
        assert found.prediction["room_gb"] > 1, f"{name} must fit its card"


def test_writing_a_prediction_leaves_the_rest_of_the_file(tmp_path: Path) -> None:
    def small(content: dict) -> None:
        content["model"] = {"name": tiny.NAME, "dtype": "float32"}
        content["prediction"] = {"needed_gb": 99.0}

    path = written(tmp_path, small)
    path.write_text("# a note that stays\n" + path.read_text())
    predict_recipes.write_prediction(path)
    assert path.read_text().startswith("# a note that stays\n")
    needed = recipes.read(path).prediction["needed_gb"]
    assert 0 < needed < 1
    assert predict_recipes.write_prediction(path).read_text().count("prediction:") == 1


def test_a_twin_keeps_the_method_and_takes_the_profiles_sizes() -> None:
    found = recipes.twin(recipes.read("llama_7b_qlora_12gb"), "cpu")
    small = PROFILES["cpu"]
    assert found.profile.base_model == small.base_model and found.profile.train_steps == small.train_steps
    assert found.profile.target_modules == recipes.read("llama_7b_qlora_12gb").profile.target_modules
    assert (found.method, found.profile.learning_rate, found.profile.gradient_checkpointing) == ("qlora", 1e-3, True)
    lora = recipes.twin(recipes.read(LORA_7B), "tiny")
    for gated in ("llama_2_7b_lora_alpaca", "llama_3_8b_lora_alpaca", "llama_7b_lora_dolly"):
        other = recipes.twin(recipes.read(gated), "tiny")
        assert replace(other, name=lora.name, prediction=lora.prediction) == lora
    assert recipes.twin(recipes.read(LORA_7B), "gpu24") == recipes.read(LORA_7B)


@pytest.mark.parametrize("name", [LORA_7B, "llama_7b_adapter_alpaca", "llama_7b_qlora_12gb"])
def test_small_twins_train_and_peft_loads_what_they_save(name: str, tmp_path: Path) -> None:
    done = recipes.run(name, "tiny", {"train_steps": 2}, out=tmp_path, progress=False)
    assert done.training.steps == 2 and done.loss_after < done.loss_before
    model = peft.PeftModel.from_pretrained(tiny.model(), done.adapter).eval()
    ids = torch.arange(10, 30)[None]
    assert not torch.allclose(model(ids).logits, tiny.model()(ids).logits)


def test_llama_adapter_packs_rows_as_it_pads_them(tmp_path: Path) -> None:
    losses = [
        recipes.run(
            "llama_7b_adapter_alpaca",
            "tiny",
            {"train_steps": 2, "batching": batching},
            out=tmp_path / batching,
            progress=False,
        ).training.losses
        for batching in ("packed", "padded")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_recipe_on_its_own_card_says_what_it_takes(tmp_path: Path, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(pretrained, "check_device", lambda _profile: None)
    monkeypatch.setattr(finetune, "finetune", lambda *_arguments, **_more: None)
    recipes.run(LORA_7B, out=tmp_path, progress=False, report=said.append)
    needed = recipes.read(LORA_7B).prediction["needed_gb"]
    assert said[0].startswith(f"{LORA_7B}: about {needed:.1f} GB") and "24 GB card" in said[0]


def section(name: str, /, **values: object) -> Callable[[dict], object]:
    return lambda content: content[name].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(modle={}), "unknown key 'modle'. Did you mean 'model'"),
        (lambda c: c.pop("model"), "model is missing"),
        (lambda c: c.pop("data"), "data is missing"),
        (lambda c: c.pop("method"), "method is missing"),
        (lambda c: c.pop("about"), "about is missing"),
        (section("model", name="open_lama_7b_v2"), "no base model 'open_lama_7b_v2'.*Did you mean 'open_llama_7b_v2'"),
        (section("model", name="flan-t5-large"), "an encoder-decoder, which `train` does not train"),
        (section("model", dtype="bf16"), "model.dtype must be 'float32', 'bfloat16' or 'float16', but it is 'bf16'"),
        (section("data", rows="alpacca"), "neither a set of rows nor a file.*Did you mean 'alpaca'"),
        (section("schedule", learning_rate=True), "schedule.learning_rate must be a number, but it is True"),
        (section("method", alpha=False), "method.alpha must be a number, but it is False"),
        (section("data", block=0), "data.block must be greater than or equal to 1, but it is 0"),
        (section("data", validation=-1), "data.validation must be greater than or equal to 0, but it is -1"),
        (section("data", bloc=512), "data has an unknown key 'bloc'. Did you mean 'block'"),
        (section("method", name="lorra"), "no method 'lorra'. Did you mean 'lora'"),
        (section("method", rnak=8), "LoRA has no setting 'rnak'. Did you mean 'rank'"),
        (section("method", rank=0), "rank of LoRA must be a whole number of at least 1, but it is 0"),
        (section("method", alpha=-2), "method.alpha must be greater than 0, but it is -2"),
        (section("method", dropout=1.0), "method.dropout must be less than 1, but it is 1.0"),
        (section("method", target_modules=3), "method.target_modules.*, but it is 3"),
        (
            section("schedule", learning_rate="fast"),
            "schedule.learning_rate must be a valid number.*, but it is 'fast'",
        ),
        (section("schedule", learning_rate=0), "schedule.learning_rate must be greater than 0"),
        (section("schedule", steps=-5), "schedule.steps must be greater than or equal to 1, but it is -5"),
        (section("schedule", steps=1.5), "schedule.steps must be a valid integer, but it is 1.5"),
        (section("schedule", decay="lineer"), "schedule.decay must be 'linear', .*, but it is 'lineer'"),
        (section("schedule", gradient_checkpointing="yes please"), "must be a valid boolean, but it is 'yes please'"),
        (lambda c: c.update(card_gb=0), "card_gb must be greater than 0, but it is 0"),
    ],
)
def test_what_can_be_wrong_in_a_recipe(change: Callable[[dict], object], words: str, tmp_path: Path) -> None:
    path = written(tmp_path, change)
    with pytest.raises(CourseError, match=f"mine.yaml: .*{words}"):
        recipes.read(path)


def test_what_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="no recipe 'llama_7b_lora_alpacca'.*'llama_7b_lora_alpaca'"):
        recipes.find("llama_7b_lora_alpacca")
    path = tmp_path / "broken.yaml"
    path.write_text("model: [unclosed")
    with pytest.raises(CourseError, match="not readable YAML"):
        recipes.read(path)
    path.write_text("just words")
    with pytest.raises(CourseError, match="the recipe must be a valid dictionary"):
        recipes.read(path)
    with pytest.raises(CourseError, match="no profile 'cpuu'.*'cpu'"):
        recipes.run(LORA_7B, "cpuu", out=tmp_path, progress=False)


def test_twins_that_have_run_for_real() -> None:
    """What benchmarks/recipe_twins.py wrote belongs to recipes as they are now."""
    line = json.loads((results.committed_folder() / "recipe_twins.json").read_text(encoding="utf-8"))
    assert line["twins"] and set(line["twins"]) <= set(SHIPPED)
    for name, run in line["twins"].items():
        small = recipes.twin(recipes.read(name), line["profile"])
        assert (run["model"], run["method"]) == (small.profile.base_model, small.method)
        assert abs(run["loss_after"] - run["loss_before"]) < 1 and run["adapter_mb"] > 0
        assert run["steps"]


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user typed reaches the run; a change that a recipe does not take is refused."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    done = runner.invoke(
        app.app, ["train", LORA_7B, "-p", "tiny", "--steps", "1", "--seed", "3", "--out", str(tmp_path / "run")]
    )
    assert done.exit_code == 0 and "after 1 steps" in done.stdout
    assert adapter_files.read_adapter(tmp_path / "run" / "adapter").base_model == tiny.NAME
    wrong = runner.invoke(app.app, ["train", "llama_7b_qlora_12gb", "-p", "tiny", "--rank", "4"])
    assert isinstance(wrong.exception, CourseError) and "rank=4 is for lora" in str(wrong.exception)
    wrong = runner.invoke(app.app, ["export-llamafactory", LORA_7B, "-p", "tiny", "--out", str(tmp_path / "there")])
    assert isinstance(wrong.exception, CourseError) and not (tmp_path / "there").exists()


def test_a_rate_written_as_yaml_does_not_want_it_is_still_a_number(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(recipes.find(LORA_7B).read_text().replace("3.0e-4", "3e-4"))
    assert recipes.read(path).profile.learning_rate == 3e-4
