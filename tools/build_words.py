"""Writes the word lists into tools/words/, from which tools/build_tasks.py makes the tasks that the course reads.

A developer's script. The words in tools/picked/ were chosen by hand; this script adds their inflected forms and stops
at whatever is not clean: a form that a second source spells differently, a noun or verb that WordNet's tagged text
uses mainly as another part of speech, a word in two antonym pairs or two groups, a country that nobody knows.

    python tools/build_words.py [--wordnet /usr/share/wordnet]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import inflect
import lemminflect
import pycountry

HERE = Path(__file__).resolve().parent
TARGET = HERE / "words"
ENGINE = inflect.engine()
SENSE_KINDS = {"1": "noun", "2": "verb", "3": "adjective", "4": "adverb", "5": "adjective"}  # man page senseidx(5WN)
TAGGED = 5  # with fewer occurrences the tagged text says nothing about a word

# Where the sources differ or lemminflect is wrong, the form was chosen by hand.
CHOSEN_FORMS = {
    ("ox", "NNS"): "oxen",
    ("thief", "NNS"): "thieves",
    ("die", "VBZ"): "dies",
    ("beat", "VBD"): "beat",
    ("melt", "VBD"): "melted",
    ("shave", "VBD"): "shaved",
    ("swell", "VBD"): "swelled",
    ("true", "JJR"): "truer",
    ("true", "JJS"): "truest",
    ("blue", "JJR"): "bluer",
    ("blue", "JJS"): "bluest",
    ("vague", "JJR"): "vaguer",
    ("vague", "JJS"): "vaguest",
}
KNOWN_AS = {"Cape Verde": "Cabo Verde", "Ivory Coast": "Côte d'Ivoire"}  # ISO 3166's names


class Unclean(SystemExit):
    """A word that can't stand in the lists as it is."""


def read_words(name: str) -> list[str]:
    """The words of a picked list, once each, sorted."""
    return sorted(set((HERE / "picked" / f"{name}.txt").read_text(encoding="utf-8").split()))


def read_groups(name: str) -> dict[str, str]:
    """The lines "group: entries" of a picked list."""
    lines = (HERE / "picked" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines if line.strip())


def tag_counts(wordnet: Path) -> dict[str, Counter[str]]:
    """How often each word is used as each part of speech in WordNet's sense-tagged text (its file cntlist.rev)."""
    counts: dict[str, Counter[str]] = {}
    for line in (wordnet / "cntlist.rev").read_text(encoding="ascii").splitlines():
        key, _, count = line.split()
        word, sense = key.split("%")
        counts.setdefault(word, Counter())[SENSE_KINDS[sense[0]]] += int(count)
    return counts


def irregular_forms(wordnet: Path, kind: str) -> dict[str, set[str]]:
    """The words of WordNet's list of irregular forms, each with all its forms."""
    found: dict[str, set[str]] = {}
    for line in (wordnet / f"{kind}.exc").read_text(encoding="ascii").splitlines():
        form, *words = line.split()
        for word in words:
            found.setdefault(word, set()).add(form)
    return found


def require_mainly(word: str, kind: str, share: float, counts: dict[str, Counter[str]]) -> None:
    """Stop at a word that the tagged text uses as `kind` in less than `share` of its occurrences."""
    uses = counts.get(word, Counter())
    if uses.total() >= TAGGED and uses[kind] < share * uses.total():
        raise Unclean(f"{word!r} is {dict(uses)}, not mainly a {kind}. Take it out.")


def inflected(word: str, tag: str, allowed: set[str] | None = None) -> str:
    """One inflected form.

    Args:
        word: the base form.
        tag: the form's Penn Treebank tag.
        allowed: what a second source admits; None where there is none.
    """
    if (word, tag) in CHOSEN_FORMS:
        return CHOSEN_FORMS[word, tag]
    form = lemminflect.getInflection(word, tag)[0]  # the commonest stands first
    if allowed is not None and form not in allowed:
        raise Unclean(f"{word!r} {tag} is {form!r}, or {sorted(allowed)}? Choose one or take it out.")
    return form


