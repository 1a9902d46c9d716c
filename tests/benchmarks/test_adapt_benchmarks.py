"""The benchmarks of adapting: both sides score alike, time is what ends a search, and the lines have the form."""

from __future__ import annotations

import argparse
import json
import mmap
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from lorahub_edu.hub import adapt as adapt_room
from lorahub_edu.hub.cmaes import default_population
from lorahub_edu.hub.compose import ModuleStack, stack
from lorahub_edu.lora.adapter_files import read_adapter
from lorahub_edu.models import tiny

for package in ("datasets", "lorahub", "nevergrad"):
    pytest.importorskip(package, reason="the benchmarks' peer, the original LoRAHub, needs it")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import adapt_eval  # noqa: E402
import adapt_memory  # noqa: E402
import adapt_quality  # noqa: E402
import common  # noqa: E402
import hub_inputs  # noqa: E402
import peak  # noqa: E402
import render  # noqa: E402

RESULTS = Path(__file__).resolve().parents[2] / "results"
TARGETS = {
    "adapt_eval": {"bfloat16": 6.0, "float32": 2.5, "composing": 12.0},
    "adapt_memory": {"peak_memory": 1.0},
    "adapt_quality": {"auto": 1.0},
}
FIELDS = {"name", "ratios", "ours", "peer", "equal", "versions", "device", "date"}


@pytest.fixture
def last_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., dict]:
    """Runs a benchmark with the tiny model in this process, reads its last line, and renders it for the README."""

    def run(benchmark: ModuleType, **options: int) -> dict:
        words = [f"--{name.replace('_', '-')}={value}" for name, value in {"profile": "tiny", **options}.items()]
        monkeypatch.setattr(sys, "argv", [benchmark.__name__, *words])
        monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)  # what is timed here does not matter
        benchmark.main()
        line = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert line.keys() >= FIELDS and line["name"] == benchmark.__name__
        (tmp_path / f"benchmark_{line['name']}.json").write_text(json.dumps(line), encoding="utf-8")
        monkeypatch.setattr(render.results, "committed_folder", lambda: tmp_path)
        mine = [key for key in render.WORDS if key.startswith(line["name"] + ".")]
        table = render.table().splitlines()
        assert len(table) == 2 + len(mine) > 2
        for key, row in zip(mine, table[2:], strict=True):
            assert f"{line['ratios'][key.partition('.')[2]]:.2f} ×" in row
        return line

    return run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return hub_inputs.save_random_modules("tiny", 3, tmp_path_factory.mktemp("modules"))


@pytest.fixture
def modules(folders: list[Path]) -> ModuleStack:
    return stack([read_adapter(folder) for folder in folders], dtype=torch.float32)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_committed_reached_its_target(name: str) -> None:
    path = RESULTS / f"benchmark_{name}.json"
    if not path.is_file():
        pytest.skip(f"not measured yet: python benchmarks/{name}.py --save")
    line = json.loads(path.read_text(encoding="utf-8"))
    for ratio, least in TARGETS[name].items():
        assert line["ratios"][ratio] >= least, ratio


def test_both_sides_score_and_compose_alike(last_line) -> None:
    line = last_line(adapt_eval, repeats=1, modules=3, population=4, ranked=30)
    assert line["equal"]["losses"] is True and line["equal"]["composed"] is True
    assert 0 < line["equal"]["largest_difference"] <= line["equal"]["tolerance"] == 1e-5
    assert line["ours"]["tokens"] < line["peer"]["tokens"]
    speeds = {**line["ratios"]}
    assert speeds.pop("composing") == pytest.approx(
        line["peer"]["milliseconds"]["composing"] / line["ours"]["milliseconds"]["composing"], rel=0.05
    )
    for name, ratio in speeds.items():  # a single round: its ratio is that of the rates
        mine, theirs = (line[side]["evaluations_per_second"][name] for side in ("ours", "peer"))
        assert ratio == pytest.approx(mine / theirs, rel=0.05)


