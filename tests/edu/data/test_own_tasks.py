"""Drawing examples, writing prompts, and the user's own file of a task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorahub_edu.data.tasks import Item, draw, get, names, prompt, read
from lorahub_edu.errors import CourseError


def test_an_unknown_task_or_kind_names_the_near_ones() -> None:
    with pytest.raises(CourseError, match="antonym"):
        get("antonyn")
    with pytest.raises(CourseError, match="module"):
        names("modul")


def test_draws_are_different_items_by_seed() -> None:
    task = get("superlative")
    drawn = {seed: draw(task, seed) for seed in range(5)}
    assert drawn[3] == draw(task, 3)
    assert len({tuple(items) for items in drawn.values()}) == 5
    for items in drawn.values():
        assert len(set(items)) == 5 and set(items) <= set(task.train)
    assert len(draw(task, 0, count=12)) == 12
    with pytest.raises(CourseError, match="1000 items"):
        draw(task, 0, count=1000)


def test_two_tasks_draw_differently_for_one_seed() -> None:
    verbs = [[item.input for item in draw(get(name), 0)] for name in ("past_upper", "third_person")]
    assert {item.input for item in get("past_upper").train} == {item.input for item in get("third_person").train}
    assert verbs[0] != verbs[1]


def test_prompts() -> None:
    shots = [Item("hot", "cold"), Item("big", "small")]
    assert prompt("Say.", "up") == "Say.\nInput: up\nOutput:"
    assert prompt("Say.", "up", shots) == (
        "Say.\nInput: hot\nOutput: cold\n\nSay.\nInput: big\nOutput: small\n\nSay.\nInput: up\nOutput:"
    )


def own(folder: Path, *rows) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_the_users_own_task(tmp_path: Path) -> None:
    path = own(
        tmp_path,
        {"instruction": "Opposite.", "input": "hot", "output": "cold"},
        "",
        {"instruction": "Opposite.", "input": "up", "output": "down", "split": "test"},
        {"instruction": "Opposite.", "output": "nothing"},
    )
    task = read(path)
    assert (task.name, task.kind, task.instructions) == ("mine", "own", ("Opposite.",))
    assert task.train == (Item("hot", "cold"), Item("", "nothing"))
    assert task.test == (Item("up", "down"),)
    assert set(draw(task, 0, count=2)) == set(task.train)


def test_a_field_that_is_not_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(own(tmp_path, *[{"input": "hot", "output": "cold", "system": "Be brief.", "history": []}] * 2))
    assert [record.getMessage() for record in caplog.records] == ["mine.jsonl: the field 'system' is not read."]


def test_the_users_own_task_without_instruction(tmp_path: Path) -> None:
    assert read(own(tmp_path, {"input": "hot", "output": "cold"})).instructions == ("",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"input": "a", "output": "b"}, "{oops"], "line 2 is not valid JSON"),
        ([{"input": "a"}], "line 1 has no output"),
        ([{"input": "a", "output": "  "}], "line 1 has no output"),
        ([{"input": "a", "output": 3}], "line 1: 'output' is 3"),
        ([{"input": None, "output": "b"}], "line 1: 'input' is None"),
        ([["a", "b"]], "line 1 is .*not an object"),
        ([{"input": "a", "output": "b", "split": "dev"}], "'split' is 'dev'"),
        ([{"input": "a", "output": "b", "split": ["test"]}], "'split' is"),
        ([{"input": "a", "output": "b", "split": "test"}], "no training item"),
        ([], "no training item"),
        (
            [{"instruction": wording, "output": "b"} for wording in ("x", "x", "y")],
            "2 different instructions .*line 1: 'x'.*line 3: 'y'",
        ),
        ([{"instruction": "x", "output": "b"}, {"output": "b"}], "different instructions .*line 2: ''"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(CourseError, match=message):
        read(own(tmp_path, *rows))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="missing"):
        read(tmp_path / "nowhere.jsonl")
    with pytest.raises(CourseError, match="a folder"):
        read(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"input": "caf\xe9", "output": "b"}')
    with pytest.raises(CourseError, match="UTF-8"):
        read(tmp_path / "latin.jsonl")
