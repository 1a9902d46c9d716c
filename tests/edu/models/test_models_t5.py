"""An encoder-decoder base loads through the same door as a causal one: named, from a cache, in a dtype it survives."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_t5
import torch
from huggingface_hub import constants
from stand_ins import closed_address
from t5_stand_ins import cached_base
from transformers import T5ForConditionalGeneration

from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.models import pretrained, profiles


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's library, and a hub where nobody answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", closed_address())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    return tmp_path / "hub"


def test_a_named_base_takes_the_place_of_the_profiles() -> None:
    model, tokenizer = pretrained.load("tiny", base=tiny_t5.folder(), dtype="bfloat16")
    assert isinstance(model, T5ForConditionalGeneration) and not model.training
    assert model.dtype == torch.bfloat16
    assert pretrained.get_base(tiny_t5.folder()).kind == "encoder-decoder"
    assert pretrained.load_config(tiny_t5.folder()).is_encoder_decoder
    assert pretrained.is_prepared("tiny-random-llama") and not pretrained.is_prepared("flan-t5-large")
    assert pretrained.name_of(pretrained.load("tiny")[0]) == profiles.get_profile("tiny").base_model
    with pytest.raises(CourseError, match="Did you mean 'flan-t5-large'"):
        pretrained.load("tiny", base="flan-t5-larg")
    assert tokenizer("cold").input_ids[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id


def test_the_tiny_t5_has_flan_t5s_parts() -> None:
    state = torch.get_rng_state()
    one, same, other = tiny_t5.model(), tiny_t5.model(), tiny_t5.model(seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.lm_head.weight is not one.shared.weight and not torch.equal(one.lm_head.weight, one.shared.weight)
    assert hasattr(one.encoder.block[0].layer[1].DenseReluDense, "wi_1")  # gated
    # An untied head reads the decoder's states unscaled: the loss is that of transformers' own forward.
    ids, answer = torch.tensor([[7, 8, 2]]), torch.tensor([[9, 2]])
    out = one(input_ids=ids, labels=answer, output_hidden_states=True)
    head = out.decoder_hidden_states[-1] @ one.lm_head.weight.T
    assert torch.allclose(out.logits, head, atol=1e-6)


def test_the_hubs_model_loads_from_its_cache_with_its_own_head(hub_cache: Path) -> None:
    made = tiny_t5.model(seed=3)
    cached_base(hub_cache, "google/flan-t5-large", made)
    loaded, tokenizer = pretrained.load("tiny", base="flan-t5-large", dtype="float32")
    assert pretrained.name_of(loaded) == "flan-t5-large"
    assert loaded.config._name_or_path == "google/flan-t5-large"
    assert not torch.equal(loaded.lm_head.weight, loaded.shared.weight)
    batch = {"input_ids": torch.tensor([[7, 8, 2]]), "labels": torch.tensor([[9, 2]])}
    assert torch.equal(loaded(**batch).logits, made(**batch).logits)
    assert tokenizer("cold").input_ids == tiny_t5.tokenizer()("cold").input_ids


@pytest.mark.parametrize("offline", [False, True])
def test_without_hub_and_cache_it_says_so(hub_cache: Path, offline: bool) -> None:
    with pytest.raises(CourseError, match="not in the hub's cache") as refusal:
        pretrained.load("tiny", base="flan-t5-large", offline=offline)
    reason = "offline was chosen" if offline else "refused"
    assert reason in str(refusal.value) and "set HF_HOME" in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "words"), [({"dtype": "float16"}, "overflows in float16"), ({"attention": "packed"}, "not packed")]
)
def test_what_a_t5_cannot_do_is_refused(options: dict, words: str) -> None:
    with pytest.raises(CourseError, match=words):
        pretrained.load("tiny", base=tiny_t5.folder(), **options)


def test_the_course_has_no_file_of_its_own_for_it() -> None:
    assert pretrained.base_sha256("flan-t5-large") is None
    assert "flan-t5-large" not in assets.ASSETS
