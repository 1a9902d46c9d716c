"""How the items of the tasks are made from the word lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from word_pools import expressions, fraction, in_words, is_training, load, pool, words

from lorahub_edu.data.sequence_tasks import phrases

PHRASES = 800  # drawn for a task on several words
EXPRESSIONS = 1600
# A word of the first category may well be said to be of the others too, so nobody asks whether it is.
CONFUSABLE = {
    "animal": {"food"},
    "food": {"animal", "fruit", "vegetable", "plant"},
    "fruit": {"food", "plant", "vegetable"},
    "vegetable": {"food", "plant", "fruit"},
    "plant": {"food", "fruit", "vegetable"},
    "instrument": {"tool"},
    "tool": {"instrument"},
}
SECOND_SENSES = {"temple": "body part", "palm": "body part", "reed": "instrument", "bulldozer": "tool"}
FRAMES = (
    "The film was {}.",
    "I found the movie {}.",
    "The acting was {} from start to end.",
    "My friends say the story is {}.",
    "We saw it last night, and it was {}.",
)


@dataclass(frozen=True)
class Row:
    """One item before the split; `key` (a word, a number, an input) decides which part it falls in."""

    key: str
    input: str
    output: str


Rows = Callable[[bool], list[Row]]


def same(text: str) -> str:
    """The text itself."""
    return text


def forms(name: str, question: int, answer: int, write: Callable[[str], str] = same) -> Rows:
    """Rows that ask for one column of a word list and answer with another."""

    def rows(training: bool) -> list[Row]:
        return [Row(row[0], row[question], write(row[answer])) for row in load(name) if is_training(row[0]) == training]

    return rows


def antonyms(write: Callable[[str], str] = same) -> Rows:
    """Rows of the antonym pairs, in both directions."""

    def rows(training: bool) -> list[Row]:
        pairs = [pair for pair in load("antonyms") if is_training(pair[0]) == training]
        return [Row(min(a, b), a, write(b)) for pair in pairs for a, b in (pair, pair[::-1])]

    return rows


def single(write: Callable[[str], str]) -> Rows:
    """Rows that turn one word into something."""
    return lambda training: [Row(word, word, write(word)) for word in pool(words(), training)]


def several(name: str, lengths: Sequence[int], join: str, write: Callable[[list[str]], str]) -> Rows:
    """Rows that turn a few different words, put together with `join`, into something."""

    def rows(training: bool) -> list[Row]:
        candidates = pool([noun for noun, _ in load("nouns")] if join == ", " else words(), training)
        drawn = phrases(f"{name}/{training}", candidates, lengths, PHRASES)
        return [Row(join.join(phrase), join.join(phrase), write(phrase)) for phrase in drawn]

    return rows


def numbers(first: int, last: int, question: Callable[[int], str], answer: Callable[[int], str]) -> Rows:
    """Rows about one number from `first` to `last`."""

    def rows(training: bool) -> list[Row]:
        chosen = [number for number in range(first, last + 1) if is_training(str(number)) == training]
        return [Row(str(number), question(number), answer(number)) for number in chosen]

    return rows


def pairs(last: int, keep: Callable[[int, int], bool], question: str, answer: Callable[[int, int], str]) -> Rows:
    """Rows about two numbers from 1 to `last`; "{a}" and "{b}" stand for digits, "{aw}" and "{bw}" for words.

    Both orders of two numbers fall in the same pool, for every task on two numbers: 7 + 12 would give away 12 + 7.
    """

    def rows(training: bool) -> list[Row]:
        found = []
        for a in range(1, last + 1):
            for b in range(1, last + 1):
                key = f"{min(a, b)} and {max(a, b)}"
                if keep(a, b) and is_training(key) == training:
                    text = question.format(a=a, b=b, aw=in_words(a), bw=in_words(b))
                    found.append(Row(key, text, answer(a, b)))
        return found

    return rows


def groups(name: str, answers: dict[str, str] | None = None) -> Rows:
    """Rows that ask for the group that a word belongs to."""

    def rows(training: bool) -> list[Row]:
        return [
            Row(word, word, (answers or {}).get(group, group))
            for group, members in load(name).items()
            for word in pool(members, training)
        ]

    return rows


def membership(training: bool) -> list[Row]:
    """Each word with its own category (Yes) and with one other (No)."""
    found = []
    for group, members in load("categories").items():
        far = [other for other in load("categories") if other != group and other not in CONFUSABLE.get(group, ())]
        for word in pool(members, training):
            others = [other for other in far if other != SECOND_SENSES.get(word)]
            other = others[int(fraction(f"other category/{word}") * len(others))]
            found += [Row(word, f"{word}, {group}", "Yes"), Row(word, f"{word}, {other}", "No")]
    return found


def film_reviews(training: bool) -> list[Row]:
    """Short sentences on a film, each with one sentiment word."""
    return [
        Row(word, frame.format(word), {"positive": "good", "negative": "bad"}[group])
        for group, members in load("sentiment").items()
        for word in pool(members, training)
        for frame in FRAMES
    ]


def logic(negate: bool) -> Rows:
    """Expressions with their value, or with its opposite."""

    def rows(training: bool) -> list[Row]:
        found = expressions(EXPRESSIONS)
        return [Row(text, text, str(found[text] != negate)) for text in pool(list(found), training)]

    return rows


def differ(a: int, b: int) -> bool:
    """True for two different numbers."""
    return a != b


def anything(a: int, b: int) -> bool:
    """True for any two numbers."""
    return True


def yes_no(value: bool) -> str:
    """The value as an answer."""
    return "Yes" if value else "No"
