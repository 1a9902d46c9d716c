"""Plain text: the shipped set is good enough, the fetched one is cut as it says, and the caller learns which it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.forgetting import texts
from lorahub_edu.models import pretrained, tiny


def test_the_shipped_texts_are_enough_without_a_network() -> None:
    loaded = texts.load(tiny.tokenizer(), fetch=False)
    assert loaded.label == texts.SHIPPED
    assert loaded.sequences.shape == (64, 64)
    assert len(set(map(tuple, loaded.sequences.tolist()))) == 64


def test_every_shipped_text_is_long_enough_for_the_real_model() -> None:
    if not pretrained.is_prepared("SmolLM2-135M-Instruct"):
        pytest.skip("the real tokenizer is not here: run make setup")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pretrained.folder("SmolLM2-135M-Instruct"))
    paragraphs = texts.shipped()
    assert len(paragraphs) >= 64 and len(set(paragraphs)) == len(paragraphs)
    assert min(len(tokenizer(text).input_ids) for text in paragraphs) >= texts.TOKENS


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that serves stand-ins for the two fetched files: three articles and two pages."""
    contents = {
        texts.WIKIPEDIA: "\n".join(f"article {name} " + "word " * 60 for name in "abc"),
        texts.C4: "\n".join(json.dumps({"text": f"page {name} " + "thing " * 60}) for name in "de"),
    }
    for name, content in contents.items():
        asset = assets.ASSETS[name]
        digest = hashlib.sha256(content.encode()).hexdigest()
        edition = replace(asset.editions[0], sha256=digest, size=len(content))
        monkeypatch.setitem(assets.ASSETS, name, replace(asset, editions=(edition,)))
        (tmp_path / edition.filename).write_text(content, encoding="utf-8")
    monkeypatch.setenv("LORAHUB_EDU_LOCAL", str(tmp_path))
    monkeypatch.setenv("LORAHUB_EDU_HOME", str(tmp_path / "home"))
    return tmp_path


def test_articles_and_pages_come_half_and_half_beginnings_first(files: Path) -> None:
    tokenizer = tiny.tokenizer()
    loaded = texts.load(tokenizer, sequences=8, tokens=10, offline=True)
    assert loaded.label == texts.FETCHED
    starts = [tokenizer.decode(ids).strip() for ids in loaded.sequences.tolist()]
    assert [start.startswith("article") for start in starts] == [True, True, True, False, False, False, False, False]
    assert [start.startswith("page") for start in starts] == [False] * 4 + [True, True, False, False]
    whole = tokenizer("article a " + "word " * 60).input_ids
    assert loaded.sequences[0].tolist() == whole[:10]
    assert loaded.sequences[3].tolist() == whole[10:20]  # the articles are used up: the next piece of the first


def test_without_the_files_the_shipped_texts_are_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LORAHUB_EDU_HOME", str(tmp_path))
    monkeypatch.delenv("LORAHUB_EDU_LOCAL", raising=False)
    assert texts.load(tiny.tokenizer(), sequences=4, offline=True).label == texts.SHIPPED
    assert "shipped ones are" in caplog.text


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(CourseError, match="fewer than 9999"):
        texts.load(tiny.tokenizer(), sequences=9999, fetch=False)
    with pytest.raises(CourseError, match="at least 2 of each"):
        texts.load(tiny.tokenizer(), sequences=1)
