"""The answers of the word tasks: facts, numbers, forms of words, and both answers of a question balanced."""

from __future__ import annotations

from collections import Counter

import inflect
import lemminflect
import pycountry
import pytest
import word_pools
from word_tasks import WORD_TASKS

from lorahub_edu.data.tasks import Item, get
from lorahub_edu.errors import CourseError

ENGINE = inflect.engine()


def spelled(number: int) -> str:
    return ENGINE.number_to_words(number, andword="").replace("-", " ")


def answers(name: str) -> dict[str, str]:
    return answers_of(get(name).train + get(name).test)


def answers_of(items: tuple[Item, ...]) -> dict[str, str]:
    return {item.input: item.output for item in items}


def both_sides(name: str) -> dict[str, str]:
    """All answers, those too that are beyond the number of items of a task."""
    return {row.input: row.output for side in (True, False) for row in WORD_TASKS[name].rows(side)}


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
