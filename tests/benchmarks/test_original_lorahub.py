"""The original LoRAHub on a causal model scores and searches what it says, against float64 sums made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import peft_modules
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from lorahub_edu.models import tiny

pytest.importorskip("datasets", reason="the original LoRAHub needs datasets and pandas")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import original_lorahub  # noqa: E402

PROMPTS = [f"Give the opposite.\nInput: {word}\nOutput:" for word in ("hot", "a long way", "up", "dear", "old")]
ANSWERS = ["cold", "a short way", "down", "cheap", "new"]
WEIGHTS = (0.7, -1.2, 0.4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return peft_modules.save_modules(tiny.model, tmp_path_factory.mktemp("modules"))


@pytest.fixture
def loaded(folders: list[Path]) -> tuple:
    return original_lorahub.load(tiny.model(), folders)


@pytest.fixture(scope="module")
def dataset():
    return original_lorahub.examples(peft_modules.tokenizer(), PROMPTS, ANSWERS)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A random T5's folder and three modules for it."""
    folder = tmp_path_factory.mktemp("t5")
    base = peft_modules.save_t5(folder / "base")
    made = peft_modules.save_modules(
        lambda: T5ForConditionalGeneration.from_pretrained(base), folder, targets=("q", "v")
    )
    return base, made


def composed(folders: list[Path], weights: tuple[float, ...]) -> dict[str, np.ndarray]:
    """The sum of w · A and w · B in float64, straight from the files."""
    files = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    return {
        name: sum(w * file[name].numpy().astype(np.float64) for w, file in zip(weights, files, strict=True))
        for name in files[0]
    }


def plain_loss(folders: list[Path], weights: tuple[float, ...]) -> float:
    """The loss in float64 without PEFT, padding or label masks: merged weights, and one row at a time."""
    model, tokenizer, scaling = tiny.model().double(), peft_modules.tokenizer(), 2.0
    update = composed(folders, weights)
    with torch.no_grad():
        for name, A in update.items():
            if "lora_A" in name:
                B = update[name.replace("lora_A", "lora_B")]
                site = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                model.get_submodule(site).weight += torch.from_numpy(scaling * B @ A)
        losses = []
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
            asked = tokenizer(prompt).input_ids
            given = [*tokenizer(" " + answer).input_ids, tokenizer.eos_token_id]
            logits = model(torch.tensor([asked + given])).logits[
                0, len(asked) - 1 : -1
            ]  # (answer's tokens, vocabulary)
            losses += F.cross_entropy(logits, torch.tensor(given), reduction="none").tolist()
    return float(np.mean(losses)) / len(PROMPTS)


