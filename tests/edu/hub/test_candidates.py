"""Candidates: seeded draws, retrieval by each module's own loss and by cosine, and an interface for more."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import hub_modules
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lorahub_edu.data import tasks
from lorahub_edu.data.fewshot import rows_for
from lorahub_edu.errors import CourseError
from lorahub_edu.hub import candidates, stand_ins, zoo
from lorahub_edu.hub.candidates import Question, choose
from lorahub_edu.hub.compose import stack
from lorahub_edu.lora import adapter_files
from lorahub_edu.models import tiny
from lorahub_edu.models.profiles import get_profile

NAMES = ["past", "upper", "plural", "bool", "reverse"]


@pytest.fixture(scope="module")
def files():
    return stand_ins.modules_for(get_profile("tiny"), NAMES)


@pytest.fixture(scope="module")
def loaded():
    return tiny.model(), tiny.tokenizer()


@pytest.fixture(scope="module")
def rows(loaded):
    task = tasks.get("past_upper")
    return rows_for(*loaded, task.instructions[0], tasks.draw(task, seed=0))


def loss_by_hand(file, rows) -> float:
    """The label tokens' mean loss of a model that really carries the module, row by row, without any padding."""
    model = tiny.model()
    weights = {site: (A.float(), B.float()) for site, (A, B) in file.weights.items()}
    configs = {site: replace(config, dtype=torch.float32) for site, config in file.configs.items()}
    adapter_files.put_adapter(model, replace(file, weights=weights, configs=configs))
    losses = []
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.answer_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, len(row.prompt_ids) - 1 : -1]  # (answer tokens, V)
        losses += F.cross_entropy(logits, torch.tensor(row.answer_ids), reduction="none").tolist()
    return float(np.mean(losses))


def test_a_draw_is_seeded_whole_and_fair() -> None:
    drawn = [candidates.random_candidates(NAMES, 2, seed) for seed in range(400)]
    assert drawn == [candidates.random_candidates(NAMES, 2, seed) for seed in range(400)]
    assert all(len(set(names)) == 2 and set(names) <= set(NAMES) for names in drawn)
    counts = Counter(name for names in drawn for name in names)
    assert all(120 < counts[name] < 200 for name in NAMES)  # 160 expected, standard deviation 10
    assert sorted(candidates.random_candidates(NAMES, 5, 0)) == sorted(NAMES)


def test_losses_are_those_of_models_that_carry_the_modules(files, loaded, rows) -> None:
    expected = [loss_by_hand(file, rows) for file in files]
    seen = candidates.single_losses(loaded[0], stack(files, composition="exact"), rows)
    np.testing.assert_allclose(seen, expected, atol=1e-5)
    by_hand = [NAMES[i] for i in np.argsort(expected)]
    assert min(np.diff(sorted(expected))) > 1e-4, "the order is no accident of rounding"
    question = Question(model=loaded[0], modules=stack(files, composition="exact"), rows=rows)
    for count in (1, 3, 5):
        assert choose("loss", count, question) == by_hand[:count]


@pytest.mark.parametrize("broken", [torch.inf, torch.nan, 1e30])
def test_a_broken_module_is_chosen_last_and_spoils_no_other(files, loaded, rows, broken: float) -> None:
    modules = stack(files, composition="exact")
    expected = candidates.single_losses(loaded[0], modules, rows)
    modules.flat[2] = broken
    losses = candidates.single_losses(loaded[0], modules, rows)
    assert np.isnan(losses[2])
    np.testing.assert_allclose(np.delete(losses, 2), np.delete(expected, 2), atol=1e-6)
    assert choose("loss", 5, Question(model=loaded[0], modules=modules, rows=rows))[-1] == "plural"
    modules.flat[:] = broken
    assert np.isnan(candidates.single_losses(loaded[0], modules, rows)).all()


@pytest.mark.parametrize("states", ["input", "hidden"])
def test_embedding_is_the_cosine_around_the_mean(loaded, states: str) -> None:
    model, tokenizer = loaded
    cards = {name: tasks.get(name).instructions[0] for name in NAMES}
    instruction = tasks.get("plural_upper").instructions[0]

    def vector(text: str) -> np.ndarray:
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states
        return hidden[0 if states == "input" else -1][0].double().mean(0).numpy()

    vectors = np.stack([vector(text) for text in cards.values()])
    asked, others = vector(instruction) - vectors.mean(0), vectors - vectors.mean(0)
    cosines = others @ asked / (np.linalg.norm(others, axis=1) * np.linalg.norm(asked))
    expected = [NAMES[i] for i in np.argsort(-cosines)]
    question = Question(model=model, tokenizer=tokenizer, instruction=instruction, cards=cards)
    for count in (2, 5):
        assert choose(f"{states}_embedding", count, question) == expected[:count]


