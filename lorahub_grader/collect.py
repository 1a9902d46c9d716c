"""Finds submissions: nbgrader's layout, a flat folder, what Canvas and Moodle give out, or a zip archive of any.

Each file is judged by itself. What is not used is named with its reason. Links are not followed.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lorahub_edu.errors import CourseError, near_matches
from lorahub_grader.handed_in import CANVAS, MOODLE, MOODLE_FOLDER, Found, entries, files_in, shown
from lorahub_grader.repair import which_assignment

FILES, NOTEBOOKS_BYTES = 200, 100 << 20  # of one student; more are not looked at
COPY = re.compile(r"( ?\(\d+\)|[ -]+(copy|kopie|copie|copia)[ \d()]*)$", re.IGNORECASE)  # what browsers and systems add
TIME = re.compile(r"20\d\d-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d+)?)? ?(UTC|Z|[+-]\d\d:?\d\d)")
SKEW = timedelta(hours=1)  # of two clocks
EXPECTED = (
    "Expected is nbgrader's layout, STUDENT/ASSIGNMENT/ASSIGNMENT.ipynb, or a flat folder of STUDENT.ipynb, or what "
    "Canvas or Moodle gives out, or a zip archive of any of these."
)


@dataclass(frozen=True)
class Submission:
    """One submission: whose, for what, where it is, when it was handed in, and why it can't be read if so.

    `name` is the student's as it was handed in, `platform` whose number `student` begins with, "" nobody's.
    """

    student: str
    assignment: str
    file: Found | None
    submitted: str = ""
    trouble: str = ""
    notes: tuple[str, ...] = ()
    name: str = ""
    platform: str = ""

    def read(self) -> tuple[bytes, str]:
        """The notebook's bytes, and why it can't be read if so."""
        return (b"", self.trouble) if self.file is None or self.trouble else self.file.read()


@dataclass(frozen=True)
class Collected:
    """What was found, by assignment and student, and what was passed over with the reason."""

    submissions: tuple[Submission, ...]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A file, whose it is, its name in what the student handed in, and its place in the platform's order."""

    file: Found
    name: str
    inner: str
    platform: str = ""
    number: str = ""
    folder: str = ""
    order: tuple = ()
    late: bool = False

    @property
    def junk(self) -> bool:
        return self.file.junk or self.inner.startswith(".")

    @property
    def is_notebook(self) -> bool:
        return self.inner.lower().endswith(".ipynb") and not self.junk

    @property
    def student(self) -> str:
        """The student's name as a folder may be called."""
        return _safe(f"{self.number}-{self.name}" if self.number else self.name)


def check_place(place: Path) -> None:
    """Raise CourseError where there is no such folder or file."""
    if not place.exists():
        raise CourseError(f"There is no {place}. {EXPECTED}")


def collect(place: Path, assignments: Mapping[str, frozenset[str]], wanted: str | None = None) -> Collected:
    """Every submission in a folder or archive, also those that can't be read, with their trouble.

    `place` is nbgrader's layout, a flat folder, what Canvas or Moodle gives out, or a zip archive of any. `assignments`
    have the ids of their answers. One is `wanted` only where notebooks don't tell.
    Raises CourseError: nothing there is a submission, or it is not clear of which assignment.
    """
    if wanted is not None and wanted not in assignments:
        raise CourseError(f"There is no assignment {wanted!r}. {near_matches(wanted, assignments)}")
    check_place(place)
    if (place / "submitted").is_dir():  # a course's folder: its other notebooks are nobody's submissions
        raise CourseError(f"{place} holds more than submissions. Did you mean {place / 'submitted'}? {EXPECTED}")
    try:
        files = list(files_in(place) if place.is_dir() else entries(place, assignments))
    except CourseError as error:
        raise CourseError(f"{error} {EXPECTED}") from None
    pieces, ignored = _pieces(files, assignments)
    if not pieces:
        seen = ", ".join(file.name for file in files[:3]) or "nothing"
        raise CourseError(f"There is no submission in {place}; it holds {seen}. {EXPECTED}")
    groups: dict[tuple[str, str, str], list[Piece]] = defaultdict(list)
    for piece in pieces:
        groups[piece.student, piece.folder, piece.platform].append(piece)
    told = {
        piece: which_assignment(piece.file.read()[0], assignments)
        for group in groups.values()
        if not _too_many(group)
        for piece in group
        if piece.is_notebook
    }
    votes = [{told.get(piece) for piece in group} for (_, folder, _), group in groups.items() if not folder]
    main = wanted or _main(votes, assignments)
    found = []
    for (student, folder, platform), group in groups.items():
        assignment, first = folder or main, group[0]
        stray = not folder and not platform
        if stray and not first.is_notebook:
            ignored.append(
                f"{first.file.name}: {first.file.trouble or 'it is not a notebook, its name does not end with .ipynb'}"
            )
        elif stray and told.get(first) not in (None, main):
            ignored.append(f"{first.file.name} is the notebook of {told[first]}, not of {main}")
        elif assignment is None or (stray and told.get(first) is None and wanted is None and len(assignments) > 1):
            why = first.file.read()[1] or "it does not tell which assignment it is for, give --assignment NAME"
            ignored.append(f"{first.file.name}: {why}")
        elif wanted in (None, assignment):
            found.append(_submission(student, assignment, group, told))
    if not found:
        raise CourseError(f"There is no submission in {place} that can be graded. {'; '.join(ignored[:3])}. {EXPECTED}")
    return Collected(tuple(sorted(_apart(found), key=lambda s: (s.assignment, s.student))), tuple(ignored))


