"""The table of word tasks: what each asks, in which words, and of which kind it is."""

from __future__ import annotations

from dataclasses import dataclass

from word_pools import in_words
from word_rows import (
    Rows,
    antonyms,
    anything,
    differ,
    film_reviews,
    forms,
    groups,
    logic,
    membership,
    numbers,
    pairs,
    several,
    single,
    yes_no,
)


@dataclass(frozen=True)
class WordTask:
    """A task's kind ("module", "settling" or "target"), wordings, and rows: `rows(True)` are a module's training rows,
    `rows(False)` the held-out ones."""

    kind: str
    instructions: tuple[str, ...]
    rows: Rows


MODULES = {
    "antonym": (
        antonyms(),
        "Give the opposite of the word.",
        "What is the antonym of this word?",
        "Write a word that means the contrary.",
    ),
    "plural": (
        forms("nouns", 0, 1),
        "Give the plural of the noun.",
        "What is the plural form of this noun?",
        "Write the word for more than one of these.",
    ),
    "past": (
        forms("verbs", 0, 2),
        "Give the past tense of the verb.",
        "What is the simple past of this verb?",
        "Write the verb as it is used for yesterday.",
    ),
    "gerund": (
        forms("verbs", 0, 3),
        "Give the -ing form of the verb.",
        "What is the present participle of this verb?",
        "Write the verb with its ing ending.",
    ),
    "comparative": (
        forms("adjectives", 0, 1),
        "Give the comparative of the adjective.",
        "What is the comparative form of this adjective?",
        "Write the form that is used with than.",
    ),
    "num2words": (
        numbers(1, 999, str, in_words),
        "Write the number in words.",
        "How is this number spelled out?",
        "Turn the digits into English words.",
    ),
    "words2num": (
        numbers(1, 999, in_words, str),
        "Write the number in digits.",
        "Which number do these words stand for?",
        "Turn the number words into figures.",
    ),
    "upper": (
        single(str.upper),
        "Write the word in capital letters.",
        "Change this word to upper case.",
        "Put every letter of the word in capitals.",
    ),
    "reverse": (
        several("reverse", (2, 3, 4), " ", lambda phrase: " ".join(phrase[::-1])),
        "Write the words in reverse order.",
        "Reverse the order of these words.",
        "Give the words back from last to first.",
    ),
    "first_letter": (
        single(lambda word: word[0]),
        "Give the first letter of the word.",
        "Which letter does this word begin with?",
        "Write only the letter at the start of the word.",
    ),
    "last_letter": (
        single(lambda word: word[-1]),
        "Give the last letter of the word.",
        "Which letter does this word end with?",
        "Write only the letter at the end of the word.",
    ),
    "last_word": (
        several("last_word", (2, 3, 4), " ", lambda phrase: phrase[-1]),
        "Give the last word.",
        "Which word stands at the end?",
        "Write only the final word of the line.",
    ),
    "count": (
        several("count", range(2, 10), ", ", lambda phrase: str(len(phrase))),
        "Count the things in the list.",
        "How many items does this list have?",
        "Write the number of things that are listed.",
    ),
    "capital": (
        forms("countries", 0, 1),
        "Give the capital of the country.",
        "What is the capital city of this country?",
        "Write the city where this country is governed from.",
    ),
    "continent": (
        forms("countries", 0, 2),
        "Give the continent of the country.",
        "On which continent is this country?",
        "Write the part of the world where the country lies.",
    ),
    "bool": (
        logic(negate=False),
        "Give the value of the expression.",
        "Is this expression True or False?",
        "Evaluate the logical expression.",
    ),
    "add": (
        pairs(49, anything, "{a} + {b}", lambda a, b: str(a + b)),
        "Add the two numbers.",
        "What is the sum?",
        "Work out the addition.",
    ),
    "subtract": (
        pairs(49, lambda a, b: a >= b, "{a} - {b}", lambda a, b: str(a - b)),
        "Subtract the second number from the first.",
        "What is the difference?",
        "Work out the subtraction.",
    ),
    "greater": (
        pairs(99, differ, "{a} > {b}", lambda a, b: yes_no(a > b)),
        "Is the first number greater than the second?",
        "Say Yes if the left number is larger, else No.",
        "Does the greater-than sign hold here?",
    ),
    "successor": (
        numbers(1, 998, str, lambda number: str(number + 1)),
        "Give the number that comes next.",
        "Which number follows this one?",
        "Write the number that is one larger.",
    ),
    "sentiment": (
        groups("sentiment"),
        "Is the word positive or negative?",
        "Give the sentiment of this word.",
        "Write whether the word is praise (positive) or blame (negative).",
    ),
    "category": (
        groups("categories"),
        "Give the category of the thing.",
        "What kind of thing is this?",
        "Write the group that the word belongs to.",
    ),
    "is_a": (
        membership,
        "Does the word belong to the category?",
        "Is the first a kind of the second?",
        "Say Yes if the thing is in that group, else No.",
    ),
    "sort2": (
        several("sort2", (2,), ", ", lambda phrase: ", ".join(sorted(phrase))),
        "Sort the two words alphabetically.",
        "Put these two words in the order of the alphabet.",
        "Write both words, the one that a dictionary lists earlier first.",
    ),
}

