"""Files as they were handed in, in a folder or an archive: read with limits, nothing unpacked, no link followed.

Canvas and Moodle put a number of theirs into each name. It stays in the student's name here and tells students apart,
so that points can be given back without a table of names: Canvas's `lovelaceada_LATE_4711_90210_01_lora_layer-1.ipynb`
becomes `4711-lovelaceada`, a file in Moodle's folder `Ada Lovelace_4711_assignsubmission_file_` becomes
`4711-Ada Lovelace`.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lorahub_edu.errors import CourseError

NOTEBOOK_BYTES = 20 << 20
ARCHIVE_ENTRIES = 1_000_000  # of all students; each one's have a limit of their own
DEPTH, NAME_LENGTH = 6, 255
CANVAS = re.compile(r"(?P<name>[^_]+)(?P<late>_LATE)?_(?P<number>\d+)_(?P<file>\d+(?=_)|(?=text\.html))_?(?P<rest>.+)")
MOODLE = re.compile(r"(?P<name>.+?)_(?P<number>\d+)_assignsubmission_[a-z]+_?(?P<rest>.*)")
MOODLE_FOLDER = re.compile(r"(?P<name>.+)_(?P<number>\d+)_assignsubmission_[a-z]+_?(?P<rest>)")
NUMBERED = re.compile(r"(?P<number>\d+)-.+")  # a student's name here that begins with a platform's number
JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Found:
    """A file that may be part of a submission: its path as parts, where its bytes are, and what is wrong with it."""

    parts: tuple[str, ...]
    path: Path | None = None
    archive: zipfile.ZipFile | None = field(default=None, repr=False)
    entry: zipfile.ZipInfo | None = field(default=None, repr=False)
    trouble: str = ""

    @property
    def name(self) -> str:
        return shown("/".join(self.parts))

    @property
    def junk(self) -> bool:
        """Whether an operating system or an editor made it."""
        return any(part in JUNK or part.startswith(".") for part in self.parts)

    @property
    def modified(self) -> tuple | float:
        """When it was changed, to be compared with others of the same archive or folder."""
        return self.entry.date_time if self.path is None else os.lstat(self.path).st_mtime

    @property
    def size(self) -> int:
        return self.entry.file_size if self.path is None else os.lstat(self.path).st_size

    def read(self, limit: int = NOTEBOOK_BYTES) -> tuple[bytes, str]:
        """Its bytes, never more than the limit, and what is wrong with it if something is."""
        content, trouble = (b"", self.trouble) if self.trouble else self._open(limit)
        if len(content) > limit:
            return b"", f"it is larger than {limit >> 20} MB"
        return content, trouble

    def _open(self, limit: int) -> tuple[bytes, str]:
        if self.path is not None:
            return _read_regular(self.path, limit)
        if stat.S_ISLNK(self.entry.external_attr >> 16):
            return b"", "it is a link, not a file"
        try:
            with self.archive.open(self.entry) as stream:
                return stream.read(limit + 1), ""
        except (zipfile.BadZipFile, RuntimeError, OSError, NotImplementedError, EOFError, ValueError) as error:
            return b"", f"it can't be unpacked ({shown(str(error)[:80])})"


def shown(text: str) -> str:
    """A text of somebody else's without what a terminal or an encoder can't take."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def files_in(folder: Path) -> Iterator[Found]:
    """What lies in a folder; links to folders, and folders that are called like notebooks, are not entered."""
    for directory, inner, names in os.walk(folder, followlinks=False):
        parts = Path(directory).relative_to(folder).parts
        closed = [name for name in inner if name.endswith(".ipynb") or (Path(directory) / name).is_symlink()]
        deep = set(inner) - set(closed) if len(parts) >= DEPTH else set()
        inner[:] = sorted(set(inner) - set(closed) - deep)
        for name in sorted([*names, *closed, *deep]):
            path = Path(directory) / name
            link = name in closed and path.is_symlink()
            trouble = "it is a link, not a file" if link else "its folders are nested too deep" if name in deep else ""
            yield Found((*parts, name), path, trouble=trouble)


def _read_regular(path: Path, limit: int) -> tuple[bytes, str]:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        return b"", "it is a link, not a file" if path.is_symlink() else f"it can't be opened ({error.strerror})"
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return b"", "it is not an ordinary file"
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(limit + 1), ""


def entries(path: Path, assignments: Container[str]) -> Iterator[Found]:
    """Files of a zip archive, less a common outer folder; nothing is unpacked to disk.

    Raises CourseError: it is no archive, or one of too many files.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CourseError(f"{path} is no folder and no zip archive ({error}).") from None
    if len(archive.infolist()) > ARCHIVE_ENTRIES:
        raise CourseError(f"{path} would unpack to more than {ARCHIVE_ENTRIES:,} files: not touched.")
    found = []
    for entry in archive.infolist():
        parts = PurePosixPath(_named(entry).replace("\\", "/")).parts
        if entry.is_dir() or not parts:
            continue
        if any(part in ("/", "..") for part in parts) or ":" in parts[0]:
            yield Found(parts, archive=archive, entry=entry, trouble="its path leads out of the archive")
        elif max(map(len, parts)) > NAME_LENGTH:
            yield Found(parts, archive=archive, entry=entry, trouble="its name is longer than a file's may be")
        else:
            found.append(Found(parts, archive=archive, entry=entry))
    shift = _outer([file.parts for file in found if not file.junk], assignments)
    for file in found:
        beside = "" if len(file.parts) > shift else "it lies beside the folder with the submissions"
        yield Found(file.parts[0 if beside else shift :], archive=archive, entry=file.entry, trouble=beside)


def _named(entry: zipfile.ZipInfo) -> str:
    """An entry's name; macOS writes UTF-8 without saying so."""
    try:
        return entry.filename if entry.flag_bits & 0x800 else entry.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return entry.filename


def _outer(paths: list[tuple[str, ...]], assignments: Container[str]) -> int:
    """How many outer folders say nothing: 1 if all notebooks lie in one that is no student's."""
    notebooks = [parts for parts in paths if parts[-1].endswith(".ipynb")] or paths
    outer = {parts[0] for parts in notebooks}
    if len(outer) != 1 or any(len(parts) == 1 for parts in notebooks) or MOODLE.fullmatch(min(outer)):
        return 0
    return 0 if any(len(parts) > 2 and parts[1] in assignments for parts in notebooks) else 1