def _pieces(files: list[Found], assignments: Mapping[str, frozenset[str]]) -> tuple[list[Piece], list[str]]:
    """The files that are somebody's, each by its own path, and the others with their reasons."""
    loose = [file.parts[0] for file in files if len(file.parts) == 1 and not (file.junk or file.trouble)]
    loose = [name for name in loose if not MOODLE.fullmatch(name)]
    matches = [match for name in loose if (match := CANVAS.fullmatch(name))]
    whose = {(match["number"], match["name"]) for match in matches}
    # Its form is a weak sign: most files must have it, and a number must be one student's.
    canvas = 2 * len(matches) >= len(loose) and len(whose) == len({number for number, _ in whose})
    plain_names = Counter(COPY.sub("", name.rpartition(".")[0]) for name in loose)
    pieces, ignored, junk = [], {}, []
    for file in files:
        parts = file.parts
        order = (file.modified, len(parts[-1]), parts[-1])  # of the same time, "NAME (1)" is later than "NAME"
        match = (MOODLE if len(parts) == 1 else MOODLE_FOLDER).fullmatch(parts[0])
        if match and MOODLE.fullmatch(match["rest"]):  # a student may write such a name, or call a file so
            ignored[f"{file.name}: its name may be of two students; download submissions in folders"] = True
        elif match:
            inner = "/".join(part for part in (match["rest"], *parts[1:]) if part)
            pieces.append(Piece(file, match["name"], inner, "moodle", match["number"], order=order))
        elif file.trouble:
            ignored[f"{file.name}: {file.trouble}"] = True
        elif len(parts) == 1 and not file.junk:
            match = CANVAS.fullmatch(parts[0]) if canvas else None
            if match:
                named = match["name"], match["rest"], "canvas", match["number"]
                pieces.append(Piece(file, *named, order=(int(match["file"] or 0),), late=bool(match["late"])))
            else:
                pieces.append(Piece(file, _flat(parts[0], plain_names), parts[0], order=order))
        elif len(parts) > 2 and parts[1] in assignments:
            pieces.append(Piece(file, parts[0], "/".join(parts[2:]), folder=parts[1], order=order))
        elif file.junk:
            junk.append(file.name)
        elif len(parts) > 2:
            ignored[shown(f"{parts[0]}/{parts[1]}: no such assignment. {near_matches(parts[1], assignments)}")] = True
        else:
            ignored[f"{file.name}: it lies in no assignment's folder"] = True
    if junk:
        ignored[f"{len(junk)} hidden files of an operating system, such as {junk[0]}"] = True
    return pieces, list(ignored)


def _flat(file: str, plain_names: Mapping[str, int]) -> str:
    """The student of STUDENT.ipynb; a browser's "STUDENT (1).ipynb" is the same one where there is no STUDENT.ipynb."""
    name, dot, ending = file.rpartition(".")
    plain = COPY.sub("", name)
    return (plain if plain_names[plain] == 1 else name) if dot and ending == "ipynb" else file