def test_what_is_loaded_and_encoded_gives_the_loss_of_a_plain_float64_sum(folders, loaded, dataset) -> None:
    """Needs no part of the original: PEFT composes, the reference merges."""
    peft_model, cache = loaded
    expected = composed(folders, WEIGHTS)
    found = {name: sum(w * m[name] for w, m in zip(WEIGHTS, cache.values(), strict=True)) for name in expected}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, atol=1e-6)
    original_lorahub.set_peft_model_state_dict(peft_model, found)
    batch = {name: torch.tensor(dataset[name]) for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        loss = peft_model(**batch).loss.item() / len(PROMPTS)
    assert loss == pytest.approx(plain_loss(folders, WEIGHTS), abs=1e-5)
    assert loss != pytest.approx(plain_loss(folders, (0.0, 0.0, 0.0)), abs=1e-3)  # the modules do something


def test_examples_are_padded_and_only_answers_have_labels(dataset) -> None:
    tokenizer = peft_modules.tokenizer()
    assert len({len(ids) for ids in dataset["input_ids"]}) == 1 and list(dataset["input"]) == PROMPTS
    for row, prompt, answer in zip(dataset, PROMPTS, ANSWERS, strict=True):
        read = sum(row["attention_mask"])
        labels = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(row["input_ids"][:read]) == f"{prompt} {answer}<|im_end|>"
        assert tokenizer.decode(labels) == f" {answer}<|im_end|>"
        assert row["input_ids"][read:] == [tokenizer.pad_token_id] * (len(row["input_ids"]) - read)
        assert row["labels"][read:] == [-100] * (len(row["input_ids"]) - read)


@pytest.mark.parametrize("other_module", [{"rank": 2}, {"targets": ("q_proj",)}])
def test_modules_that_differ_are_refused(other_module: dict, folders: list[Path], tmp_path: Path) -> None:
    other = peft_modules.save_modules(tiny.model, tmp_path, count=1, **other_module)
    with pytest.raises(ValueError, match=f"{other[0]} has other tensors than {folders[0]}"):
        original_lorahub.load(tiny.model(), [*folders, *other])


@pytest.mark.parametrize("weights", [WEIGHTS, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (-1.5, 1.5, 1.5)])
def test_score_is_the_loss_and_the_penalty(weights, folders, loaded, dataset) -> None:
    pytest.importorskip("lorahub")
    expected = plain_loss(folders, weights) + 0.05 * float(np.mean(np.abs(weights)))
    assert original_lorahub.score(weights, *loaded, dataset) == pytest.approx(expected, abs=1e-5)


def test_the_originals_final_weights_are_the_plain_sum(folders, loaded) -> None:
    lorahub = pytest.importorskip("lorahub")
    cache = loaded[1]
    final = lorahub.get_final_weights(WEIGHTS, list(cache), cache)
    expected = composed(folders, WEIGHTS)
    assert final.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(final[name].numpy(), value, atol=1e-6)


def test_scoring_leaves_our_modules_alone_but_overwrites_the_originals_last(folders, loaded, dataset, t5) -> None:
    """Why `load` copies: in the original, the same weights get another score the second time."""
    lorahub = pytest.importorskip("lorahub")
    first, second = (original_lorahub.score(WEIGHTS, *loaded, dataset) for _ in range(2))
    assert first == second
    for folder, weights in zip(folders, loaded[1].values(), strict=True):
        file = load_file(folder / "adapter_model.safetensors")
        assert all(torch.equal(file[name], weights[name]) for name in file)

    base, modules = t5
    peft_model, tokenizer, cache = lorahub.load_base_model_and_lora_modules([str(m) for m in modules], str(base))
    rows = lorahub.load_dataset(PROMPTS, ANSWERS, tokenizer)
    first, second = (original_lorahub.score(WEIGHTS, peft_model, cache, rows) for _ in range(2))
    assert first != pytest.approx(second, abs=1e-4)
    files = [load_file(folder / "adapter_model.safetensors") for folder in modules]
    kept = [all(torch.equal(f[n], c[n]) for n in f) for f, c in zip(files, cache.values(), strict=True)]
    assert kept == [True, True, False]


def test_search_is_the_originals_search(t5) -> None:
    lorahub = pytest.importorskip("lorahub")
    base, modules = [str(t5[0])], [str(folder) for folder in t5[1]]
    state = np.random.get_state()
    try:
        expected, _, _ = lorahub.lorahub_learning(modules, PROMPTS, ANSWERS, 12, *base, seed=7)
    finally:
        np.random.set_state(state)
    peft_model, tokenizer, cache = lorahub.load_base_model_and_lora_modules(modules, *base)
    rows = lorahub.load_dataset(PROMPTS, ANSWERS, tokenizer)
    found, history = original_lorahub.search(peft_model, cache, rows, steps=12, seed=7)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(history) == 12


def test_search_on_a_causal_model_recommends_its_best_and_touches_no_global_seed(loaded, dataset) -> None:
    pytest.importorskip("lorahub")
    before = np.random.get_state()[1].tolist()
    best, history = original_lorahub.search(*loaded, dataset, steps=15, seed=3)
    assert np.random.get_state()[1].tolist() == before
    assert len(history) == 15 and all(np.abs(weights).max() <= 1.5 for weights, _ in history)
    for weights, value in history[:3]:
        assert original_lorahub.score(weights, *loaded, dataset) == value
    assert original_lorahub.score(best, *loaded, dataset) == min(value for _, value in history)
    assert len({value for _, value in history}) > 10
    again, _ = original_lorahub.search(*loaded, dataset, steps=15, seed=3)
    np.testing.assert_array_equal(best, again)