def verbs(wordnet: Path, counts: dict[str, Counter[str]]) -> list[list[str]]:
    """Verb, third person, past tense, -ing form."""
    rows = []
    irregular = irregular_forms(wordnet, "verb")  # all that doubles a letter or changes a vowel, in all its forms
    for verb in read_words("verbs"):
        require_mainly(verb, "verb", 0.5, counts)
        listed = irregular.get(verb, set())
        pasts = {form for form in listed if not form.endswith("ing")}
        gerunds = {form for form in listed if form.endswith("ing")}
        regular_past = {verb, verb + "d"} if verb.endswith("e") else {verb, verb + "ed"}
        regular_gerund = {verb[:-1] + "ing"} if verb[-1] == "e" and verb[-2] != "e" else {verb + "ing"}
        third = inflected(verb, "VBZ", {ENGINE.plural_noun(verb)})  # -s is put on verbs and nouns by the same rule
        past = inflected(verb, "VBD", pasts or regular_past)
        rows.append([verb, third, past, inflected(verb, "VBG", gerunds or regular_gerund)])
    return rows


def nouns(counts: dict[str, Counter[str]]) -> list[list[str]]:
    """Noun, plural."""
    rows = []
    for noun in read_words("nouns"):
        require_mainly(noun, "noun", 0.6, counts)
        rows.append([noun, inflected(noun, "NNS", {ENGINE.plural_noun(noun)})])
    return rows


def adjectives() -> list[list[str]]:
    """Adjective, comparative, superlative."""
    rows = []
    for adjective in read_words("adjectives"):
        comparative, superlative = inflected(adjective, "JJR"), inflected(adjective, "JJS")
        if comparative[:-1] != superlative[:-2] and adjective not in ("good", "bad"):
            raise Unclean(f"{adjective!r}: {comparative!r} and {superlative!r} don't go together. Take it out.")
        rows.append([adjective, comparative, superlative])
    return rows


def antonyms() -> list[list[str]]:
    """Pairs of words that are each other's opposite."""
    text = (HERE / "picked" / "antonyms.txt").read_text(encoding="utf-8").replace("\n", " ")
    pairs = [sorted(entry.split()) for entry in text.split(",") if entry.strip()]
    uses = Counter(word for pair in pairs for word in pair)
    if wrong := [pair for pair in pairs if len(pair) != 2 or any(uses[word] > 1 for word in pair)]:
        raise Unclean(f"antonyms.txt: {wrong} are no pairs, or a word stands in two. Keep one.")
    return pairs


def groups(name: str) -> dict[str, list[str]]:
    """Groups of words; a word stands in one only."""
    found = {group: sorted(entries.split()) for group, entries in read_groups(name).items()}
    uses = Counter(word for words in found.values() for word in words)
    if twice := [word for word, count in uses.items() if count > 1]:
        raise Unclean(f"{name}.txt: {twice} stand there twice. Keep one.")
    return found


def countries() -> list[list[str]]:
    """Country, capital, continent."""
    rows = []
    for continent, entries in read_groups("countries").items():
        for entry in entries.split(", "):
            country, capital = entry.split("=")
            try:
                pycountry.countries.search_fuzzy(KNOWN_AS.get(country, country))
            except LookupError:
                raise Unclean(f"countries.txt: ISO 3166 has no {country!r}.") from None
            rows.append([country, capital, continent])
    return sorted(rows)


def as_lines(value: list | dict) -> str:
    """`value` as JSON, one row or one group a line."""

    def dump(part: object) -> str:
        return json.dumps(part, ensure_ascii=False, separators=(",", ":"))

    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"{dump(group)}:{dump(words)}" for group, words in value.items()) + "\n}\n"
    return "[\n" + ",\n".join(map(dump, value)) + "\n]\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder with WordNet's files")
    wordnet = parser.parse_args().wordnet
    counts = tag_counts(wordnet)
    lists = {
        "verbs": verbs(wordnet, counts),
        "nouns": nouns(counts),
        "adjectives": adjectives(),
        "antonyms": antonyms(),
        "categories": groups("categories"),
        "sentiment": groups("sentiment"),
        "countries": countries(),
    }
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, value in lists.items():
        text = as_lines(value)
        (TARGET / f"{name}.json").write_text(text, encoding="utf-8")
        print(f"{name}: {len(value)} rows or groups, {len(text):,} characters")


if __name__ == "__main__":
    main()
