"""Shared by all tests: nothing is written outside a test's own folder, and the real model is asked for by a fixture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: test processes share the cores

import pytest
import torch

from lorahub_edu import results
from lorahub_edu.models import pretrained
from lorahub_edu.show import progress

pytest_plugins = ["forgetting_lab"]
LONG = ("notebooks", "studies", "grader", "browser")  # folders whose files take minutes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no worker ends long before the others."""
    items.sort(key=lambda item: next((at for at, name in enumerate(LONG) if name in item.path.parts), len(LONG)))


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Findings go to a scratch folder, and a test leaves torch's threads and generator as they were."""
    monkeypatch.setenv(results.FOLDER_VARIABLE, str(tmp_path / "results"))
    monkeypatch.setenv(progress.VARIABLE, progress.OFF)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    yield
    torch.set_rng_state(state)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def smollm():
    """SmolLM2-135M-Instruct and its tokenizer; `make setup` fetched it, so it is never fetched here."""
    if not pretrained.is_prepared("SmolLM2-135M-Instruct"):
        pytest.skip("the real model is not here: run make setup")
    return pretrained.load("cpu", attention="packed", offline=True)