def test_a_modules_own_instruction_finds_it(loaded) -> None:
    cards = {name: tasks.get(name).instructions[0] for name in NAMES}
    for name, text in cards.items():
        question = Question(model=loaded[0], tokenizer=loaded[1], instruction=text, cards=cards)
        assert choose("hidden_embedding", 1, question) == [name]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory):
    """A folder of modules with cards, and the modules' instructions by name."""
    folder = tmp_path_factory.mktemp("many")
    for number, file in enumerate(hub_modules.random_modules(tiny.model(), 7)):
        where = hub_modules.write(file, folder)
        instruction = tasks.get(tasks.names("module")[number]).instructions[0]
        (where / zoo.CARD_FILE).write_text(json.dumps({"instruction": instruction}), encoding="utf-8")
    return folder, {name: text for name, (text, _) in zoo.headers(folder).items()}


def test_a_prefilter_chooses_what_the_whole_choice_would(many, loaded, rows, monkeypatch) -> None:
    folder, cards = many
    model, tokenizer = loaded
    monkeypatch.setattr(candidates, "AT_ONCE", 3)  # not all at once
    asked = {
        "instruction": Question(model=model, tokenizer=tokenizer, instruction="Add.", cards=cards),
        "loss": Question(model=model, modules=stack(zoo.load(folder=folder), composition="exact"), rows=rows[:1]),
    }
    wanted = {
        "draw": candidates.random_candidates(list(cards), 4, seed=5),
        "instruction": choose("input_embedding", 4, asked["instruction"]),
        "loss": choose("loss", 4, asked["loss"]),
    }
    for how, names in wanted.items():
        assert candidates.prefilter(f"{how}:4", folder, model, tokenizer, "Add.", rows, seed=5) == names
    with pytest.raises(CourseError, match="8 candidates can't be chosen from 7 modules"):
        candidates.prefilter("loss:8", folder, model, tokenizer, "Add.", rows)
    with pytest.raises(CourseError, match="no pre-filter 'los:2'"):
        candidates.prefilter("los:2", folder, model, tokenizer, "Add.", rows)


def test_headers_are_read_without_tensors(many, tmp_path) -> None:
    folder, cards = many
    trained, _ = stand_ins.modules_for(get_profile("tiny"), ["past", "upper"])
    adapter_files.write_adapter(replace(trained, base_model_sha256="ab" * 32), tmp_path / "past")
    assert zoo.headers(tmp_path) == {"past": ("", "ab" * 32)}
    assert len(cards) == 7 and zoo.headers(folder)["m0"][1] is None
    file = tmp_path / "past" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CourseError, match="past can't be read"):
        zoo.headers(tmp_path)


def test_a_draw_can_choose() -> None:
    question = Question(NAMES, 3)
    assert choose("random", 2, question) == candidates.random_candidates(NAMES, 2, 3)


def test_a_method_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def alphabetical(count: int, question: Question) -> list[str]:
        return sorted(question.names)[:count]

    monkeypatch.setitem(candidates.METHODS, "alphabetical", (("names",), alphabetical))
    assert choose("alphabetical", 2, Question(NAMES)) == ["bool", "past"]
    with pytest.raises(CourseError, match="'alphabetical' needs names"):
        choose("alphabetical", 2, Question())


def test_what_is_missing_or_unknown_is_said(files, loaded, rows) -> None:
    with pytest.raises(CourseError, match=r"no way to choose called 'los'.*loss"):
        choose("los", 2, Question())
    with pytest.raises(CourseError, match="'loss' needs model, modules, rows"):
        choose("loss", 2, Question())
    with pytest.raises(CourseError, match="needs model, tokenizer, instruction, cards"):
        choose("hidden_embedding", 2, Question(cards={}))
    cards, modules = dict.fromkeys(NAMES, "Do."), stack(files, composition="exact")
    question = Question(NAMES, 0, *loaded, modules, rows, "Do it.", cards)
    for count in (0, 6):
        for method in candidates.METHODS:
            with pytest.raises(CourseError, match=f"{count} candidates can't be chosen from 5 modules"):
                choose(method, count, question)


def test_an_encoder_decoder_is_embedded_by_its_encoder() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = T5Config(vocab_size=1024, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
        model = T5ForConditionalGeneration(settings).eval()
    ids = torch.tensor([tiny.tokenizer()("Write it down.").input_ids])
    with torch.no_grad():
        expected = model.encoder(input_ids=ids).last_hidden_state[0].mean(0)
    torch.testing.assert_close(candidates.embed(model, tiny.tokenizer(), ["Write it down."])[0], expected)
