"""Modules on disk and on the hub, and their training; PEFT loads what is made here and makes what is loaded."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import hub_modules
import huggingface_hub
import peft_modules
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from lorahub_edu.data import fewshot, tasks
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.hub import zoo
from lorahub_edu.lora import adapter_files
from lorahub_edu.models import tiny
from lorahub_edu.scoring import score
from lorahub_edu.training.loop import TrainingConfig
from lorahub_studies import zoo_training
from lorahub_studies.zoo_training import ModuleJob, train_module

IDS = torch.arange(3, 27).view(2, 12)
SHORT = TrainingConfig(steps=3, learning_rate=5e-3, batch_size=4, micro_batch_size=4, batching="padded")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three modules that PEFT made and saved: module0, module1, module2."""
    return peft_modules.save_modules(tiny.model, tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of two modules that this course trained, three steps each."""
    folder = tmp_path_factory.mktemp("trained")
    patch = pytest.MonkeyPatch()
    patch.setattr(zoo_training, "CARD_ITEMS", 4)
    patch.setattr(zoo_training, "TRAINING", SHORT)
    for name in ("upper", "past"):
        train_module(ModuleJob(name, str(folder), steps=3), (tiny.model(), tiny.tokenizer()))
    patch.undo()
    return folder


def assert_loaded(file: adapter_files.AdapterFile, folder: Path) -> None:
    written = load_file(folder / "adapter_model.safetensors")
    assert file.path.name == folder.name and len(written) == 2 * len(file.weights)
    for site, (A, B) in file.weights.items():
        assert torch.equal(A, written[f"base_model.model.{site}.lora_A.weight"])
        assert torch.equal(B, written[f"base_model.model.{site}.lora_B.weight"])


# Loading.


def test_names_folders_and_folders_of_folders_load_alike(folders: list[Path], tmp_path: Path) -> None:
    where = folders[0].parent
    assert zoo.names(where) == ["module0", "module1", "module2"]
    everything = [zoo.load(folder=where), zoo.load([where]), zoo.load(folders), zoo.load(zoo.names(where), where)]
    for files in everything:
        assert [file.path.name for file in files] == zoo.names(where)
        for file, folder in zip(files, folders, strict=True):
            assert_loaded(file, folder)
    mixed = zoo.load(["module2", str(folders[0])], where)
    assert [file.path.name for file in mixed] == ["module2", "module0"]
    copied = shutil.copytree(folders[1], tmp_path / "module1")
    assert_loaded(zoo.load([copied], where)[0], copied)


def test_what_is_not_there(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="no module 'modul1' in .*Did you mean 'module1'"):
        zoo.load(["modul1"], folders[0].parent)
    with pytest.raises(CourseError, match=f"no module in {tmp_path}: train some with lorahub-edu zoo train"):
        zoo.load(folder=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CourseError, match="holds no adapter: adapter_config.json is missing"):
        zoo.load([tmp_path / "empty"])
    with pytest.raises(CourseError, match="no module 'nothing'"):
        zoo.card("nothing", folders[0].parent)
    with pytest.raises(CourseError, match="card.json is no card of a module"):
        zoo.card("module0", folders[0].parent)  # PEFT writes none
    for text in ("{", "[]", '{"task": "past"}'):
        copied = shutil.copytree(folders[0], tmp_path / "copy", dirs_exist_ok=True)
        (copied / zoo.CARD_FILE).write_text(text, encoding="utf-8")
        with pytest.raises(CourseError, match="is no card of a module .* Train the module again"):
            zoo.card("copy", tmp_path)


# The hub.


def publish(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """The hub's library gives this folder, whatever is asked for; what is asked is written down."""
    asked = []

    def snapshot(repo, allow_patterns):
        asked.append(repo)
        assert all(any(Path(file.name).match(p) for p in allow_patterns) for file in folder.iterdir())
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return asked


def as_pickle(folder: Path, where: Path) -> Path:
    """The module as LoRAHub publishes its own: the tensors in a pickled adapter_model.bin."""
    where.mkdir()
    shutil.copy(folder / "adapter_config.json", where)
    torch.save(load_file(folder / "adapter_model.safetensors"), where / "adapter_model.bin")
    return where


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_published_module_is_kept_as_safetensors(folders, tmp_path: Path, monkeypatch, kind: str) -> None:
    published = tmp_path / "published"
    if kind == "bin":
        as_pickle(folders[0], published)
    else:
        published.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(folders[0] / name, published)
    asked = publish(monkeypatch, published)
    (file,) = zoo.load(["someone/some_module"])
    assert file.path == zoo.own_zoo() / "hub" / "someone--some_module"
    kept = load_file(file.path / "adapter_model.safetensors")
    original = load_file(folders[0] / "adapter_model.safetensors")
    assert kept.keys() == original.keys() and all(torch.equal(kept[key], original[key]) for key in kept)
    assert {path.name for path in file.path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    zoo.load(["someone/some_module"])
    assert asked == ["someone/some_module"]  # the second time it lies here


class Harm:
    """What a pickle can do when it is opened: here, make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("content", ["code", "no tensors", "a list", "cut short"])
def test_a_pickle_of_anything_else_is_refused_and_nothing_runs(folders, tmp_path, monkeypatch, content: str) -> None:
    published, mark = as_pickle(folders[0], tmp_path / "published"), tmp_path / "harm"
    file = published / "adapter_model.bin"
    made = {"code": {"weight": Harm(mark)}, "no tensors": {"epochs": 3}, "a list": [torch.ones(2)]}
    if content in made:
        torch.save(made[content], file)
    else:
        file.write_bytes(file.read_bytes()[:2000])
    publish(monkeypatch, published)
    with pytest.raises(CourseError, match="Can't get the module 'someone/thing' from the hub"):
        zoo.load(["someone/thing"])
    assert not mark.exists() and not list(zoo.own_zoo().rglob("adapter_model*"))
    if content == "code":
        torch.load(file, weights_only=False)
        assert mark.exists()  # it would have run elsewhere


def test_a_published_folder_without_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "published").mkdir()
    publish(monkeypatch, tmp_path / "published")
    with pytest.raises(CourseError, match="Can't get the module 'a/b' from the hub: FileNotFoundError.*give a folder"):
        zoo.load(["a/b"])


# Training.


def test_a_trained_module_has_a_card_and_loads_in_peft(trained: Path) -> None:
    (file,), card = zoo.load(["upper"], trained), zoo.card("upper", trained)
    ours = tiny.model()
    adapter_files.put_adapter(ours, file)
    theirs = PeftModel.from_pretrained(tiny.model(), trained / "upper").eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(ours(IDS).logits, tiny.model()(IDS).logits, atol=1e-4)
    assert {tensor.dtype for pair in file.weights.values() for tensor in pair} == {torch.float16}
    assert (card.task, card.rank, card.alpha, card.steps, card.batch_size) == ("upper", 8, 16.0, 3, 4)
    assert (card.base_model, card.base_model_sha256, card.init_seed) == (tiny.NAME, None, 0)
    assert card.instruction == tasks.get("upper").instructions[0]
    assert card.training_items == len(tasks.get("upper").train) and card.test_items == 4
    held_out = fewshot.rows_for(ours, tiny.tokenizer(), card.instruction, tasks.get("upper").test[:4])
    for when, model in (("before", tiny.model()), ("after", ours)):
        scores = score(model, held_out)
        assert getattr(card, f"loss_{when}") == pytest.approx(scores.losses[0], abs=1e-3)
        assert getattr(card, f"strict_{when}") == scores.strict.mean()
        assert getattr(card, f"answer_only_{when}") == scores.answer_only.mean()
    assert zoo.Card(**json.loads(json.dumps(asdict(card)))) == card and math.isfinite(card.seconds)


# Verifying.


def test_a_sound_zoo(trained: Path) -> None:
    assert zoo.verify(trained) == {"past": [], "upper": []}


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("byte", "the weights are not those that the card describes"),
        ("cut", "cut short"),
        ("card", "is no card of a module"),
        ("base", "weights and card name different base models"),
        ("rank", "its layers or ranks differ from those of past"),
        ("nan", "it holds NaN or infinite values"),
    ],
)
def test_what_verifying_finds(trained: Path, tmp_path: Path, damage: str, problem: str) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "zoo"))
    weights, card = folder / "upper" / "adapter_model.safetensors", folder / "upper" / zoo.CARD_FILE
    content = weights.read_bytes()
    if damage == "byte":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        weights.write_bytes(content[:-1])
    elif damage == "card":
        card.unlink()
    elif damage == "base":
        card.write_text(card.read_text().replace('"base_model_sha256": null', '"base_model_sha256": "ab"'))
    else:
        shutil.rmtree(folder / "upper")
        module = hub_modules.random_module(tiny.model(), 0, rank=8 if damage == "nan" else 4)
        if damage == "nan":
            next(iter(module.weights.values()))[1][3, 2] = torch.nan
        hub_modules.write(module, folder, "upper")
        shutil.copy(trained / "upper" / zoo.CARD_FILE, card)
    problems = zoo.verify(folder)
    assert problems["past"] == [] and any(problem in found for found in problems["upper"])


def test_overview_of_modules_without_a_card_and_of_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="no module in"):
        zoo.overview(tmp_path)
    shutil.copytree(zoo.SHIPPED / "past", tmp_path / "theirs", ignore=shutil.ignore_patterns("card.json"))
    assert zoo.overview(tmp_path).rows == (("theirs", "no card", "–", "–", "–"),)