def test_another_loss_would_be_noticed(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(profile="tiny", modules=3, zoo=str(folders[0].parent), target="last_word_upper")
    sides = adapt_eval.load(options, Path("unused"))
    candidates = adapt_eval.uniform(3, 3, seed=0)
    assert adapt_eval.loss_difference(sides, candidates) <= adapt_eval.TOLERANCE
    sides.modules.flat[0] *= 2
    assert adapt_eval.loss_difference(sides, candidates) > adapt_eval.TOLERANCE


def test_memory_and_growth_have_the_form(last_line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "isolated", lambda _script, variant, options: adapt_memory.measure(variant, options))
    line = last_line(adapt_memory, repeats=1, modules=5, population=4, many=6)
    assert line["peak_gb"].keys() == line["equal"]["times_plain_inference"].keys()
    assert line["milliseconds_a_candidate"].keys() == {
        f"{way}_by_{what}" for way in ("paper", "exact") for what in ("modules", "population")
    }
    assert all(value > 0 for row in line["milliseconds_a_candidate"].values() for value in row.values())
    assert line["many_modules"]["modules"] == 6


@pytest.mark.skipif(not peak.FORGET.exists(), reason="the system can't forget a peak")
def test_a_peak_that_was_forgotten_no_longer_counts() -> None:
    torch.frombuffer(mmap.mmap(-1, 400_000_000), dtype=torch.uint8).fill_(1)  # freed at once; malloc may keep pages
    before = peak.gigabytes()
    peak.forget()
    assert peak.gigabytes() < before - 0.3
    torch.frombuffer(mmap.mmap(-1, 200_000_000), dtype=torch.uint8).fill_(1)
    assert peak.gigabytes() > before - 0.3


def test_a_peak_is_not_that_of_the_process_that_started_it() -> None:
    assert peak.gigabytes() > 0.2  # torch is loaded here, and not there
    child = [sys.executable, "-c", "import peak; print(peak.gigabytes())"]
    done = subprocess.run(child, cwd=Path(peak.__file__).parent, capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 0.1


def test_quality_judges_every_search_on_every_target(last_line) -> None:
    line = last_line(adapt_quality, targets=2, modules=3, steps=20)
    assert len(line["losses"]) == 2
    for losses, spent in zip(line["losses"].values(), line["spent"].values(), strict=True):
        assert losses.keys() == spent.keys() == {"original", "auto", "cma"}
        assert spent["original"]["evaluations"] == 20
    gains = [row["original"] - row["auto"] for row in line["losses"].values()]
    assert line["median_gain"]["auto"] == pytest.approx(np.median(gains), abs=1e-3)


def test_a_search_ends_with_its_time_and_what_came_later_does_not_count(
    modules: ModuleStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that moves a second a batch: of batches of three, those after the fourth second are left out."""
    ticks = iter(range(1000))
    monkeypatch.setattr(adapt_room.time, "perf_counter", lambda: float(next(ticks)))
    seen = []
    real = adapt_quality.adapt

    def watched(*arguments: object, on_batch: Callable, **options: object) -> object:
        return real(*arguments, on_batch=lambda history: (seen.append(history), on_batch(history)), **options)

    monkeypatch.setattr(adapt_quality, "adapt", watched)
    rows = hub_inputs.examples(tiny.tokenizer(), "superlative").rows
    found = adapt_quality.within(tiny.model(), modules, rows, "greedy", 4.5, seed=0)
    history = seen[-1]
    counted = history.seconds <= 4.5
    assert history.seconds[-1] == 5.0 and not counted.all()
    assert found.evaluations == counted.sum() and found.seconds == 4.0
    np.testing.assert_array_equal(found.weights, history.weights[counted][history.objectives[counted].argmin()])


def test_random_modules_are_the_same_each_time_and_do_something(folders: list[Path], tmp_path: Path) -> None:
    again = hub_inputs.save_random_modules("tiny", 2, tmp_path)
    for old, new in zip(folders, again, strict=False):
        first, second = read_adapter(old).weights, read_adapter(new).weights
        assert all(torch.equal(a, b) for site in first for a, b in zip(first[site], second[site], strict=True))
    A, B = next(iter(read_adapter(folders[0]).weights.values()))
    other, _ = next(iter(read_adapter(folders[1]).weights.values()))
    assert (B @ A).abs().max() > 0 and not torch.equal(A, other)


def test_too_few_modules_are_refused(folders: list[Path], tmp_path: Path) -> None:
    given = str(folders[0].parent)
    assert hub_inputs.module_folders("tiny", 2, given, tmp_path) == (folders[:2], "modules of the zoo")
    with pytest.raises(SystemExit, match="holds 3 modules, fewer than 4"):
        hub_inputs.module_folders("tiny", 4, given, tmp_path)


def test_time_of_the_first_batch_is_allowed(modules: ModuleStack) -> None:
    rows = hub_inputs.examples(tiny.tokenizer(), "superlative").rows
    found = adapt_quality.within(tiny.model(), modules, rows, "cma", 0.0, seed=0)
    assert found.evaluations == default_population(3)
