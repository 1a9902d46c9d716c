"""Finds submissions: nbgrader's layout, a flat folder, what Canvas and Moodle give out, or a zip archive of any.

Links are not followed.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from lorahub_edu.errors import CourseError, near_matches
from lorahub_grader.platforms import canvas_students, moodle_students
from lorahub_grader.repair import which_assignment

NOTEBOOK_BYTES = 20 << 20
ARCHIVE_BYTES = 4 << 30
ARCHIVE_ENTRIES = 20_000
NAME = re.compile(r"\w[\w.@ +-]{0,99}")
EXPECTED = (
    "Expected is nbgrader's layout, STUDENT/ASSIGNMENT/ASSIGNMENT.ipynb, or a flat folder of STUDENT.ipynb, or what "
    "Canvas or Moodle gives out, or a zip archive of any of these."
)


@dataclass(frozen=True)
class Found:
    """A file that may be part of a submission: its path as parts, and where its bytes are."""

    parts: tuple[str, ...]
    path: Path | None = None
    archive: zipfile.ZipFile | None = field(default=None, repr=False)
    entry: zipfile.ZipInfo | None = field(default=None, repr=False)

    def read(self, limit: int = NOTEBOOK_BYTES) -> tuple[bytes, str]:
        """Its bytes, never more than the limit, and what is wrong with it if something is."""
        content, trouble = self._open(limit)
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
            return b"", f"it can't be unpacked ({str(error)[:80]})"


@dataclass(frozen=True)
class Submission:
    """One submission: whose, for what, where it is, when it was handed in, and why it can't be read if so."""

    student: str
    assignment: str
    file: Found | None
    submitted: str = ""
    trouble: str = ""

    def read(self) -> tuple[bytes, str]:
        """The notebook's bytes, and why it can't be read if so."""
        return (b"", self.trouble) if self.file is None else self.file.read()


@dataclass(frozen=True)
class Collected:
    """What was found, by assignment and student, and what was passed over with the reason."""

    submissions: tuple[Submission, ...]
    ignored: tuple[str, ...] = ()


def collect(place: Path, assignments: Mapping[str, frozenset[str]], wanted: str | None = None) -> Collected:
    """Every submission in a folder or archive.

    Args:
        place: nbgrader's layout, a flat folder, what Canvas or Moodle gives out, or a zip archive of any.
        assignments: the ids of each assignment's answers, by its name.
        wanted: one assignment; needed for a flat folder only where notebooks don't tell.

    Returns:
        One that can't be read is there too, with its trouble.

    Raises:
        CourseError: nothing there is a submission.
    """
    if wanted is not None and wanted not in assignments:
        raise CourseError(f"There is no assignment {wanted!r}. {near_matches(wanted, assignments)}")
    if not place.exists():
        raise CourseError(f"There is no {place}. {EXPECTED}")
    if (place / "submitted").is_dir():  # a course's folder: its other notebooks are nobody's submissions
        raise CourseError(f"{place} holds more than submissions. Did you mean {place / 'submitted'}? {EXPECTED}")
    files = list(_files(place) if place.is_dir() else _entries(_archive(place)))
    notebooks = [file for file in files if file.parts[-1].endswith(".ipynb")]
    deep = [file for file in notebooks if len(file.parts) == 3]
    flat, from_platform = _by_student(notebooks)
    if not deep and not flat:
        seen = ", ".join("/".join(file.parts) for file in files[:3]) or "nothing"
        raise CourseError(f"There is no submission in {place}; it holds {seen}. {EXPECTED}")
    found = _deep(deep, files, assignments, wanted) if deep else _flat(flat, assignments, wanted, from_platform)
    if not found.submissions:
        raise CourseError(
            f"There is no submission in {place} that can be graded. {'; '.join(found.ignored[:3])}. {EXPECTED}"
        )
    return replace(found, submissions=tuple(sorted(_apart(found.submissions), key=lambda s: (s.assignment, s.student))))


def _deep(
    notebooks: list[Found], files: list[Found], assignments: Mapping[str, frozenset[str]], wanted: str | None
) -> Collected:
    """nbgrader's layout: a folder a student and assignment, the notebook named like the assignment."""
    found, ignored, by_path = [], [], {file.parts: file for file in files}
    for student, assignment in sorted({file.parts[:2] for file in notebooks}):
        if assignment not in assignments:
            ignored.append(f"{student}/{assignment}: no such assignment. {near_matches(assignment, assignments)}")
        elif wanted in (None, assignment):
            seen = next(file.parts[2] for file in notebooks if file.parts[:2] == (student, assignment))
            file = by_path.get((student, assignment, f"{assignment}.ipynb"))
            trouble = "" if file else f"the notebook is called {seen}, not {assignment}.ipynb"
            stamp = _timestamp(by_path.get((student, assignment, "timestamp.txt")))
            found.append(Submission(_safe(student), assignment, file, stamp, trouble))
    return Collected(tuple(found), tuple(ignored))


