"""The command line in the tests' own process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorahub_edu.cli import app
from lorahub_edu.files import assets

Typed = tuple[int, str, str]  # exit code, standard output, standard error


@pytest.fixture
def lorahub_edu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., Typed]:
    """The command line in this process, in an empty folder and with an empty home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "home"))

    def run(*words: str) -> Typed:
        monkeypatch.setattr(sys, "argv", ["lorahub-edu", *words])
        code = 0
        try:
            app.main()
        except SystemExit as ended:
            code = ended.code or 0
        return code, *capsys.readouterr()

    return run
