"""A tail of the random model, its rows, and folders of the test's own."""

from __future__ import annotations

from functools import partial

import pytest

from lorahub_edu.data import sequence_tasks
from lorahub_edu.forgetting import lab as study
from lorahub_edu.forgetting import texts
from lorahub_edu.forgetting.hidden import CachedRows, Tail
from lorahub_edu.models import tiny


@pytest.fixture
def tail() -> Tail:
    """The last two of the random model's four layers, in float32."""
    return Tail(tiny.model(), layers=2, dtype=None)


@pytest.fixture
def cached(tail: Tail) -> CachedRows:
    """Twelve rows of a task with their hidden states."""
    rows = sequence_tasks.split("reverse", train=12, settling=1, validation=1).train
    return tail.cache(sequence_tasks.encode(tiny.tokenizer(), rows))


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> study.Lab:
    """A lab of the tiny profile with few rows; runs of that profile find it as theirs."""
    monkeypatch.setenv("LORAHUB_EDU_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setattr(study.sequence_tasks, "split", _few(sequence_tasks.split))
    monkeypatch.setattr(study.texts, "load", partial(texts.load, sequences=6, tokens=12))
    made = study.Lab("tiny", layers=2, train_rows=8, validation_rows=3)
    monkeypatch.setattr("lorahub_studies.tail_runs.lab", lambda profile, layers: made)
    return made


def _few(split):  # noqa: ANN001, ANN202
    return lambda name, train, validation: split(name, train=train, settling=2, validation=validation)
