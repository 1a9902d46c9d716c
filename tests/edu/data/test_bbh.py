"""BIG-Bench Hard is found where it may lie, fetched once, read as it is published, and split without a leak."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import bbh_stand_ins
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants
from stand_ins import StandIn, closed_address

from lorahub_edu.data import bbh, tasks
from lorahub_edu.data.fewshot import split
from lorahub_edu.errors import CourseError
from lorahub_edu.files.sources import HubFile

NAME = "boolean_expressions"
ROWS = bbh_stand_ins.boolean_rows()


@pytest.fixture(autouse=True)
def course_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no local folder, and a hub's address where nobody answers."""
    monkeypatch.delenv("LORAHUB_EDU_LOCAL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("LORAHUB_EDU_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", closed_address())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "home"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder that holds the two stand-in tasks as published."""
    monkeypatch.setenv("LORAHUB_EDU_LOCAL", str(tmp_path / "stick"))
    return bbh_stand_ins.write(tmp_path / "stick")


def parquet(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def hub_file(name: str) -> HubFile:
    (file,) = {edition.hub for edition in bbh.asset(name).editions} - {None}
    return file


def pairs(items: tuple[tasks.Item, ...]) -> list[dict[str, str]]:
    return [{"input": item.input, "target": item.output} for item in items]


def test_there_are_27_tasks_each_with_its_own_instruction() -> None:
    assert len(bbh.names()) == len(set(bbh.names())) == 27
    assert len(set(bbh.INSTRUCTIONS.values())) == 27
    assert all(sentence.endswith(".") and len(sentence) < 80 for sentence in bbh.INSTRUCTIONS.values())


def test_local_files_are_read_as_published(local: Path) -> None:
    task = bbh.load(NAME, offline=True)
    assert (task.name, task.kind, task.test) == (NAME, "bbh", ())
    assert task.instructions == (bbh.INSTRUCTIONS[NAME],)
    assert pairs(task.train) == ROWS
    for item in task.train:
        assert str(eval(item.input.removesuffix(" is"))) == item.output
    assert pairs(bbh.load("object_counting", offline=True).train) == bbh_stand_ins.counting_rows()


@pytest.mark.parametrize(
    "place",
    [
        f"bbh/{NAME}.json",
        f"{NAME}.json",
        f"bbh/{NAME}/test-00000-of-00001.parquet",
        f"{NAME}/test-00000-of-00001.parquet",
    ],
)
def test_a_clone_of_either_place_serves_as_local_folder(place: str, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "clone" / place
    file.parent.mkdir(parents=True)
    file.write_bytes(parquet(ROWS) if place.endswith("parquet") else json.dumps({"examples": ROWS}).encode())
    monkeypatch.setenv("LORAHUB_EDU_LOCAL", str(tmp_path / "clone"))
    assert pairs(bbh.load(NAME, offline=True).train) == ROWS


def test_the_hub_is_asked_once_and_then_the_cache_serves(hub: StandIn, course_home: Path) -> None:
    file = hub_file(NAME)
    assert (file.repo, file.filename) == ("lukaemon/bbh", f"{NAME}/test-00000-of-00001.parquet")
    there = hub.put_on_hub(file, parquet(ROWS))
    assert pairs(bbh.load(NAME).train) == ROWS
    assert hub.asked(there) == 1
    assert (course_home / "files" / "bbh" / file.filename).is_file()
    requests = len(hub.requests)
    assert pairs(bbh.load(NAME).train) == pairs(bbh.load(NAME, offline=True).train) == ROWS
    assert len(hub.requests) == requests


def test_local_goes_before_cache_and_hub(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put_on_hub(hub_file(NAME), parquet(ROWS[:20]))
    assert len(bbh.load(NAME).train) == 20
    monkeypatch.setenv("LORAHUB_EDU_LOCAL", str(bbh_stand_ins.write(tmp_path / "stick")))
    assert len(bbh.load(NAME).train) == len(ROWS)


def test_offline_opens_no_connection_and_says_where_to_put_the_file(hub: StandIn, monkeypatch) -> None:
    opened: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: opened.append(address))
    with pytest.raises(CourseError) as caught:
        bbh.load("snarks", offline=True)
    assert opened == [] and hub.requests == []
    for word in ("snarks", "LORAHUB_EDU_LOCAL", "snarks.json", "offline was chosen", "suzgunmirac/BIG-Bench-Hard"):
        assert word in str(caught.value)


def test_without_network_the_message_lists_every_place(local: Path, course_home: Path) -> None:
    with pytest.raises(CourseError) as caught:
        bbh.load("snarks")
    for word in ("local folder", str(local), "cache", str(course_home), "hub http://127", "check the network"):
        assert word in str(caught.value)


def test_a_hub_without_the_file_and_a_hub_that_is_switched_off(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CourseError, match="snarks/test-00000-of-00001.parquet"):
        bbh.load("snarks")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CourseError, match="HF_HUB_OFFLINE is set"):
        bbh.load("snarks")


def test_a_broken_download_leaves_nothing_that_would_be_read(hub: StandIn, course_home: Path) -> None:
    data = parquet(ROWS)
    hub.put_on_hub(hub_file(NAME), data)
    hub.cuts = [len(data) // 2] * 10
    with pytest.raises(CourseError, match="Can't get"):
        bbh.load(NAME)
    assert not (course_home / "files" / "bbh" / hub_file(NAME).filename).exists()
    hub.cuts = []
    assert pairs(bbh.load(NAME).train) == ROWS


def test_a_cache_that_cannot_be_written_is_named(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    hub.put_on_hub(hub_file(NAME), parquet(ROWS))
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(CourseError, match="LORAHUB_EDU_HOME"):
        bbh.load(NAME)


def test_an_unknown_task_gets_near_matches() -> None:
    with pytest.raises(CourseError, match="'web_of_lies'"):
        bbh.load("web_of_lie")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"examples": [{"input": "1 + 1 is", "tar', "not valid JSON.*line 1.*cut short"),
        (b'[{"input": "1 + 1 is", "target": "2"}]', "list"),
        (b'{"rows": []}', "rows"),
        (b'{"examples": []}', "no example"),
        (b'{"examples": [{"input": "1 is", "target": "1"}, {"input": "2 is"}]}', "example 2"),
        (b'{"examples": [{"input": "1 is", "target": "  "}]}', "example 1"),
        (b'{"examples": [{"input": "1 is", "target": 1}]}', "example 1"),
        (b'{"examples": ["1"]}', "example 1"),
        ("{é}".encode("latin-1"), "not UTF-8"),
    ],
)
def test_bad_files_are_refused_with_what_is_wrong(content: bytes, says: str, local: Path) -> None:
    file = local / "bbh" / f"{NAME}.json"
    file.write_bytes(content)
    with pytest.raises(CourseError, match=says) as caught:
        bbh.load(NAME, offline=True)
    assert str(file) in str(caught.value)


def test_bad_parquet_files_are_refused_with_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    file.write_bytes(parquet(ROWS)[:200])
    with pytest.raises(CourseError, match="not a readable parquet file"):
        bbh.read(file)
    file.write_bytes(parquet([{"question": "1 is", "target": "1"}]))
    with pytest.raises(CourseError, match="example 1"):
        bbh.read(file)
    with pytest.raises(CourseError, match="missing.json is missing"):
        bbh.read(tmp_path / "missing.json")


def test_a_split_is_a_partition_of_the_rows_and_depends_on_the_seed_alone(local: Path) -> None:
    task = bbh.load(NAME)
    splits = [split(task, seed, 5, 1000) for seed in range(4)]
    for examples, test in splits:
        assert len(examples) == 5
        assert sorted(pairs(examples + test), key=str) == sorted(ROWS, key=str)
        assert [row for row in ROWS if row in pairs(test)] == pairs(test)  # in the file's order
    assert len({frozenset(examples) for examples, _ in splits}) == 4
    assert split(bbh.load(NAME), 2, 5, 1000) == splits[2]
    assert [len(part) for part in split(task, 0, 8, 3)] == [8, 3]


def test_a_question_asked_twice_is_never_in_both_parts() -> None:
    rows = [tasks.Item(f"question {number // 2}", str(number)) for number in range(20)]
    task = tasks.Task("twice", "bbh", ("Answer.",), tuple(rows), ())
    for seed in range(20):
        examples, test = split(task, seed, 5, 1000)
        asked = {item.input for item in examples}
        assert len(asked) == 5 and not asked & {item.input for item in test} and len(test) == 10


@pytest.mark.parametrize("shots", [-1, 61])
def test_impossible_splits_are_refused(shots: int, local: Path) -> None:
    with pytest.raises(CourseError, match=f"{shots} items can't be drawn from the 60"):
        split(bbh.load(NAME), 0, shots, 10)
