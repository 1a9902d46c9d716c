"""The one atomic write: a reader sees the old content or the new content, never a part of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from lorahub_edu.errors import CourseError

LOCK_FILE = ".lock"
STALE_SECONDS = 3600.0  # after this time, an unfinished file belongs to a process that was killed


@contextlib.contextmanager
def replacing(path: Path, what: str = "", *, durable: bool = False) -> Iterator[Path]:
    """A new path beside `path`. The file or folder that the block writes there gets the name `path` at the end.

    If the block raises, nothing changes. If `path` is a folder, its files with other names stay. `durable` content is
    on the disk, not only in the system's memory, before it gets its name.
    Raises CourseError: what is written (`what`, in words) can't be; without words it is an OSError.
    """
    unfinished = path.with_name(f".{path.name}-{uuid.uuid4().hex[:12]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path, STALE_SECONDS)
        yield unfinished
        if durable:
            for file in [unfinished, *unfinished.rglob("*")]:
                _sync(file)
        if unfinished.is_dir() and path.is_dir():
            for file in unfinished.iterdir():
                os.replace(file, path / file.name)
        else:
            os.replace(unfinished, path)
        if durable:
            _sync(path.parent)
    except (OSError, SafetensorError) as error:
        if not what:
            raise
        advice = "Free some space or choose another folder."
        raise CourseError(f"Can't write {what} to {path}: {error}. {advice}") from error
    finally:
        _remove(unfinished)


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold a folder, made if missing, against a second run into it. The system frees it when this process ends.

    A folder that was made here and into which nothing was written is removed again.
    Raises CourseError: another run writes there. OSError: the folder can't be made or written.
    """
    from filelock import FileLock, Timeout

    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise CourseError(f"Another run writes to {folder}: wait until it ends, or choose another folder.") from None
    try:
        yield
    finally:
        lock.release()
        if made and [path.name for path in folder.iterdir()] == [LOCK_FILE]:
            shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(path: Path, seconds: float = 0.0) -> None:
    """Remove what killed writers of `path` left beside it, if it is older than `seconds`."""
    for unfinished in path.parent.glob(f".{path.name}-*"):
        with contextlib.suppress(OSError):
            if time.time() - unfinished.stat().st_mtime >= seconds:
                _remove(unfinished)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
