"""Configurations by name: the parameter counts that their makers publish, and what a user gets wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorahub_edu.errors import CourseError
from lorahub_edu.memory import fake, shapes
from lorahub_edu.memory.predict import with_layers
from lorahub_edu.memory.shapes import read_config
from lorahub_edu.models import pretrained, tiny

PUBLISHED = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-7b": 7_615_616_512,
    "flan-t5-large": 783_150_080,
}


def parameters(config) -> int:
    """All parameters, from models of one and two layers."""
    import torch

    one, two = (
        sum(p.numel() for p in fake.meta_model(with_layers(config, n), torch.float32).parameters()) for n in (1, 2)
    )
    return one + (config.num_hidden_layers - 1) * (two - one)


@pytest.mark.parametrize("name", sorted(shapes.shapes()))
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    assert parameters(read_config(name)) == PUBLISHED[name]


def test_every_base_of_the_course_has_a_shape_here() -> None:
    for name in pretrained.BASE_MODELS:
        assert read_config(name).vocab_size > 0
    assert read_config("Llama-2-7B").num_hidden_layers == 32
    assert read_config("SmolLM2-135M-Instruct").tie_word_embeddings


def test_a_folder_or_a_file(tmp_path: Path) -> None:
    tiny.config().save_pretrained(tmp_path)
    for where in (tmp_path, tmp_path / "config.json"):
        assert parameters(read_config(str(where))) == sum(p.numel() for p in tiny.model().parameters())


def test_what_is_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with pytest.raises(CourseError, match="holds a config.json"):
        read_config(str(tmp_path))
    for content in ("{}", "not json", "[]"):
        file.write_text(content)
        with pytest.raises(CourseError, match="with its model_type"):
            read_config(str(file))
    file.write_text(json.dumps({"model_type": "lama"}))
    with pytest.raises(CourseError, match="lama"):
        read_config(str(file))
    file.write_text(json.dumps({"model_type": "llama", "hidden_size": 64, "vocab_size": 100}))
    with pytest.raises(CourseError, match="does not give num_hidden_layers, num_attention_heads"):
        read_config(str(file))


def test_unknown_names() -> None:
    with pytest.raises(CourseError, match="no model 'lama-7b'.*'llama-7b'"):
        read_config("lama-7b")
    with pytest.raises(CourseError, match="owner/absent.*offline was chosen.*llama-7b"):
        read_config("owner/absent", offline=True)
