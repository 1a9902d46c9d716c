"""`lorahub-edu report`: a page on the terminal and in a file."""

from __future__ import annotations

from pathlib import Path

import peft_modules
import pytest
from typer.testing import CliRunner

from lorahub_edu.cli.app import app
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.hub import zoo
from lorahub_edu.models import tiny
from lorahub_edu.show import adapter_report


def test_a_page_on_the_terminal_and_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "home"))
    folder = peft_modules.save_modules(tiny.model, tmp_path, count=1)[0]
    options = ["--profile", "tiny", "--sequences", "4", "--out", str(tmp_path / "page.md")]
    done = CliRunner().invoke(app, ["report", str(folder), *options])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| intruders at ε = 0.5 |" in page and "forgetting" in done.output
    assert page.count("| --- |") + page.count("|---|") >= 3


def test_a_module_of_the_zoo_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(adapter_report, "examine", lambda where, **settings: asked.append(where) or "page")
    CliRunner().invoke(app, ["report", "past"])
    assert [file.path for file in asked] == [zoo.SHIPPED / "past"]


def test_what_is_no_adapter_is_said_in_words(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere"), "--profile", "tiny"])
    assert isinstance(done.exception, CourseError) and "nowhere" in str(done.exception)
