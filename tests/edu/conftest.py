"""pip is asked for its settings once for each surrounding: a start of pip takes most of a second."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorahub_edu.files import sources

READ_BY_PIP = ("PIP_", "HOME", "XDG_")  # how the variables begin that can change pip's answer


@pytest.fixture(scope="session", autouse=True)
def _pip_asked_once() -> Iterator[None]:
    ask, answers = sources._pip_settings, {}

    def settings() -> dict[str, str]:
        variables = [item for item in sorted(os.environ.items()) if item[0].startswith(READ_BY_PIP)]
        file = Path(os.environ.get("PIP_CONFIG_FILE", os.devnull))
        surrounding = (*variables, file.read_bytes() if file.is_file() else b"")
        if surrounding not in answers:
            answers[surrounding] = ask()
        return dict(answers[surrounding])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_pip_settings", settings)
        yield