def _by_student(notebooks: list[Found]) -> tuple[list[tuple[str, Found]], bool]:
    """Notebooks side by side or in Moodle's folders, with their students, and whether a platform named them."""
    side_by_side = [file for file in notebooks if len(file.parts) == 1]
    in_folders = [file for file in notebooks if len(file.parts) == 2]
    names = [file.parts[0] for file in side_by_side]
    if students := moodle_students([file.parts[0] for file in in_folders]):
        return list(zip(students, in_folders, strict=True)), True
    if students := canvas_students(names):
        return list(zip(students, side_by_side, strict=True)), True
    return [(name.removesuffix(".ipynb"), file) for name, file in zip(names, side_by_side, strict=True)], False


def _flat(
    notebooks: list[tuple[str, Found]],
    assignments: Mapping[str, frozenset[str]],
    wanted: str | None,
    from_platform: bool,
) -> Collected:
    """One notebook a student; which assignment it is, its cells tell.

    One that does not tell is for the others' assignment if a platform gave them out together.
    """
    told = [wanted or which_assignment(file.read()[0], assignments) for _, file in notebooks]
    possible = (set(told) - {None} if from_platform else set()) or set(assignments)
    found, ignored = [], []
    for (student, file), assignment in zip(notebooks, told, strict=True):
        if assignment is not None or len(possible) == 1:
            found.append(Submission(_safe(student), assignment or next(iter(possible)), file))
        else:
            ignored.append(f"{file.parts[-1]} does not tell which assignment it is for: give --assignment NAME")
    return Collected(tuple(found), tuple(ignored))


def _safe(student: str) -> str:
    """A name that is good as a file's name and in a gradebook, and the same name where it is one already."""
    student = student.strip()
    return student if NAME.fullmatch(student) else "_" + re.sub(r"[^\w.@ +-]", "_", student)[:90].strip()


def _apart(submissions: tuple[Submission, ...]) -> Iterator[Submission]:
    """Names that became the same get a number, so that nobody's submission takes another's place."""
    seen: dict[tuple[str, str], int] = {}
    for submission in submissions:
        key = (submission.assignment, submission.student.casefold())
        seen[key] = seen.get(key, 0) + 1
        again = f"-{seen[key]}" if seen[key] > 1 else ""
        yield replace(submission, student=submission.student + again)


def _timestamp(file: Found | None) -> str:
    """What nbgrader wrote when it was handed in; empty where there is nothing that is a time."""
    if file is None:
        return ""
    from nbgrader.utils import parse_utc

    text = file.read(1000)[0].decode("utf-8", "replace").strip()
    try:
        return text if text and parse_utc(text) else ""
    except (ValueError, OverflowError, TypeError):
        return ""


def _files(folder: Path) -> Iterator[Found]:
    """What lies in a folder down to nbgrader's depth; links to folders are not entered."""
    for directory, inner, names in os.walk(folder, followlinks=False):
        parts = Path(directory).relative_to(folder).parts
        inner[:] = [] if len(parts) == 2 else sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            yield Found((*parts, name), path=Path(directory) / name)


def _read_regular(path: Path, limit: int) -> tuple[bytes, str]:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        return b"", "it is a link, not a file" if path.is_symlink() else f"it can't be opened ({error.strerror})"
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b"", "it is not an ordinary file"
        return stream.read(limit + 1), ""


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CourseError(f"{path} is no folder and no zip archive ({error}). {EXPECTED}") from None
    entries = archive.infolist()
    if len(entries) > ARCHIVE_ENTRIES or sum(entry.file_size for entry in entries) > ARCHIVE_BYTES:
        raise CourseError(
            f"{path} would unpack to more than {ARCHIVE_BYTES >> 30} GB or {ARCHIVE_ENTRIES} files: not touched."
        )
    return archive


def _entries(archive: zipfile.ZipFile) -> Iterator[Found]:
    """Files of an archive whose names stay inside it, less a common outer folder; nothing is unpacked to disk."""
    found = []
    for entry in archive.infolist():
        parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
        unsafe = not parts or any(part in ("/", "..", "__MACOSX") or part.startswith(".") for part in parts)
        if not entry.is_dir() and not unsafe and ":" not in parts[0]:
            found.append((parts, entry))
    shift = 1 if _has_outer_folder([parts for parts, _ in found if parts[-1].endswith(".ipynb")]) else 0
    for parts, entry in found:
        if len(parts) > shift:  # what lies beside the outer folder belongs to nobody
            yield Found(parts[shift:], archive=archive, entry=entry)


def _has_outer_folder(notebooks: Sequence[tuple[str, ...]]) -> bool:
    """Whether all notebooks of an archive lie in one folder that says nothing, around one of the layouts."""
    outer, depths = {parts[0] for parts in notebooks}, {len(parts) for parts in notebooks}
    if len(outer) != 1 or len(depths) != 1:
        return False
    if depths == {3}:  # a student, or what is around Moodle's folders
        return moodle_students([parts[1] for parts in notebooks]) is not None
    return depths == {4} or (depths == {2} and moodle_students(sorted(outer)) is None)
