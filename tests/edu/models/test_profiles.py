"""Base models by name: the course's and the hub's, access on request, and what their rows begin and end with."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorahub_edu.errors import CourseError
from lorahub_edu.memory.shapes import read_config
from lorahub_edu.models import pretrained, profiles, tiny


def test_a_model_has_two_names() -> None:
    for base in profiles.BASE_MODELS.values():
        assert profiles.get_base(base.name) is base
        if base.repo:
            assert profiles.get_base(base.repo) is base
            assert read_config(base.repo).to_dict() == read_config(base.name).to_dict()
    with pytest.raises(CourseError, match="'meta-llama/Llama-2-7b'.* Did you mean 'meta-llama/Llama-2-7b-hf'"):
        profiles.get_base("meta-llama/Llama-2-7b")


def test_access_is_explained_where_it_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert profiles.access(profiles.get_base("open_llama_7b_v2")) == ""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("Llama-2-7b", "Llama-3-8B"):
        with pytest.raises(CourseError, match="given on request.*accept the licence.*hf auth login"):
            pretrained.load("tiny", base=name, device="cpu", offline=True)


def test_what_rows_begin_and_end_with() -> None:
    """As the tokenizers have it that are here without a network."""
    tokenizer, base = tiny.tokenizer(), profiles.get_base(tiny.NAME)
    assert base.end == tokenizer.eos_token
    assert tokenizer.decode(tokenizer("a")["input_ids"]).startswith(base.start + "a")


@pytest.mark.real
def test_what_smollms_rows_begin_and_end_with(smollm) -> None:
    _, tokenizer = smollm
    base = profiles.get_base("SmolLM2-135M-Instruct")
    assert base.end == tokenizer.eos_token
    assert tokenizer.decode(tokenizer("a")["input_ids"]) == base.start + "a"
