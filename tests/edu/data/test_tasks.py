"""The tasks' items: right, clean, split so that no target is trained on; the user's own file; prompts and draws."""

from __future__ import annotations

import hashlib
import json
import random
import re
from itertools import combinations
from pathlib import Path

import build_tasks
import pytest
import word_pools
import word_rows

from lorahub_edu.data import sequence_tasks
from lorahub_edu.data.tasks import Item, draw, get, names

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "lorahub_edu" / "data"
MODULES, SETTLING, TARGETS = (names(kind) for kind in ("module", "settling", "target"))
# The world has no more countries with one capital, adjectives with a superlative, or words in the sentiment list.
SMALL_TESTS = {"capital": 70, "continent": 70, "capital_upper": 45, "country_of_capital": 45, "superlative": 65}
SMALL_TESTS |= {"sentiment": 80}


# Digits, True and False can't but occur in both, as do "South" and "New" in names; whole inputs are compared above all.
OF_NUMBERS_OR_NAMES = [
    "add_words",
    "predecessor",
    "words_add",
    "less",
    "bool_not",
    "capital_upper",
    "country_of_capital",
]


def answers(name: str) -> dict[str, str]:
    return answers_of(get(name).train + get(name).test)


def answers_of(items: tuple[Item, ...]) -> dict[str, str]:
    return {item.input: item.output for item in items}


def parts(item: Item) -> set[str]:
    return set(re.findall(r"[\w'-]+", item.input))


def test_there_are_24_modules_8_settling_targets_and_12_targets() -> None:
    assert (len(MODULES), len(SETTLING), len(TARGETS)) == (24, 8, 12)
    assert names() == MODULES + SETTLING + TARGETS
    assert {get(name).kind for name in TARGETS} == {"target"}
    assert all(get(name).name == name for name in names())


@pytest.mark.parametrize("name", names())
def test_a_task_has_enough_items_and_its_test_shares_no_input_with_its_training(name: str) -> None:
    task = get(name)
    most = (build_tasks.TRAIN_ITEMS, build_tasks.TEST_ITEMS)
    assert (80 if task.kind == "module" else 30) <= len(task.train) <= most[0]
    assert SMALL_TESTS.get(name, 100) <= len(task.test) <= most[1]
    inputs = [item.input for item in task.train + task.test]
    assert len(set(inputs)) == len(inputs)  # so no input has two outputs either
    for item in task.train + task.test:
        assert item.input and item.input == item.input.strip()
        assert item.output and item.output == item.output.strip()


def test_no_input_of_a_target_is_a_training_input_of_any_module() -> None:
    trained = {name: {item.input for item in get(name).train} for name in MODULES}
    shared = {
        (target, module): both
        for target in SETTLING + TARGETS
        for module in MODULES
        if (both := {item.input for item in get(target).train + get(target).test} & trained[module])
    }
    assert not shared


@pytest.mark.parametrize("name", [name for name in SETTLING + TARGETS if name not in OF_NUMBERS_OR_NAMES])
def test_no_word_of_a_target_was_in_a_modules_training(name: str) -> None:
    """Not even among others: of a film review only the words of its frame were."""
    trained = {word for module in MODULES if module != "is_a" for item in get(module).train for word in parts(item)}
    trained |= {item.input.split(", ")[0] for item in get("is_a").train}  # the second is a category's name
    framed = {word for frame in word_rows.FRAMES for word in parts(Item(frame, ""))}
    asked = {word for item in get(name).train + get(name).test for word in parts(item)}
    asked -= framed if name == "film_sentiment" else set()
    assert len(asked) >= 80
    assert not asked & trained


def test_both_words_of_an_antonym_pair_are_on_the_same_side() -> None:
    training = answers_of(get("antonym").train)
    assert training
    assert all(training[answer] == question for question, answer in training.items())  # so no test asks it backwards