def _too_many(group: list[Piece]) -> bool:
    notebooks = sum(piece.file.size for piece in group if piece.is_notebook)
    return sum(not piece.junk for piece in group) > FILES or notebooks > NOTEBOOKS_BYTES


def _main(votes: list[set[str | None]], assignments: Mapping[str, frozenset[str]]) -> str | None:
    """The assignment that most students handed in: a download is of one, last week's notebook in it is not graded.

    Raises CourseError: two were handed in by the same number of students.
    """
    counts = Counter(name for vote in votes for name in vote if name).most_common(2)
    if len(counts) == 2 and counts[0][1] == counts[1][1]:
        raise CourseError(
            f"There are as many notebooks of {counts[0][0]} as of {counts[1][0]}: give --assignment NAME."
        )
    if counts:
        return counts[0][0]
    return next(iter(assignments)) if len(assignments) == 1 else None


def _submission(student: str, assignment: str, group: list[Piece], told: Mapping[Piece, str | None]) -> Submission:
    """What counts of all that a student handed in: the newest notebook of the assignment; the rest is named."""
    first, expected = group[0], f"{assignment}.ipynb"
    notebooks = [piece for piece in group if piece.is_notebook]
    fitting = [piece for piece in notebooks if not first.folder or COPY.sub("", piece.inner[:-6]) == assignment]
    used = max(fitting, key=lambda p: (told.get(p) == assignment, p.inner == expected, p.order), default=None)
    others = [piece.inner for piece in group if piece is not used and not piece.junk]
    stamp, notes = "", []
    if first.folder and "timestamp.txt" in others:
        others.remove("timestamp.txt")
        stamp, notes = _timestamp(next(piece.file for piece in group if piece.inner == "timestamp.txt"))
    listed = shown(", ".join(sorted(others)[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else ""))
    trouble = ""
    if _too_many(group):
        trouble = f"more than {FILES} files were handed in, or notebooks of more than {NOTEBOOKS_BYTES >> 20} MB"
    elif used is None:
        trouble = f"no notebook was handed in: {listed}" if listed else "no notebook was handed in"
        if notebooks:
            trouble = shown(f"the notebook is called {notebooks[0].inner}, not {expected}")
    elif told[used] not in (None, assignment):
        trouble = f"it is the notebook of {told[used]}, not of {assignment}"
    if used and others:
        notes.append(f"not used: {listed}")
    if used and used.late:
        notes.append("Canvas says that it was late")
    name = unicodedata.normalize("NFC", first.name).encode("utf-8", "replace").decode()
    return Submission(student, assignment, used and used.file, stamp, trouble, tuple(notes), name, first.platform)


def _safe(student: str) -> str:
    """A name that is good as a folder's and in a gradebook; where it is not the same name, it ends with its hash."""
    name = unicodedata.normalize("NFC", student).strip()
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" or c in "_.@ +-'’,()" else "_" for c in name)
    if kept == name == _cut(name) and re.match(r"\w", name):
        return name
    return f"_{_cut(kept)}-{_hash(name)}"


def _cut(name: str) -> str:
    """What file systems take of a name: 255 bytes, with what is added to it."""
    return name[:90].encode("utf-8", "replace")[:180].decode("utf-8", "ignore").strip()


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]


def _apart(found: list[Submission]) -> list[Submission]:
    """Names that are the same to some file systems get their hashes, so that nobody takes another's place."""
    names = Counter((one.assignment, one.student.casefold()) for one in found)
    return [
        replace(one, student=f"{_cut(one.student)}-{_hash(one.student + one.platform)}")
        if names[one.assignment, one.student.casefold()] > 1
        else one
        for one in found
    ]


def _timestamp(file: Found) -> tuple[str, list[str]]:
    """What nbgrader wrote when it was handed in, and a question to the teacher where that can't be the time."""
    from nbgrader.utils import parse_utc

    text = file.read(1000)[0].decode("utf-8", "replace").strip()
    try:
        said = "is no time with its zone"
        if TIME.fullmatch(text):
            said = "is still to come"
            if parse_utc(text).replace(tzinfo=UTC) <= datetime.now(UTC) + SKEW:
                return text, []
    except Exception:  # a learner may have written it; what it raises is dateutil's to choose
        said = "is no time"
    return "", [f"was it late? timestamp.txt {said}: '{shown(text[:40])}'"]
