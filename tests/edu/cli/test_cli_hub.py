"""The hub on the command line: modules, adapting, sweeps and BIG-Bench Hard as a user types them, on tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import bbh_stand_ins
import hub_modules
import numpy as np
import pytest
import tiny_t5
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from stand_ins import closed_address

from lorahub_edu import results
from lorahub_edu.cli import app
from lorahub_edu.files import assets
from lorahub_edu.hub import zoo
from lorahub_edu.hub.zoo import Card
from lorahub_edu.models import tiny
from lorahub_studies import adapting, zoo_training

Run = Callable[..., tuple[int, str]]
PAIRS = [("cold", "hot"), ("up", "down"), ("old", "new"), ("dear", "cheap"), ("far", "near")]


@pytest.fixture
def lorahub_edu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Run:
    """The command line in this process, which spares each call the seconds of importing torch.

    A problem that is not a CourseError escapes and fails the test, as its traceback would reach a user.
    """
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", closed_address())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv(assets.LOCAL_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    adapting.bench.cache_clear()

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lorahub-edu", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return ended.value.code or 0, "".join(capsys.readouterr()).replace("\n", " ")

    return run


def write_module(folder: Path, seed: int, **options: object) -> Path:
    return hub_modules.write(hub_modules.random_module(tiny.model(), seed, **options), folder)


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """Three modules of the tiny model, without cards."""
    for seed in range(3):
        write_module(tmp_path / "modules", seed)
    return tmp_path / "modules"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's own examples, five to adapt to and two to test on."""
    lines = [{"input": asked, "output": answer} for asked, answer in PAIRS]
    lines += [{"input": "big", "output": "small", "split": "test"}, {"input": "in", "output": "out", "split": "test"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "mine.jsonl"


def add_card(folder: Path) -> None:
    """A card for a module that was not trained here, true as far as `verify` can tell."""
    card = Card(
        task=folder.name, instruction="Say it.", base_model=tiny.NAME, base_model_sha256=None, training_items=8,
        test_items=8, init_seed=0, data_seed=0, rank=4, alpha=8.0, steps=2, learning_rate=5e-3, batch_size=4,
        loss_before=7.0, loss_after=6.5, strict_before=0.0, strict_after=0.25, answer_only_before=0.0,
        answer_only_after=0.5, seconds=1.0, weights_sha256=zoo.sha256_of(folder / "adapter_model.safetensors"),
        device="a test", versions={"torch": "2"}, date="2026-01-01",
    )  # fmt: skip
    results.write_json(folder / zoo.CARD_FILE, card.__dict__)


def test_modules_are_listed_shown_and_verified(lorahub_edu: Run, modules: Path) -> None:
    for name in zoo.names(modules):
        add_card(modules / name)
    code, words = lorahub_edu("zoo", "list", "--folder", modules)
    assert code == 0 and all(name in words for name in ("m0", "m1", "m2")) and "0% → 25%" in words
    code, words = lorahub_edu("zoo", "show", "m1", "--folder", modules)
    assert code == 0 and zoo.card("m1", modules).weights_sha256 in words
    code, words = lorahub_edu("zoo", "show", "m11", "--folder", modules)
    assert code == 1 and "Did you mean 'm1'" in words
    assert lorahub_edu("zoo", "verify", "--folder", modules)[0] == 0
    weights = modules / "m2" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    code, words = lorahub_edu("zoo", "verify", "--folder", modules)
    assert code == 1 and "m2" in words and "not those that the card describes" in words and words.count("sound") == 2
    code, words = lorahub_edu("zoo", "verify", "--folder", modules / "absent")
    assert code == 1 and "There is no module" in words


def test_a_module_is_trained_once(lorahub_edu: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(zoo_training.TRAINING, steps=2, warmup_steps=0, batch_size=4, micro_batch_size=4)
    monkeypatch.setattr(zoo_training, "CARD_ITEMS", 4)
    monkeypatch.setattr(zoo_training, "TRAINING", quick)
    command = ("zoo", "train", "--tasks", "upper", "--profile", "tiny", "--folder", tmp_path / "zoo")
    code, words = lorahub_edu(*command)
    assert code == 0 and "upper" in words and "strict exact match" in words
    assert lorahub_edu("zoo", "verify", "--folder", tmp_path / "zoo")[0] == 0
    code, words = lorahub_edu(*command)
    assert code == 0 and "strict exact match" not in words
    code, words = lorahub_edu("zoo", "train", "--tasks", "uper", "--profile", "tiny", "--folder", tmp_path / "zoo")
    assert code == 1 and "Did you mean 'upper'" in words


def test_adapting_to_ones_own_examples_saves_what_peft_loads(
    lorahub_edu: Run, modules: Path, own: Path, tmp_path: Path
) -> None:
    command = ("adapt", "--task", own, "--modules", modules, "--profile", "tiny", "--budget", 12, "--out", "run")
    code, words = lorahub_edu(*command)
    assert code == 0, words
    for part in ("greedy coordinate search; composition: exact", "12 candidates on 5 examples", "2 items", "run"):
        assert part in words
    loaded = PeftModel.from_pretrained(tiny.model(), str(tmp_path / "run" / "adapter")).eval()
    text = "cold\nOutput:"
    ids = torch.tensor([tiny.tokenizer()(text).input_ids])
    summary = json.loads((tmp_path / "run" / "adapt.json").read_text())
    files = zoo.load([modules])
    update = hub_modules.deltas(files, [summary["weights"][file.path.name] for file in files], "exact")
    expected = hub_modules.merged(tiny.model(), update)(ids).logits.float()
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, expected, atol=1e-3)
    assert not torch.allclose(tiny.model()(ids).logits, expected, atol=1e-2)


def test_an_adapter_is_brought_to_a_rank(lorahub_edu: Run, modules: Path, own: Path, tmp_path: Path) -> None:
    command = ("adapt", "--task", own, "--modules", modules, "--profile", "tiny", "--budget", 9, "--out", "run")
    for asked, rank in ((5, 5), (99, 12)):  # three modules of rank 4 have 12 in all
        code, words = lorahub_edu(*command, "--rank", asked)
        assert code == 0 and f"(rank {rank}, " in words
        settings = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
        assert settings["r"] == rank


def test_a_killed_adaptation_goes_on(lorahub_edu: Run, modules: Path, own: Path, tmp_path: Path) -> None:
    def command(out: str, budget: int = 14) -> tuple[object, ...]:
        named = ("adapt", "--task", own, "--modules", modules, "--profile", "tiny", "--optimizer", "cma")
        return (*named, "--budget", budget, "--out", out)

    assert lorahub_edu(*command("whole"))[0] == 0
    assert lorahub_edu(*command("killed"))[0] == 0
    logs = [file for file in (tmp_path / "killed").iterdir() if file.suffix == ".jsonl"]
    assert len(logs) == 1
    complete = logs[0].read_bytes()
    logs[0].write_bytes(complete[: len(complete) * 2 // 3])  # as a kill leaves it, in the middle of a line
    (tmp_path / "killed" / "adapt.json").unlink()
    assert lorahub_edu(*command("killed"))[0] == 0
    whole, resumed = (json.loads((tmp_path / out / "adapt.json").read_text()) for out in ("whole", "killed"))
    assert resumed["weights"] == whole["weights"] and resumed["evaluations"] == 14
    code, words = lorahub_edu(*command("killed", budget=21))
    assert code == 1 and "killed" in words  # another search


def test_a_single_module_is_enough(lorahub_edu: Run, modules: Path, own: Path) -> None:
    code, words = lorahub_edu(
        "adapt", "--task", own, "--modules", modules / "m1", "--profile", "tiny", "--budget", 6, "--out", "run"
    )
    assert code == 0 and "m1 " in words


def test_a_candidate_that_overflows_is_counted_and_survived(
    lorahub_edu: Run, modules: Path, own: Path, tmp_path: Path
) -> None:
    weights = modules / "m0" / "adapter_model.safetensors"
    save_file({name: tensor * 1e30 for name, tensor in load_file(weights).items()}, weights)
    command = ("adapt", "--task", own, "--profile", "tiny", "--budget", 9)
    code, words = lorahub_edu(*command, "--modules", modules, "--out", "run")
    assert code == 0 and "of them failed" in words
    assert np.isfinite(json.loads((tmp_path / "run" / "adapt.json").read_text())["loss"])
    code, words = lorahub_edu(*command, "--modules", modules / "m0", "--out", "alone", "--optimizer", "random")
    assert code == 1 and "not finite" in words and "zoo verify" in words


def cut_short(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda folder: write_module(folder, 9, rank=2), "their ranks differ, 4 and 2"),
        (lambda folder: write_module(folder, 9, targets=("q_proj",)), "their target modules differ"),
        (lambda folder: write_module(folder, 9, base=("other-llama", None)), "tiny-random-llama (SHA-256"),
        (lambda folder: write_module(folder, 9, dtype=torch.float16), "torch.float32 and torch.float16"),
        (lambda folder: cut_short(write_module(folder, 9)), "cut short"),
        (lambda folder: (write_module(folder, 9) / "adapter_config.json").write_text("{"), "not readable JSON"),
    ],
    ids=["rank", "targets", "base", "dtype", "cut-short", "config"],
)
def test_modules_that_cannot_be_composed(
    lorahub_edu: Run, modules: Path, own: Path, tmp_path: Path, other: Callable[[Path], object], words: str
) -> None:
    other(modules)
    code, said = lorahub_edu(
        "adapt", "--task", own, "--modules", modules, "--profile", "tiny", "--optimizer", "random", "--out", "run"
    )
    assert code == 1 and words in said and "m9" in said
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--task", "mine.jsonl", "--optimizer", "ngopd"), "Did you mean 'ngopt'"),
        (("--task", "mine.jsonl", "--optimizer", "cma", "--budget", "3"), "A budget of 3 is below one generation"),
        (("--task", "mine.jsonl", "--budget", "2"), "too small for the greedy search"),
        (("--task", "mine.jsonl", "--budget", "0"), "'--budget'"),
        (("--task", "mine.jsonl", "--test-items", "-1"), "'--test-items'"),
        (("--task", "mine.jsonl", "--composition", "exakt"), "'--composition'"),
        (("--task", "mine.jsonl", "--rank", "0"), "'--rank'"),
        (("--task", "mine.jsonl", "--base", "flan-t5-lage"), "Did you mean 'flan-t5-large'"),
        (("--task", "mine.jsonl", "--base", tiny_t5.folder()), "self_attn.q_proj, which this model does not have"),
        (("--task", "empty.jsonl"), "has no training item"),
        (("--task", "long.jsonl"), "more than the model's context of 1024"),
        (("--task", "broken.jsonl"), "line 2 is not valid JSON"),
        (("--task", "absent.jsonl"), "missing"),
        (("--task", "gerund_uper"), "Did you mean 'gerund_upper'"),
        (("--task", "bbh/object_count"), "Did you mean 'object_counting'"),
        ((), "Adapt to what?"),
        (("--task", "mine.jsonl", "--modules", "nothing"), "There is no module 'nothing'"),
        (("--task", "mine.jsonl", "--modules", "owner/absent"), "Can't get the module 'owner/absent' from the hub"),
        (("--task", "mine.jsonl", "--folder", "bare", "--modules", ""), "There is no module in bare"),
    ],
)
def test_what_a_user_gets_wrong(
    lorahub_edu: Run, modules: Path, own: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "empty.jsonl").write_text('{"input": "a", "output": "b", "split": "test"}\n')
    (tmp_path / "long.jsonl").write_text(json.dumps({"input": "word " * 2000, "output": "b"}) + "\n")
    (tmp_path / "broken.jsonl").write_text('{"input": "a", "output": "b"}\n{"input": "a", "outp\n')
    given = () if "--modules" in arguments else ("--modules", modules)
    code, said = lorahub_edu("adapt", "--profile", "tiny", "--out", "run", *given, *arguments)
    assert code in (1, 2) and words in said
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_sweep_compares_and_goes_on(
    lorahub_edu: Run, modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("adapt", "sweep", "--targets", "gerund_upper", "--draws", 2, "--modules", modules, "--profile", "tiny")
    command = (*command, "--test-items", 4, "--out", "cells", "--name", "mine")
    code, words = lorahub_edu(*command, "--methods", "zero_shot,average")
    assert code == 0 and words.count("zero-shot: strict") == 2 and "gerund_upper" in words
    written = json.loads((results.folder() / "mine.json").read_text())
    assert len(written["rows"]) == 4 and written["settings"]["draws"] == 2
    measured = []
    measure = adapting.run
    monkeypatch.setattr(adapting, "run", lambda trial: measured.append(trial.method) or measure(trial))
    assert lorahub_edu(*command, "--methods", "zero_shot,single")[0] == 0
    assert measured == ["single", "single"]
    assert lorahub_edu(*command, "--methods", "zero_shot", "--test-items", 5)[0] == 0  # other settings, other rows
    assert measured == ["single", "single", "zero_shot", "zero_shot"]
    code, words = lorahub_edu(*command, "--methods", "singel")
    assert code == 1 and "Did you mean 'single'" in words
    code, words = lorahub_edu(*command, "--draws", 0)
    assert code == 2 and "greater than or equal to 1" in words


def test_bbh_runs_end_to_end_and_goes_on(lorahub_edu: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(assets.LOCAL_VARIABLE, str(bbh_stand_ins.write(tmp_path / "stick", count=20)))
    for file in hub_modules.random_modules(tiny_t5.model(), targets=(".q", ".v"), base=(tiny_t5.NAME, None)):
        hub_modules.write(file, tmp_path / "t5")
    command = ("bbh", "--tasks", "boolean_expressions,object_counting", "--draws", 2, "--profile", "tiny")
    command = (*command, "--methods", "zero_shot,single,average", "--test-items", 4, "--out", "bbh")
    fitting = ("--base", tiny_t5.folder(), "--modules", "t5")
    code, words = lorahub_edu(*command, *fitting)
    assert code == 0 and "trial 12 of 12" in words and "mean of the tasks" in words
    store = tmp_path / "bbh" / "rows.jsonl"
    lines = store.read_text().splitlines(keepends=True)
    assert len(lines) == 12
    written = json.loads((results.folder() / "bbh.json").read_text())
    assert written["settings"]["modules"] == {"0": ["t5"], "1": ["t5"]} and len(written["rows"]) == 12
    one = {"target": "bbh/object_counting", "draw": 1, "method": "single"}
    kept = [line for line in lines if not one.items() <= json.loads(line)["job"].items()]
    store.write_text("".join(kept))
    code, words = lorahub_edu(*command, *fitting)
    assert code == 0 and "11 of 12 trials are measured already" in words and "trial 1 of 1" in words

    code, words = lorahub_edu(*command[:-1], "published")
    assert code == 1 and "modules are on the hub only" in words and "run the same command again" in words
    code, words = lorahub_edu(*command, *fitting, "--tasks", "boolean")
    assert code == 1 and "Did you mean 'boolean_expressions'" in words


def test_as_a_process_a_problem_is_one_message_and_exit_code_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lorahub_edu", "zoo", "show", "upper", "--folder", "absent"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("lorahub-edu: There is no module 'upper' in absent.")
