"""The doctor answers every question in one line and never faints."""

from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lorahub_edu.cli import doctor
from lorahub_edu.cli.doctor import Check, all_required_ok, diagnose, render
from lorahub_edu.files import assets
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.results import Finding
from lorahub_edu.show import findings, progress

NAMES = ["Python", "Device", "Speed", "Free memory", "Free disk", "Model", "Data", "Course"]
NAMES += ["Hugging Face hub", "Package index", "Sandbox"]


@pytest.fixture(autouse=True)
def quiet_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no network, no sandbox, plenty of memory and disk."""
    monkeypatch.delenv("LORAHUB_EDU_LOCAL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LORAHUB_EDU_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", closed)
    monkeypatch.setenv("LORAHUB_EDU_INDEX", closed + "/simple")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64e9))
    monkeypatch.setattr(doctor, "_container_memory", lambda: 64e9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100e9))
    monkeypatch.setattr(pretrained, "is_prepared", lambda name: False)
    monkeypatch.setattr(findings, "yardstick_seconds", lambda: 3.0)
    return tmp_path / "home"


def answers(profile: str) -> dict[str, Check]:
    checks = diagnose(profile)
    assert [check.name for check in checks] == NAMES
    return {check.name: check for check in checks}


def test_tiny_needs_neither_files_nor_network() -> None:
    checks = answers("tiny")
    assert all_required_ok(checks.values())
    assert not checks["Model"].required and not checks["Data"].required
    assert not checks["Hugging Face hub"].ok and not checks["Package index"].ok and not checks["Sandbox"].ok


def test_cpu_without_files_says_what_to_type() -> None:
    checks = answers("cpu")
    assert not all_required_ok(checks.values())
    failed = {name for name, check in checks.items() if check.required and not check.ok}
    assert failed == {"Model", "Data"}
    assert checks["Model"].advice == checks["Data"].advice == "lorahub-edu fetch --profile cpu"
    assert "the file is not there" in checks["Model"].detail


def test_files_that_are_right_and_a_damaged_one(quiet_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = assets.search
    rows = assets.ASSETS["alpaca"].editions
    monkeypatch.setattr(assets, "search", lambda editions: (Path("rows"), []) if editions == rows else search(editions))
    file = quiet_machine / "files" / assets.ASSETS["SmolLM2-135M-Instruct"].editions[0].filename
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half")
    checks = answers("cpu")
    assert checks["Data"].ok and "intact" in checks["Data"].detail
    assert not checks["Model"].ok and f"{file.name} has 4 bytes" in checks["Model"].detail


def test_a_converted_model_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "is_prepared", lambda name: name == "SmolLM2-135M-Instruct")
    assert answers("cpu")["Model"].ok


def test_too_little_memory_and_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3.5e9))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1.5e9))
    checks, tiny = answers("cpu"), answers("tiny")
    assert not checks["Free memory"].ok and "3.5 GB (about 4 GB needed)" in checks["Free memory"].detail
    assert not checks["Free disk"].ok and "1.5 GB" in checks["Free disk"].detail
    assert tiny["Free memory"].ok and tiny["Free disk"].ok


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name, text in (
        ("memory.max", "4000"),
        ("memory.current", "3500"),
        ("memory.stat", "anon 9\ninactive_file 200\n"),
    ):
        (tmp_path / name).write_text(text)
    assert doctor._container_memory(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor._container_memory(tmp_path) == doctor._container_memory(tmp_path / "none") == doctor.UNLIMITED


def test_gpu_profile_needs_a_gpu_and_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not answers("gpu24")["Device"].ok and answers("cpu")["Device"].ok
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A Card")
    for memory, enough in ((25e9, True), (12e9, False)):
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda index, m=memory: SimpleNamespace(total_memory=m)
        )
        check = doctor._ask("Device", True, doctor._device, get_profile("gpu24"))
        assert check.ok is enough and "A Card" in check.detail


def test_speed_is_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answers("tiny")["Speed"].detail == "not measured", "no record is kept"
    monkeypatch.delenv(progress.VARIABLE)
    published = Finding(findings.YARDSTICK, (1.5,), "s")
    monkeypatch.setattr(findings, "_committed", lambda group: [published])
    assert "about 2 times its published time" in answers("tiny")["Speed"].detail
    monkeypatch.setattr(findings, "yardstick_seconds", lambda: pytest.fail("measured again"))
    assert "about 2 times" in answers("tiny")["Speed"].detail


def test_servers_that_answer_and_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:  # takes connections, never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("LORAHUB_EDU_INDEX", address)
        monkeypatch.setattr(doctor, "NETWORK_SECONDS", 0.5)
        checks = answers("tiny")
    assert "no answer within 0.5 s" in checks["Hugging Face hub"].detail + checks["Package index"].detail
    monkeypatch.setattr(doctor, "why_unreachable", lambda *rest: None)
    checks = answers("tiny")
    assert checks["Hugging Face hub"].ok and checks["Package index"].ok


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script")
@pytest.mark.parametrize(("script", "ok", "said"), [
    ("exit 0", True, "works"),
    ("echo 'setting up uid map: Permission denied' >&2; exit 1", False, "Permission denied"),
    ("exec sleep 20", False, "hangs"),
])  # fmt: skip
def test_sandbox_is_really_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, ok: bool, said: str
) -> None:
    program = tmp_path / "bwrap"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: str(program))
    monkeypatch.setattr(doctor, "SANDBOX_SECONDS", 0.5)
    check = doctor._ask("Sandbox", False, doctor._sandbox, get_profile("tiny"))
    assert check.ok is ok and said in check.detail and (ok or "until submissions are graded" in check.detail)


def test_a_probe_that_raises_is_a_failed_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    for name in ("_versions", "_memory", "_disk", "_model", "_data", "_hub", "_index", "_sandbox"):
        monkeypatch.setattr(doctor, name, broken)
    checks = answers("cpu")
    assert not all_required_ok(checks.values())
    assert checks["Python"].detail == checks["Sandbox"].detail == "can't be looked at: RuntimeError: first line"


def test_missing_package_and_unknown_profile() -> None:
    def unimportable(_: object) -> None:
        raise ImportError("No module named 'torch'")

    check = doctor._ask("torch", True, unimportable, get_profile("tiny"))
    assert not check.ok and check.advice == "install the course again"
    (only,) = diagnose("cpuu")
    assert not all_required_ok([only]) and "cpuu" in only.detail


def test_one_line_each_and_nothing_is_read_as_markup() -> None:
    checks = [
        Check("Python", True, True, "3.11", "not shown"),
        Check("Model", False, True, "[bold]odd[/bold]\npath " + "x" * 300, "lorahub-edu fetch"),
        Check("Sandbox", False, False, "none", ""),
    ]
    lines = render(checks).splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "MISSING", "note"]
    assert "not shown" not in lines[0]
    assert "[bold]odd[/bold] path xxx" in lines[1] and lines[1].endswith("x -> lorahub-edu fetch")
    assert lines[2].endswith("none")


def test_required_decides() -> None:
    good, bad = Check("a", True, True, ""), Check("b", False, False, "")
    assert all_required_ok([good, bad])
    assert not all_required_ok([good, Check("c", False, True, "")])


def test_nothing_is_written(quiet_machine: Path) -> None:
    diagnose("cpu")
    assert not quiet_machine.exists() and os.listdir(quiet_machine.parent) == []
