"""Attacks by what is handed in: cells that were tampered with, links, archives and names that reach elsewhere."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import nbformat
import pytest
from grading_arena import HONEST, NAME, only, passed
from grading_course import notebook

from lorahub_edu.errors import CourseError
from lorahub_grader.assignments import Assignment
from lorahub_grader.collect import collect
from lorahub_grader.repair import repair

BASE = {"easy": HONEST["easy"], "hard": "hard = lambda x: 0.0"}


def graded(root: Path, arena: Assignment, handed_in: bytes, walls) -> set[str]:
    """What a notebook earns as it is graded: its answers only, in the instructor's notebook."""
    return passed(arena, {"hard": BASE["hard"]} | repair(handed_in, arena)[0], walls, "bubblewrap") & {
        "easy",
        "hard",
    }


def run_as_it_is(handed_in: bytes) -> set[str]:
    """The control: every cell runs as it was handed in, and the test cells in it count."""
    space: dict = {}
    found = set()
    for cell in json.loads(handed_in)["cells"]:
        said = cell.get("metadata", {}).get("nbgrader", {})
        try:
            exec("".join(cell["source"]) if cell["cell_type"] == "code" else "", space)
        except Exception:
            continue
        if said.get("grade"):
            found.add(said["grade_id"].removeprefix("test_"))
    return found & {"easy", "hard"}


def edited(root: Path, change) -> bytes:
    """The released notebook with honest answers, changed by an attacker."""
    made = notebook(root, BASE, NAME)
    made.cells = [c for c in made.cells if c.metadata.nbgrader.grade_id.removeprefix("test_") in ("easy", "hard")]
    change(made)
    return json.dumps(made).encode()


def cell(made: nbformat.NotebookNode, grade_id: str) -> nbformat.NotebookNode:
    return next(c for c in made.cells if c.metadata.nbgrader.grade_id == grade_id)


def emptied(made) -> None:
    cell(made, "test_hard").source = "pass"


def doubled(made) -> None:
    fake = nbformat.from_dict(cell(made, "test_hard"))
    fake.source = "pass"
    made.cells.append(fake)


def claims_to_be_a_test(made) -> None:
    said = cell(made, "hard").metadata.nbgrader
    said.grade, said.grade_id, said.points = True, "test_hard", 1


def worth_more(made) -> None:
    emptied(made)
    cell(made, "test_hard").metadata.nbgrader.points = 500


def another_language(made) -> None:
    emptied(made)
    made.metadata.kernelspec = {"name": "bash", "display_name": "Bash", "language": "bash"}


def markdown_test(made) -> None:
    cell(made, "test_hard").cell_type = "markdown"


TAMPERED = [emptied, doubled, claims_to_be_a_test, worth_more, another_language, markdown_test]


@pytest.mark.parametrize("change", TAMPERED, ids=lambda change: change.__name__)
def test_tampered_cells_do_not_count(change, arena, arena_root, walls) -> None:
    handed_in = edited(arena_root, change)
    assert graded(arena_root, arena, handed_in, walls) == {"easy"}
    assert "hard" in run_as_it_is(handed_in)


def test_a_link_to_the_solution_is_not_followed(arena, arena_root, tmp_path) -> None:
    solution = arena_root / "solutions" / NAME / f"{NAME}.ipynb"
    (tmp_path / "mallory" / NAME).mkdir(parents=True)
    link = tmp_path / "mallory" / NAME / f"{NAME}.ipynb"
    link.symlink_to(solution)
    (tmp_path / "eve").symlink_to(arena_root / "solutions")  # and a whole folder
    found = collect(tmp_path, {NAME: arena.answer_ids}).submissions
    assert [s.student for s in found] == ["mallory"]
    assert found[0].read() == (b"", "it is a link, not a file")
    assert "271828" in link.read_text()  # the control: whoever opens it as it is reads the solution


@pytest.mark.parametrize("special", ["fifo", "folder"])
def test_what_is_no_file_does_not_hang_the_run(special: str, arena, tmp_path) -> None:
    (tmp_path / "mallory" / NAME).mkdir(parents=True)
    place = tmp_path / "mallory" / NAME / f"{NAME}.ipynb"
    if special == "fifo":
        os.mkfifo(place)
        (found,) = collect(tmp_path, {NAME: arena.answer_ids}).submissions
        assert found.read() == (b"", "it is not an ordinary file")
    else:
        place.mkdir()
        (tmp_path / "ada" / NAME).mkdir(parents=True)
        (tmp_path / "ada" / NAME / f"{NAME}.ipynb").write_text("{}")
        rows = {s.student: s.read()[1] for s in collect(tmp_path, {NAME: arena.answer_ids}).submissions}
        assert rows == {"ada": "", "mallory": "it is not an ordinary file"}