SETTLING = {
    "antonym_upper": (
        antonyms(str.upper),
        "Give the opposite of the word in capital letters.",
        "What is the antonym of this word, in upper case?",
        "Write a word that means the contrary, all in capitals.",
    ),
    "plural_upper": (
        forms("nouns", 0, 1, str.upper),
        "Give the plural of the noun in capital letters.",
        "What is the plural form of this noun, in upper case?",
        "Write the word for more than one of these, all in capitals.",
    ),
    "past_upper": (
        forms("verbs", 0, 2, str.upper),
        "Give the past tense of the verb in capital letters.",
        "What is the simple past of this verb, in upper case?",
        "Write the verb as it is used for yesterday, all in capitals.",
    ),
    "third_person": (
        forms("verbs", 0, 1),
        "Give the third person singular of the verb.",
        "What form does this verb take after he or she?",
        "Write the verb as it is used with it in the present.",
    ),
    "first_word": (
        several("first_word", (3,), " ", lambda phrase: phrase[0]),
        "Give the first word.",
        "Which word stands at the start?",
        "Write only the opening word of the line.",
    ),
    "initial_upper": (
        single(lambda word: word[0].upper()),
        "Give the first letter of the word as a capital.",
        "Which letter does this word begin with, in upper case?",
        "Write the initial of the word as a capital letter.",
    ),
    "add_words": (
        pairs(49, anything, "{a} + {b}", lambda a, b: in_words(a + b)),
        "Add the two numbers and write the sum in words.",
        "What is the sum, spelled out?",
        "Work out the addition and answer in English words.",
    ),
    "predecessor": (
        numbers(2, 999, str, lambda number: str(number - 1)),
        "Give the number that comes before.",
        "Which number precedes this one?",
        "Write the number that is one smaller.",
    ),
}

TARGETS = {
    "gerund_upper": (
        forms("verbs", 0, 3, str.upper),
        "Give the -ing form of the verb in capital letters.",
        "What is the present participle of this verb, in upper case?",
    ),
    "superlative": (
        forms("adjectives", 0, 2),
        "Give the superlative of the adjective.",
        "What is the superlative form of this adjective?",
    ),
    "capital_upper": (
        forms("countries", 0, 1, str.upper),
        "Give the capital of the country in capital letters.",
        "What is the capital city of this country, in upper case?",
    ),
    "country_of_capital": (
        forms("countries", 1, 0),
        "Give the country that has this capital.",
        "Which country is governed from this city?",
    ),
    "last_word_upper": (
        several("last_word_upper", (3,), " ", lambda phrase: phrase[-1].upper()),
        "Give the last word in capital letters.",
        "Which word stands at the end? Answer in upper case.",
    ),
    "reverse_upper": (
        several("reverse_upper", (3,), " ", lambda phrase: " ".join(phrase[::-1]).upper()),
        "Write the words in reverse order and in capital letters.",
        "Reverse the order of these words, in upper case.",
    ),
    "second_word": (
        several("second_word", (3,), " ", lambda phrase: phrase[1]),
        "Give the second word.",
        "Which word stands between the other two?",
    ),
    "count_words": (
        several("count_words", range(2, 10), " ", lambda phrase: str(len(phrase))),
        "Count the words.",
        "How many words does this line have?",
    ),
    "bool_not": (
        logic(negate=True),
        "Give the opposite of the expression's value.",
        "Evaluate the logical expression and negate the result.",
    ),
    "words_add": (
        pairs(49, anything, "{aw} plus {bw}", lambda a, b: str(a + b)),
        "Add the two numbers and write the sum in digits.",
        "What is the sum, in figures?",
    ),
    "less": (
        pairs(99, differ, "{a} < {b}", lambda a, b: yes_no(a < b)),
        "Is the first number less than the second?",
        "Say Yes if the left number is smaller, else No.",
    ),
    "film_sentiment": (
        film_reviews,
        "Is the review good or bad?",
        "Say whether the writer liked the film: good or bad.",
    ),
}

WORD_TASKS = {
    name: WordTask(kind, tuple(wordings), rows)
    for kind, tasks in (("module", MODULES), ("settling", SETTLING), ("target", TARGETS))
    for name, (rows, *wordings) in tasks.items()
}
