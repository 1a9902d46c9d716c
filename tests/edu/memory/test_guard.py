"""Runs that would not fit are refused before they load anything; those that run out of memory end in advice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from memory_runs import LORA

from lorahub_edu.errors import CourseError
from lorahub_edu.memory import setting as guard
from lorahub_edu.memory.plan import GIB, KINDS, MIB
from lorahub_edu.memory.setting import Setting, available_memory, is_out_of_memory, memory_watched
from lorahub_edu.models import pretrained, tiny
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.runs import finetune

SETTING = Setting(lora=LORA, micro_batch=4, block=128, device="cuda")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """A GPU that is not there, with as much memory as a test gives it."""

    def give(bytes_: int) -> None:
        monkeypatch.setattr(guard, "available_memory", lambda _device: bytes_)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    return give


def test_a_run_that_fits_passes(gpu) -> None:
    gpu(GIB)
    with memory_watched(tiny.NAME, SETTING, "cuda"):
        ran = True
    assert ran


def test_a_run_that_does_not_fit_is_refused_with_advice(gpu) -> None:
    gpu(150 * MIB)
    with pytest.raises(CourseError) as refused, memory_watched(tiny.NAME, SETTING, "cuda", override="--anyway"):
        pytest.fail("it ran")
    words = str(refused.value)
    assert "needs about 0.2 GB, and 0.2 GB are free on this GPU" in words
    assert "To try it all the same: --anyway." in words and ("Cheapest change" in words or "No change" in words)
    with memory_watched(tiny.NAME, SETTING, "cuda", anyway=True):
        pass


def test_finetune_asks_before_it_loads(gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu(24 * GIB)
    loaded = []
    monkeypatch.setattr(
        pretrained, "load", lambda *_a, **_k: loaded.append(1) or (_ for _ in ()).throw(CourseError("far"))
    )
    profile = replace(get_profile("gpu24"), train_rows=32, validation_rows=8)
    tight = {"micro_batch_size": 8, "gradient_checkpointing": False}
    with pytest.raises(CourseError, match=r"open_llama_7b_v2.*Cheapest change.*--micro-batch 4\b.*--anyway"):
        finetune.finetune(profile, tight, out=tmp_path, progress=False, data=_rows(tmp_path))
    assert not loaded
    with pytest.raises(CourseError, match="far"):
        finetune.finetune(profile, out=tmp_path, progress=False, data=_rows(tmp_path))
    with pytest.raises(CourseError, match="far"):
        finetune.finetune(profile, tight, out=tmp_path, progress=False, data=_rows(tmp_path), anyway=True)
    assert len(loaded) == 2


def _rows(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n' * 48)
    return path


def test_advice_of_train_names_only_its_own_options() -> None:
    import inspect

    from lorahub_edu.cli import training

    options = set(inspect.signature(training.train).parameters)
    assert {"micro_batch", "checkpointing", "block", "anyway"} <= options and {"optimizer", "base"} <= set(KINDS)
    assert not {"optimizer", "base"} & options


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 400 bytes."),
        MemoryError(),
    ],
)
def test_running_out_of_memory_ends_in_advice(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    assert is_out_of_memory(error)
    monkeypatch.setattr(guard, "available_memory", lambda _device: GIB)
    setting = replace(SETTING, device="cpu", dtype="float32", micro_batch=32, block=512)
    with pytest.raises(CourseError) as answered, memory_watched(tiny.NAME, setting, "cpu"):
        raise error
    words = str(answered.value)
    assert "Out of memory: tiny-random-llama" in words and "had expected" in words and "--micro-batch 16" in words
    assert answered.value.__cause__ is error


def test_torch_says_it_so_on_this_machine() -> None:
    """An absurd request fails at once; its words are those that are looked for."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60)
    assert is_out_of_memory(error.value)


def test_other_errors_pass_through() -> None:
    for error in (RuntimeError("shape mismatch"), CourseError("wrong"), KeyboardInterrupt()):
        assert not is_out_of_memory(error)
        with pytest.raises(type(error)), memory_watched(tiny.NAME, replace(SETTING, device="cpu"), "cpu"):
            raise error


def test_finetune_answers_a_cpu_that_runs_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(finetune, "train", fail)
    with pytest.raises(CourseError, match=r"Out of memory: tiny-random-llama.*--micro-batch [12]\b"):
        finetune.finetune("tiny", out=tmp_path, progress=False)


def test_what_is_available() -> None:
    assert 0 < available_memory("cpu") <= psutil.virtual_memory().total


def test_what_a_gpu_can_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory and what torch holds unused, but no more than this process was allowed."""
    for name, value in (
        ("mem_get_info", (10, 100)),
        ("memory_reserved", 8),
        ("memory_allocated", 3),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    for fraction, wanted in ((1.0, 15), (0.1, 7)):
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _device, f=fraction: f)
        assert available_memory("cuda") == wanted