@pytest.mark.parametrize("name", ["add", "greater", "add_words", "words_add", "less"])
def test_both_orders_of_two_numbers_are_on_the_same_side(name: str) -> None:
    train, test = (
        {frozenset(re.split(r" [+<>] | plus ", item.input)) for item in part}
        for part in (get(name).train, get(name).test)
    )
    assert min(len(train), len(test)) >= 100
    assert not train & test  # 7 + 12 would give away 12 + 7


def test_a_targets_examples_and_test_share_no_word() -> None:
    sentiment = {word for group in word_pools.load("sentiment").values() for word in group}
    film = get("film_sentiment")
    shown, tested = ({word for item in part for word in parts(item) & sentiment} for part in (film.train, film.test))
    assert min(len(shown), len(tested)) >= 30
    assert not shown & tested


def test_a_second_build_gives_the_shipped_files_to_the_byte() -> None:
    for cached in (word_pools.load, word_pools.words, word_pools._partners):
        cached.cache_clear()
    random.seed(1)  # a global generator that a build may not read
    state = random.getstate()
    for name, text in build_tasks.contents().items():
        assert (DATA / name).read_text(encoding="utf-8") == text
    assert random.getstate() == state


def digest(parts) -> str:
    """SHA-256 over a line of JSON for each part."""
    lines = (json.dumps(part, ensure_ascii=False) + "\n" for part in parts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_tasks_are_those_that_the_zoo_and_every_published_number_belong_to() -> None:
    """The two hashes were taken before the tasks were files, when they were made anew on every machine."""

    def as_pairs(items) -> list[list[str]]:
        return [[item.input, item.output] for item in items]

    parts = []
    for task in map(get, names()):
        parts += [[task.name, task.kind, list(task.instructions)], as_pairs(task.train), as_pairs(task.test)]
        parts += [as_pairs(draw(task, seed)) for seed in range(3)]
    assert digest(parts) == "022e06e7eec98caa3e465f35fb9394a01bc6094dce2d2369fa8982e64865f12f"

    splits = [sequence_tasks.split(name, seed=seed) for name in sorted(sequence_tasks.TASKS) for seed in (0, 1)]
    parts = [
        [[row.instruction, row.input, row.output] for row in part]
        for split in splits
        for part in (split.train, split.settling, split.validation)
    ]
    assert digest(parts) == "f19ba6d970eb59bacfafd408faaf91d49263d9e865da231be9cf7d37a7a69e83"


def test_a_words_side_depends_on_the_word_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = answers_of(get("past").train)
    rows = word_pools.load("verbs")
    monkeypatch.setattr(word_rows, "load", lambda name: [["aaa", "aaas", "aaaed", "aaaing"], *rows[::-1]])
    again = {row.input: row.output for row in word_rows.forms("verbs", 0, 2)(True)}
    again.pop("aaa", None)
    assert again == before


def test_instructions_are_several_and_no_two_tasks_share_one() -> None:
    for name in names():
        assert len(get(name).instructions) >= (2 if name in TARGETS else 3)
    wordings = [wording.lower() for name in names() for wording in get(name).instructions]
    assert not [pair for pair in combinations(wordings, 2) if pair[0] == pair[1]]


def test_outputs_have_capitals_only_where_the_task_is_about_them() -> None:
    shouted = {"upper", "initial_upper"} | {name for name in names() if name.endswith("_upper")}
    named = {"capital", "continent", "country_of_capital", "bool", "bool_not", "greater", "less", "is_a"}
    for name in names():
        outputs = answers(name).values()
        if name in shouted:
            assert all(output.isupper() for output in outputs), name
        elif name in named:
            assert all(output[0].isupper() and not output.isupper() for output in outputs), name
        else:
            assert all(output == output.lower() for output in outputs), name


def test_the_tasks_are_small_and_travel_with_the_package() -> None:
    assert sum((DATA / name).stat().st_size for name in ("tasks.jsonl", "words.json", "SOURCES.md")) <= 800_000
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(pattern in declared for pattern in ('"data/*.jsonl"', '"data/*.json"', '"data/*.md"'))
