"""The tasks' items: right, clean, split so that no target is trained on; the user's own file; prompts and draws."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import build_tasks
import inflect
import lemminflect
import pycountry
import pytest
import word_pools
import word_rows
from word_tasks import WORD_TASKS

from lorahub_edu.data import sequence_tasks
from lorahub_edu.data.tasks import Item, draw, get, names
from lorahub_edu.errors import CourseError

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "lorahub_edu" / "data"
MODULES, SETTLING, TARGETS = (names(kind) for kind in ("module", "settling", "target"))
# The world has no more countries with one capital, adjectives with a superlative, or words in the sentiment list.
SMALL_TESTS = {"capital": 70, "continent": 70, "capital_upper": 45, "country_of_capital": 45, "superlative": 65}
SMALL_TESTS |= {"sentiment": 80}


ENGINE = inflect.engine()
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


def spelled(number: int) -> str:
    return ENGINE.number_to_words(number, andword="").replace("-", " ")


def answers(name: str) -> dict[str, str]:
    return answers_of(get(name).train + get(name).test)


def answers_of(items: tuple[Item, ...]) -> dict[str, str]:
    return {item.input: item.output for item in items}


def both_sides(name: str) -> dict[str, str]:
    """All answers, those too that are beyond the number of items of a task."""
    return {row.input: row.output for side in (True, False) for row in WORD_TASKS[name].rows(side)}


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


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("past", {"go": "went", "begin": "began", "stop": "stopped", "carry": "carried", "visit": "visited"}),
        ("gerund", {"tie": "tying", "stop": "stopping", "write": "writing", "see": "seeing", "listen": "listening"}),
        ("third_person", {"go": "goes", "carry": "carries", "watch": "watches", "do": "does", "obey": "obeys"}),
        ("plural", {"child": "children", "mouse": "mice", "city": "cities", "ox": "oxen", "thief": "thieves"}),
        ("comparative", {"good": "better", "big": "bigger", "happy": "happier", "blue": "bluer", "bad": "worse"}),
        ("superlative", {"good": "best", "big": "biggest", "happy": "happiest", "true": "truest", "bad": "worst"}),
        ("antonym", {"hot": "cold", "cold": "hot", "arrive": "depart", "useful": "useless"}),
        ("capital", {"France": "Paris", "Australia": "Canberra", "Brazil": "Brasilia", "Kenya": "Nairobi"}),
        ("country_of_capital", {"Paris": "France", "Ottawa": "Canada", "Bern": "Switzerland"}),
        ("continent", {"France": "Europe", "Kenya": "Africa", "Peru": "South America", "Fiji": "Oceania"}),
        ("category", {"robin": "animal", "nurse": "profession", "oak": "plant"}),
        ("sentiment", {"dreadful": "negative", "wonderful": "positive"}),
        (
            "num2words",
            {"342": "three hundred forty two", "100": "one hundred", "815": "eight hundred fifteen"},
        ),
    ],
)
def test_facts(name: str, facts: dict[str, str]) -> None:
    known = both_sides(name)
    assert {question: known.get(question) for question in facts} == facts


def test_number_words_are_those_of_inflect() -> None:
    said = {number: spelled(number) for number in range(1000)}
    assert {number: word_pools.in_words(number) for number in said} == said


def test_number_words_refuse_what_they_can_not_say() -> None:
    with pytest.raises(CourseError, match="1000 is not between 0 and 999"):
        word_pools.in_words(1000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num2words", lambda text: spelled(int(text))),
        ("successor", lambda text: str(int(text) + 1)),
        ("predecessor", lambda text: str(int(text) - 1)),
        ("add", lambda text: str(eval(text))),
        ("subtract", lambda text: str(eval(text))),
        ("add_words", lambda text: spelled(eval(text))),
        ("greater", lambda text: "Yes" if eval(text) else "No"),
        ("less", lambda text: "Yes" if eval(text) else "No"),
        ("bool", lambda text: str(eval(text))),
        ("bool_not", lambda text: str(not eval(text))),
        ("count", lambda text: str(text.count(",") + 1)),
        ("count_words", lambda text: str(text.count(" ") + 1)),
        ("reverse", lambda text: " ".join(reversed(text.split()))),
        ("reverse_upper", lambda text: " ".join(reversed(text.split())).upper()),
        ("first_word", lambda text: text.partition(" ")[0]),
        ("second_word", lambda text: text.split()[1]),
        ("last_word", lambda text: text.rpartition(" ")[2]),
        ("last_word_upper", lambda text: text.rpartition(" ")[2].upper()),
        ("sort2", lambda text: ", ".join(sorted(text.split(", ")))),
        ("upper", str.upper),
        ("first_letter", lambda text: text[0]),
        ("last_letter", lambda text: text[-1]),
        ("initial_upper", lambda text: text[0].upper()),
    ],
)
def test_answers_are_those_of_python(name: str, value) -> None:
    wrong = {text: answer for text, answer in answers(name).items() if answer != value(text)}
    assert not wrong


def test_number_words_are_read_and_added() -> None:
    numbers = {spelled(number): number for number in range(1000)}
    assert all(str(numbers[text]) == answer for text, answer in answers("words2num").items())
    for text, answer in answers("words_add").items():
        assert str(sum(numbers[part] for part in text.split(" plus "))) == answer


@pytest.mark.parametrize("name", ["greater", "less", "is_a", "bool", "bool_not", "sentiment", "film_sentiment"])
def test_two_answers_are_balanced(name: str) -> None:
    for part in (get(name).train, get(name).test):
        counts = Counter(item.output for item in part)
        assert len(counts) == 2
        assert min(counts.values()) / len(part) >= 0.4


def test_expressions_have_brackets_not_and_two_to_four_terms() -> None:
    found = list(answers("bool"))
    assert {text.count("True") + text.count("False") for text in found} == {2, 3, 4}
    assert any("(" in text for text in found)
    assert any("not " in text for text in found)


def test_wrong_categories_are_wrong() -> None:
    groups = word_pools.load("categories")
    for text, answer in answers("is_a").items():
        word, group = text.split(", ")
        assert (word in groups[group]) == (answer == "Yes")
    assert answers("is_a").get("temple, body part") is None  # it is one


def test_words_are_clean() -> None:
    verbs, nouns = {row[0] for row in word_pools.load("verbs")}, {row[0] for row in word_pools.load("nouns")}
    assert not verbs & {"card", "travel", "cancel", "label", "chair", "be", "hang", "learn"}  # two forms, or no verb
    assert not nouns & {"july", "information", "furniture", "equipment", "advice", "people", "roof", "fish"}
    assert len(verbs) >= 500 and len(nouns) >= 500
    assert len(word_pools.load("antonyms")) >= 250 and len(word_pools.load("adjectives")) >= 150
    assert sum(map(len, word_pools.load("categories").values())) >= 400
    assert min(map(len, word_pools.load("sentiment").values())) >= 75
    assert len(word_pools.load("countries")) >= 150
    assert all(word.isascii() and word.isalpha() and word.islower() for word in word_pools.words())


def test_a_word_stands_in_one_antonym_pair_and_in_one_group() -> None:
    for words in (
        [word for pair in word_pools.load("antonyms") for word in pair],
        [word for group in word_pools.load("categories").values() for word in group],
        [word for group in word_pools.load("sentiment").values() for word in group],
    ):
        assert [word for word, uses in Counter(words).items() if uses > 1] == []


def test_forms_lead_back_to_their_word() -> None:
    """By lemminflect's lemmatizer, which has another table than its inflection."""
    unknown_to_it = {"ox", "blue", "vague", "polite"}  # it takes "bluer" and "oxen" for words of their own
    for name, tags in (("verbs", ("VERB", "VERB", "VERB")), ("nouns", ("NOUN",)), ("adjectives", ("ADJ", "ADJ"))):
        for word, *forms in word_pools.load(name):
            for form, tag in zip(forms, tags, strict=True):
                assert word in unknown_to_it or word in lemminflect.getLemma(form, tag), (word, form)


def test_countries_are_in_iso_3166_and_have_one_capital_each() -> None:
    known = {"Cape Verde": "Cabo Verde", "Ivory Coast": "Côte d'Ivoire"}
    rows = word_pools.load("countries")
    for country, capital, _ in rows:
        assert pycountry.countries.search_fuzzy(known.get(country, country))
        assert country != capital
    for column in (0, 1):
        assert len({row[column] for row in rows}) == len(rows)
    assert {row[2] for row in rows} == {"Africa", "Asia", "Europe", "North America", "South America", "Oceania"}


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
