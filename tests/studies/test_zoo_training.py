"""Training a zoo: what it leaves alone, shared and own starts, going on after a kill, other processes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorahub_edu.data import tasks
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.models import tiny
from lorahub_edu.training.loop import TrainingConfig
from lorahub_studies import zoo_training
from lorahub_studies.zoo_training import ModuleJob, train_module, train_zoo, training_rows

IDS = torch.arange(3, 27).view(2, 12)
SHORT = TrainingConfig(steps=3, learning_rate=5e-3, batch_size=4, micro_batch_size=4, batching="padded")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "home"))


@pytest.fixture
def few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short runs on few items: what is tested is the way, not the modules."""
    monkeypatch.setattr(zoo_training, "CARD_ITEMS", 4)
    monkeypatch.setattr(zoo_training, "TRAINING", SHORT)


def test_training_leaves_the_base_model_as_it_was(tmp_path: Path, few_items) -> None:
    model = tiny.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_module(ModuleJob("upper", str(tmp_path), steps=3), (model, tiny.tokenizer()))
    with pytest.raises(CourseError, match="steps must be at least 1"):
        train_module(ModuleJob("upper", str(tmp_path), steps=0), (model, tiny.tokenizer()))
    with pytest.raises(CourseError, match="Can't write the adapter"):
        (tmp_path / "file").write_text("", encoding="utf-8")
        train_module(ModuleJob("past", str(tmp_path / "file"), steps=1), (model, tiny.tokenizer()))
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_training_rows_take_the_wordings_in_turn() -> None:
    task, tokenizer = tasks.get("past"), tiny.tokenizer()
    rows = training_rows(task, tokenizer)
    texts = [tokenizer.decode(row.prompt_ids + row.answer_ids) for row in rows]
    expected = {f"Input: {item.input}\nOutput: {item.output}<|im_end|>" for item in task.train}
    assert {text.split("\n", 1)[1] for text in texts} == expected and len(texts) == len(task.train)
    for number, text in enumerate(texts):
        assert text.startswith(task.instructions[number % len(task.instructions)] + "\n")
    assert len(task.instructions) > 1
    assert training_rows(task, tokenizer) == rows != training_rows(task, tokenizer, data_seed=1)


def starting_factors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in load_file(folder / "adapter_model.safetensors").items() if "lora_A" in key}


@pytest.mark.parametrize("own_init", [False, True])
def test_modules_share_their_start_or_have_their_own(tmp_path: Path, monkeypatch, few_items, own_init: bool) -> None:
    """With a rate of nearly nothing, a module is saved with the A that it started from."""
    still = replace(SHORT, steps=1, learning_rate=1e-12)
    monkeypatch.setattr(zoo_training, "TRAINING", still)
    cards = train_zoo(["upper", "past"], tmp_path, own_init=own_init, profile="tiny")
    upper, past = (starting_factors(tmp_path / name) for name in ("upper", "past"))
    assert all(torch.equal(upper[key], past[key]) != own_init for key in upper)
    assert (len({card.init_seed for card in cards}) == 2) == own_init


def test_a_zoo_goes_on_where_it_stopped(tmp_path: Path, few_items) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):
        train_zoo(["upper", "past"], tmp_path, profile="tiny", report=_stop_after_first(done))
    kept = (tmp_path / "upper" / "adapter_model.safetensors").stat().st_mtime_ns
    cards = train_zoo(["upper", "past"], tmp_path, profile="tiny", report=lambda card: done.append(card.task))
    assert done == ["upper", "past"] and [card.task for card in cards] == ["upper", "past"]
    assert (tmp_path / "upper" / "adapter_model.safetensors").stat().st_mtime_ns == kept
    assert train_zoo(["past"], tmp_path, profile="tiny", report=done.append) == cards[1:] and len(done) == 2
    with pytest.raises(CourseError, match="no task 'pasd'. Did you mean 'past'"):
        train_zoo(["gerund", "pasd"], tmp_path, profile="tiny")
    assert not (tmp_path / "gerund").exists()  # named before the first minute of training


def test_a_zoo_of_one_start_is_not_mixed_with_one_of_own_starts(tmp_path: Path, few_items) -> None:
    train_zoo(["upper"], tmp_path, profile="tiny")
    with pytest.raises(CourseError, match=r"another A \(upper\)"):
        train_zoo(["upper", "past"], tmp_path, profile="tiny", own_init=True)
    assert not (tmp_path / "past").exists()


def _stop_after_first(done: list):
    def report(card) -> None:
        done.append(card.task)
        raise KeyboardInterrupt

    return report


def test_an_executor_trains_the_same_modules(tmp_path: Path, few_items) -> None:
    with ThreadPoolExecutor(1) as executor:
        train_zoo(["upper", "past"], tmp_path / "there", profile="tiny", executor=executor)
    train_zoo(["upper", "past"], tmp_path / "here", profile="tiny")
    for name in ("upper", "past"):
        there, here = (load_file(tmp_path / where / name / "adapter_model.safetensors") for where in ("there", "here"))
        assert all(torch.equal(there[key], here[key]) for key in here)
