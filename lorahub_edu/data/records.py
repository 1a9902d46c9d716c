"""Records from a user's files, with messages that say what is wrong and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorahub_edu.errors import CourseError


def read_text(path: Path) -> str:
    """A file's text. Raises CourseError when there is no file, it may not be read, or it is not UTF-8."""
    if not path.is_file():
        raise CourseError(f"{path} is {'a folder' if path.is_dir() else 'missing'}. Give one file.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise CourseError(f"{path} is not UTF-8 text: {byte}. Save it again as UTF-8.") from None
    except OSError as error:
        raise CourseError(f"{path} can't be read: {error.strerror or error}. Give a file you may read.") from None


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def parse(text: str, where: str | Path, line: int = 0) -> Any:
    """The value of a JSON text: a whole file, or the given line of one.

    Raises:
        CourseError: it is not JSON; the message begins with `where`.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        raise CourseError(
            f"{where} is not valid JSON: {error.msg} ({place}). It may be cut short. Correct it, or fetch it again."
        ) from None


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file. Raises CourseError when it can't be read."""
    import pyarrow.parquet  # slow to import, and only the hub's files need it

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CourseError(f"{path} is not a readable parquet file: {reason} Fetch it again.") from None
