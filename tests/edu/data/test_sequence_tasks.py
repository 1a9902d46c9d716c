"""Tasks over phrases: right answers, disjoint parts, and token ids as the course's own encoding makes them."""

from __future__ import annotations

import pytest

from lorahub_edu.data import alpaca, sequence_tasks
from lorahub_edu.errors import CourseError
from lorahub_edu.models import tiny

WORDS = ["apple", "chair", "string", "rhythm"]


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("reverse", "rhythm string chair apple"),
        ("capitals", "apple CHAIR string RHYTHM"),
        ("lengths", "5 5 6 6"),
        ("sort", "apple chair rhythm string"),
        ("pig_latin", "appleway airchay ingstray rhythmway"),
    ],
)
def test_answers_worked_by_hand(task: str, answer: str) -> None:
    assert sequence_tasks.TASKS[task][1](WORDS) == answer


@pytest.mark.parametrize("task", sequence_tasks.TASKS)
def test_parts_share_no_phrase_and_do_not_depend_on_the_training_rows(task: str) -> None:
    few, many = sequence_tasks.split(task, train=10), sequence_tasks.split(task, train=300)
    assert (len(many.train), len(many.settling), len(many.validation)) == (300, 128, 256)
    phrases = [row.input for part in (many.train, many.settling, many.validation) for row in part]
    assert len(set(phrases)) == len(phrases)
    assert (few.validation, few.settling, few.train) == (many.validation, many.settling, many.train[:10])
    assert {len(row.input.split()) for row in many.train} == set(sequence_tasks.LENGTHS)
    assert all(row.output == sequence_tasks.TASKS[task][1](row.input.split()) for row in many.validation)
    assert sequence_tasks.split(task, train=10, seed=1).validation != few.validation


def test_rows_are_encoded_as_everywhere_in_the_course() -> None:
    tokenizer = tiny.tokenizer()
    rows = sequence_tasks.split("sort", train=5, settling=1, validation=1).train
    theirs = alpaca.encode_rows(rows, tokenizer, block_size=512)
    assert [row.encoded() for row in sequence_tasks.encode(tokenizer, rows)] == theirs


def test_wrong_names_and_sizes_are_refused() -> None:
    with pytest.raises(CourseError, match="Did you mean 'pig_latin'"):
        sequence_tasks.split("pig-latin")
    with pytest.raises(CourseError, match="at least 1 of each"):
        sequence_tasks.split("sort", train=0)
