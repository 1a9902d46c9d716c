"""A write is seen whole or not at all, and killed writers leave nothing for long."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lorahub_edu.files import save


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "file.txt"
    for text in ("first", "second"):
        with save.replacing(path, durable=durable) as unfinished:
            unfinished.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("durable", [False, True])
def test_a_folder_appears_whole_and_keeps_other_files(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "folder"
    for text in ("first", "second"):
        with save.replacing(path, durable=durable) as unfinished:
            unfinished.mkdir()
            (unfinished / "a.txt").write_text(text)
            assert not path.exists() or (path / "a.txt").read_text() == "first"
        assert (path / "a.txt").read_text() == text
        (path / "README").touch()
    assert sorted(file.name for file in path.iterdir()) == ["README", "a.txt"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True])
def test_a_write_that_fails_changes_nothing(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "content"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="in the middle"), save.replacing(path) as unfinished:
        if folder:
            unfinished.mkdir()
        (unfinished / "half" if folder else unfinished).write_text("half")
        raise RuntimeError("in the middle")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_old_leftovers_go_and_running_writers_stay(tmp_path: Path) -> None:
    path, long_ago = tmp_path / "a.txt", time.time() - 2 * save.STALE_SECONDS
    killed, running, other = (tmp_path / name for name in (".a.txt-killed", ".a.txt-running", ".b.txt-killed"))
    for file in (killed, running, other):
        file.touch()
    for file in (killed, other):
        os.utime(file, (long_ago, long_ago))
    with save.replacing(path) as unfinished:
        unfinished.touch()
    assert not killed.exists() and running.exists() and other.exists()
    save.remove_unfinished(path)
    assert not running.exists() and path.exists()
