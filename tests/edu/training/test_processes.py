"""One run in two processes: the same losses and the same weights as in one, at the same batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from lorahub_edu.lora.adapter_files import read_adapter
from lorahub_edu.runs import recipes
from lorahub_edu.training import processes

TRAIN = ["-m", "lorahub_edu", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 7B's recipe without dropout, which every process draws for itself."""
    content = yaml.safe_load(recipes.find("llama_7b_lora_alpaca").read_text(encoding="utf-8"))
    content["method"]["dropout"] = 0.0
    path = tmp_path_factory.mktemp("recipe") / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def launched(launcher: list[str], recipe: Path, out: Path, *more: str) -> list[float]:
    """The losses of a run of the recipe's small twin, from its log."""
    command = [*launcher, *TRAIN, str(recipe), "--profile", "tiny", "--steps", "3", "--out", str(out), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("Validation loss") == 1  # one process speaks
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def test_two_processes_train_what_one_does(recipe: Path, tmp_path: Path) -> None:
    one = launched([sys.executable], recipe, tmp_path / "one")
    two = launched(TORCHRUN, recipe, tmp_path / "two")
    assert len(one) == 3 and two == pytest.approx(one, rel=1e-5)
    mine, theirs = (read_adapter(tmp_path / name / "adapter").weights for name in ("one", "two"))
    for site, pair in mine.items():
        for tensor, other in zip(pair, theirs[site], strict=True):
            torch.testing.assert_close(tensor, other, rtol=1e-3, atol=2e-5)


def test_accelerate_launches_it_too(recipe: Path, tmp_path: Path) -> None:
    """On a machine without a GPU its launcher is told so; the processes then speak over gloo."""
    one = launched([sys.executable], recipe, tmp_path / "one", "--seed", "1")
    assert launched(ACCELERATE, recipe, tmp_path / "two", "--seed", "1") == pytest.approx(one, rel=1e-5)


def test_one_process_is_left_alone() -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.arange(3.0)
    with processes.started("cpu"), processes.first_goes_first():
        assert (processes.count(), processes.number(), processes.is_first()) == (1, 0, True)
        assert processes.add_up([parameter], 2.5) == processes.from_first(2.5) == 2.5
        assert processes.any_of(True) and not processes.any_of(False)
    assert torch.equal(parameter.grad, torch.arange(3.0))


WORKER = """
import torch
from torch import nn
from lorahub_edu.training import processes
with processes.started("cpu"):
    me = processes.number()
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    a.grad = torch.tensor([1.0, 10.0]) * (me + 1)
    if me == 1:
        b.grad = torch.ones(2)  # a parameter that the other process did not reach
    assert processes.add_up([a, b], 0.5 + me) == 2.0
    assert a.grad.tolist() == [3.0, 30.0] and b.grad.tolist() == [1.0, 1.0]
    assert processes.any_of(me == 1) and not processes.any_of(False)
    assert processes.from_first(float(me + 7)) == 7.0
    with processes.first_goes_first():
        with open("order", "a") as file:
            file.write(str(me))
assert processes.count() == 1
"""


def test_sums_and_turns_of_two_processes(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    done = subprocess.run(
        [*TORCHRUN, "worker.py"], capture_output=True, text=True, timeout=200, cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(processes.__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "order").read_text() == "01"