def archive(entries: dict[str, bytes], link: str | None = None) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            if name == link:
                entry.external_attr = 0o120777 << 16
            made.writestr(entry, content)
    return data.getvalue()


def test_names_in_an_archive_stay_inside_it(arena, tmp_path) -> None:
    names = ["../evil.ipynb", "/etc/evil.ipynb", "C:/evil.ipynb", "..\\evil.ipynb", "ada.ipynb"]
    (tmp_path / "in.zip").write_bytes(archive({name: b"{}" for name in names}))
    before = sorted(tmp_path.rglob("*"))
    found = collect(tmp_path / "in.zip", {NAME: arena.answer_ids}).submissions
    assert [s.student for s in found] == ["ada"]
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked at all
    joined = [(tmp_path / "submitted" / name).resolve() for name in names]  # the control: joining the names as they are
    assert any(not path.is_relative_to(tmp_path / "submitted") for path in joined)


@pytest.mark.parametrize(
    "name", ["..", "../../x", "=cmd()", "a/b", "", " ", ".hidden", "x" * 300, "a\x00b", "-rf", "李" * 95, "𝔄" * 80]
)
def test_a_students_name_is_safe_as_a_file_and_in_a_table(name: str, arena, tmp_path) -> None:
    (tmp_path / "in.zip").write_bytes(archive({f"{name}.ipynb".replace("/", "∕"): b"{}", "ada.ipynb": b"{}"}))
    for submission in collect(tmp_path / "in.zip", {NAME: arena.answer_ids}).submissions:
        assert not set(submission.student) & set("/\\=\x00") and submission.student[0] not in ".-="
        assert 0 < len(submission.student.encode()) <= 200  # a file of that name takes 255 bytes


def test_links_in_an_archive_are_not_followed(arena, tmp_path) -> None:
    (tmp_path / "in.zip").write_bytes(archive({"mallory.ipynb": b"/etc/passwd"}, link="mallory.ipynb"))
    (found,) = collect(tmp_path / "in.zip", {NAME: arena.answer_ids}).submissions
    assert found.read() == (b"", "it is a link, not a file")


def test_a_name_that_takes_long_to_read_is_not_read(arena, tmp_path) -> None:
    names = {"eve" + " -" * 20_000 + ".ipynb": b"{}", "ada.ipynb": b"{}"}  # minutes, for the pattern of a copy's name
    (tmp_path / "in.zip").write_bytes(archive(names))
    found = collect(tmp_path / "in.zip", {NAME: arena.answer_ids})
    assert [s.student for s in found.submissions] == ["ada"] and "its name is longer" in found.ignored[0]


def test_a_zip_bomb_takes_no_memory(arena, tmp_path) -> None:
    (tmp_path / "in.zip").write_bytes(archive({"mallory.ipynb": bytes(60 << 20), "ada.ipynb": b"{}"}))
    assert (tmp_path / "in.zip").stat().st_size < 1 << 20
    found = {s.student: s.read() for s in collect(tmp_path / "in.zip", {NAME: arena.answer_ids}).submissions}
    assert found["mallory"] == (b"", "it is larger than 20 MB") and found["ada"] == (b"{}", "")
    with zipfile.ZipFile(tmp_path / "in.zip") as control:
        assert len(control.read("mallory.ipynb")) == 60 << 20


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"\x80" * 100,
        b"",
        b"[]",
        b"null",
        b'{"cells": 3}',
        b"[" * 100_000,
        b'{"cells": [' + b"[" * 100_000,
    ],
)
def test_what_is_no_notebook_is_said_to_be_none(content: bytes, arena) -> None:
    with pytest.raises(CourseError, match="not a notebook"):
        repair(content, arena)


def test_a_notebook_of_very_many_cells_is_not_looked_through(arena) -> None:
    with pytest.raises(CourseError, match="more than 10,000 cells"):
        repair(b'{"cells": [' + b"{}," * 10_000 + b"{}]}", arena)
    assert repair(b'{"cells": [' + b"{}," * 9_999 + b"{}]}", arena)[0] == {}


def test_other_encodings_are_read_all_the_same(arena, arena_root, walls) -> None:
    honest = json.dumps(notebook(arena_root, BASE | {"easy": HONEST["easy"] + "  # größer"}, NAME), ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        assert repair(honest.encode(encoding), arena)[0]["easy"].endswith("größer")
    with pytest.raises(UnicodeDecodeError):  # the control: reading it as the format says
        json.loads(honest.encode("cp1252"))
    assert passed(only(arena, {"easy"}), {"easy": HONEST["easy"]}, walls, "bubblewrap") == {"easy"}
