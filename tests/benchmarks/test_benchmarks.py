"""Benchmarks print one JSON line of the agreed form, what is committed reached its target, and a page quotes it."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
FIELDS = {"name", "ratios", "ours", "peer", "equal", "versions", "device", "date"}

import common  # noqa: E402
import render  # noqa: E402


def committed(name: str) -> dict:
    return json.loads((ROOT / "results" / f"benchmark_{name}.json").read_text(encoding="utf-8"))


COMMITTED = sorted(path.stem.removeprefix("benchmark_") for path in (ROOT / "results").glob("benchmark_*.json"))


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_lines_have_the_form_and_equal_results(name: str) -> None:
    line = committed(name)
    assert line.keys() >= FIELDS and line["name"] == name
    flags = [value for value in line["equal"].values() if isinstance(value, bool)]
    assert flags and all(flags), "results agree within the stated tolerance"


def test_the_last_line_is_the_json_object(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/lora_layer.py", "--repeats", "1"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line.keys() >= FIELDS and line["equal"]["outputs_and_gradients"] is True
    assert line["ratios"].keys() == committed("lora_layer")["ratios"].keys()
    for key, ratio in line["ratios"].items():
        assert ratio == pytest.approx(line["peer"]["milliseconds"][key] / line["ours"]["milliseconds"][key], rel=0.05)


def test_a_page_quotes_the_committed_lines() -> None:
    text = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
    assert render.render(text) == text, "run python benchmarks/render.py"
    assert render.render(text, render.architectures(), *render.ARCHITECTURES) == text, "run python benchmarks/render.py"
    assert render.render(text, render.panels(), *render.PANELS) == text, "run python benchmarks/render.py"
    scale = render.SCALE.read_text(encoding="utf-8")
    assert render.render(scale, render.zoo(), *render.ZOOS) == scale, "run python benchmarks/render.py"
    assert render.render(scale, render.plans(), *render.PLANS) == scale, "run python benchmarks/render.py"
    assert f"{committed('train_step')['ratios']['tokens_per_second']:.2f} ×" in text


def test_no_committed_matrix_was_proven_wrong_and_a_page_quotes_them() -> None:
    found = json.loads((ROOT / "results" / "certificate.json").read_text(encoding="utf-8"))
    assert found["matrices"] >= 5000
    for flaw in ("wrong", "proven_though_tied", "bounds_broken", "refused_though_counted", "two_svds_differ"):
        assert found[flaw] == 0, flaw
    text = render.MEASURED.read_text(encoding="utf-8")
    assert render.render(text, render.certificate(), *render.CERTIFICATE) == text, "run python benchmarks/render.py"


QUICK = ("adapt_eval", "grading", "intruders", "train_step")


@pytest.mark.parametrize("name", QUICK)
def test_the_four_main_benchmarks_have_a_quick_form_that_is_not_saved(name: str, monkeypatch, capsys) -> None:
    pytest.importorskip({"adapt_eval": "datasets"}.get(name, "torch"), reason="make bench installs the peers")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", "--quick", "--save"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert ended.value.code == 2 and "a quick run is not saved" in capsys.readouterr().err


def test_a_quick_run_takes_its_own_settings_and_a_named_one_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--quick", "--steps=5"])
    options = common.arguments("x", {"repeats": 1, "steps": 2}, repeats=3, steps=9, block_size=512)
    assert (options.repeats, options.steps, options.block_size) == (1, 5, 512)


def test_variants_take_turns_within_each_round() -> None:
    order = []
    common.interleaved(("a", "b"), 3, lambda variant: order.append(variant) or {"x": 1.0})
    assert order == ["a", "b"] * 3
    assert common.median_of([{"x": 3.0}, {"x": 1.0}, {"x": 2.0}], "x") == 2.0
