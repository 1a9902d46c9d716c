"""`lorahub-edu intruders` as a user types it, on tiny models and on a module of the zoo."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import peft_modules
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lorahub_edu.cli.app import app
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.hub import zoo
from lorahub_edu.hub.compose import compose, stack
from lorahub_edu.lora import adapter_files
from lorahub_edu.models import pretrained, profiles, tiny
from lorahub_edu.spectra import intruders, measures


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setenv(profiles.ENVIRONMENT_VARIABLE, "tiny")  # PEFT names no base for a model that came from no file


@pytest.fixture
def by_peft(tmp_path: Path) -> Path:
    targets = ("q_proj", "down_proj")
    return peft_modules.save_modules(tiny.model, tmp_path / "modules", count=1, targets=targets, std=0.2)[0]


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["intruders", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def counted_by_hand(folder: Path, k: int, epsilon: float) -> dict[str, int]:
    """The definition, on the weights that PEFT merges."""
    before = tiny.model().state_dict()
    merged = peft.PeftModel.from_pretrained(tiny.model().double(), folder).merge_and_unload().state_dict()
    names = [name for name in before if name.endswith(("q_proj.weight", "down_proj.weight"))]
    return {
        name.removesuffix(".weight"): measures.intruder_count(before[name], merged[name], k, epsilon) for name in names
    }


def test_an_adapter_of_pefts_making(by_peft: Path, tmp_path: Path) -> None:
    shown = run(by_peft, "--epsilon", "0.5,0.8", "--k", 8, "--out", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    expected = {epsilon: counted_by_hand(by_peft, 8, epsilon) for epsilon in (0.5, 0.8)}
    assert {row["name"]: row["intruders"][0] for row in rows} == expected[0.5]
    assert {row["name"]: row["intruders"][1] for row in rows} == expected[0.8]
    assert sum(expected[0.5].values()) > 0
    assert f"ε = 0.5: {sum(expected[0.5].values())} intruder dimensions" in shown
    assert "8 matrices" in shown
    assert "8 spectra of the base, now kept" in shown
    again = run("--k", 8, by_peft)  # options may come first
    assert "now kept" not in again
    assert f"ε = 0.5: {sum(expected[0.5].values())} intruder dimensions" in again


def test_a_checkpoint_on_its_base(tmp_path: Path) -> None:
    tuned = tiny.model()
    with torch.no_grad():
        w = tuned.model.layers[2].mlp.up_proj.weight
        spike = torch.linalg.svdvals(w)[0] * 3 / (w.shape[0] * w.shape[1]) ** 0.5
        w += spike * torch.sign(torch.randn(w.shape[0], 1)) @ torch.sign(torch.randn(1, w.shape[1]))
    tuned.save_pretrained(tmp_path / "tuned")
    shown = run(tmp_path / "tuned", "--profile", "tiny", "--epsilon", 0.5)
    assert "28 matrices" in shown
    assert "ε = 0.5: 1 intruder dimension, in 1 matrix" in shown
    assert "27 unchanged" in shown
    tiny.model().save_pretrained(tmp_path / "same")
    assert "The update is zero" in run(tmp_path / "same", "--base", tiny.NAME)


def test_intruders_made_weaker_are_saved_as_an_adapter(by_peft: Path, tmp_path: Path) -> None:
    before = sum(counted_by_hand(by_peft, 10, 0.5).values())
    shown = run("scale", by_peft, "--out", tmp_path / "without", "--factor", 0)
    assert "ranks 8" in shown  # 4, and one for each intruder
    assert sum(counted_by_hand(tmp_path / "without", 10, 0.5).values()) < before
    run("scale", by_peft, "--out", tmp_path / "shrunk", "--factor", 0.5, "--part", "update")
    file, shrunk = (adapter_files.read_adapter(where) for where in (by_peft, tmp_path / "shrunk"))
    name = next(iter(file.configs))
    assert shrunk.configs[name].scaling == 0.5 * file.configs[name].scaling


def test_what_is_wrong_is_said(by_peft: Path, tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="'pastt'.*Did you mean 'past'"):
        run("pastt")
    with pytest.raises(CourseError, match="'half'"):
        run(by_peft, "--epsilon", "half")
    with pytest.raises(CourseError, match="between 0 and 1"):
        run(by_peft, "--epsilon", "1.2")
    with pytest.raises(CourseError, match="k of at most 128"):
        run(by_peft, "--k", "500")
    weights = load_file(by_peft / adapter_files.WEIGHTS_FILE)
    key = next(key for key in weights if "lora_A" in key)
    weights[key][0, 0] = float("nan")
    save_file(weights, by_peft / adapter_files.WEIGHTS_FILE)
    with pytest.raises(CourseError, match="A holds 1 NaN"):
        run(by_peft)
    settings = json.loads((by_peft / adapter_files.CONFIG_FILE).read_text())
    settings["base_model_name_or_path"] = "someone/else-7b"
    (by_peft / adapter_files.CONFIG_FILE).write_text(json.dumps(settings))
    with pytest.raises(CourseError, match="someone/else-7b.*--base"):
        run(by_peft)
    if not torch.cuda.is_available():
        with pytest.raises(CourseError, match="--device cpu"):
            run(by_peft, "--device", "cuda")


def test_places_of_matrices_in_both_kinds_of_models() -> None:
    assert intruders.matrix_place("model.layers.12.self_attn.q_proj") == ("model.layers", 12, "self_attn.q_proj")
    assert intruders.matrix_place("decoder.block.3.layer.1.EncDecAttention.k") == (
        "decoder.block",
        3,
        "layer.1.EncDecAttention.k",
    )


@pytest.mark.real
def test_a_module_of_the_zoo_and_a_composed_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(assets.HOME_VARIABLE)
    monkeypatch.delenv(profiles.ENVIRONMENT_VARIABLE)
    if not pretrained.is_prepared("SmolLM2-135M-Instruct"):
        pytest.skip("the real model is not here: run make setup")
    shown = run("past")
    assert "past on SmolLM2-135M-Instruct" in shown
    strong = compose(stack(zoo.load(["past", "plural", "gerund"])), [1.5, 1.5, 1.5], "exact")
    adapter_files.write_adapter(strong, tmp_path / "composed")
    rows = tmp_path / "rows.json"
    assert "on SmolLM2-135M-Instruct" in run(tmp_path / "composed", "--out", rows)
    assert {row["decided"] for row in json.loads(rows.read_text())} <= {"certified", "decomposed", "two SVDs"}
