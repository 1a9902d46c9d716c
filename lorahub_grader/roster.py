"""A platform's own table of students: read as it comes, and each student's line found by what names only that line."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from lorahub_edu.errors import CourseError
from lorahub_grader.handed_in import NUMBERED
from lorahub_grader.repair import text_of

POINTS_POSSIBLE = "Points Possible"
KEYS = {  # columns that name a student, and what Moodle calls them in English, German, French and Spanish
    "canvas": {"number": "ID", "login": "SIS Login ID", "sis": "SIS User ID", "name": "Student"},
    "moodle": {
        "number": "Identifier|ID|Identifiant|Identificador",
        "login": "Username|Anmeldename|Nom d'utilisateur|Nombre de usuario",
        "sis": "ID number|ID-Nummer|Numéro d'identification|Número de ID",
        "email": "Email address|E-Mail-Adresse|Adresse de courriel|Dirección de correo",
        "name": "Full name|Vollständiger Name|Nom complet|Nombre completo",
    },
}
GRADE = "Grade|Bewertung|Note|Calificación"
MAXIMUM = "Maximum grade|Bestwertung|Note maximale|Calificación máxima"
PARTICIPANT = re.compile(r"[^\W\d_]{3}\D*\d+")
ID = re.compile(r" \((\d+)\)$")  # Canvas's, behind an assignment's name


@dataclass(frozen=True)
class Row:
    """One student's total after lateness, and whether a person still has to look.

    `name` is as it was handed in; `platform` says whose number the name begins with, "" nobody's, None unknown.
    """

    student: str
    score: float
    waiting: bool
    name: str = ""
    platform: str | None = None

    @property
    def said(self) -> str:
        """The student's name in a new table: as it was handed in, or with the platform's number."""
        return self.name if self.name and not self.platform else self.student


@dataclass
class Roster:
    """A platform's table, and the columns that name a student, by kind."""

    platform: str
    header: list[str]
    lines: list[list[str]]
    delimiter: str
    keys: dict[str, int]

    def places(self, rows: Iterable[Row]) -> tuple[dict[str, int], list[str]]:
        """The line of each student whom one line alone names, and notes on the others; nobody is guessed.

        A number is looked for in the platform's own column of numbers, a name in all others.
        """
        numbers, names = defaultdict(set), defaultdict(set)
        for index, line in enumerate(self.lines):
            for kind, column in self.keys.items():
                if kind != "number":
                    names[plain(line[column])].add(index)
                elif digits := re.fullmatch(r"\D*(\d+)\s*", line[column]):
                    numbers[digits[1]].add(index)
        names.pop("", None)
        found: dict[str, set[int]] = {}
        for row in rows:
            found[row.student] = set()
            numbered = NUMBERED.fullmatch(row.student)
            if numbered and row.platform in (None, self.platform):
                found[row.student] |= numbers[numbered["number"]]
            if row.platform in (None, ""):
                found[row.student] |= names[plain(row.student)] | names[plain(row.name)]
        claims = Counter(index for lines in found.values() for index in lines)
        sure = {student: min(lines) for student, lines in found.items() if [claims[index] for index in lines] == [1]}
        missing = [student for student, lines in found.items() if not lines]
        doubtful = [student for student, lines in found.items() if lines and student not in sure]
        notes = [f"{len(missing)} graded but not in the roster: {', '.join(missing)}"] if missing else []
        if doubtful:
            notes.append(
                f"{len(doubtful)} left out, because several lines or students have the same name: {', '.join(doubtful)}"
            )
        return sure, notes

    def column(self, assignment: str, wanted: str | None) -> int:
        """The assignment's column; a new one where none looks like it.

        `wanted`: the column's header, its name, or Canvas's number of it.
        Raises CourseError: several columns fit, none is the wanted one, or one has nearly the same name.
        """
        named = [index for index in range(len(self.header)) if index not in self.keys.values()]
        name = wanted or assignment
        found = [i for i in named if name in (self.header[i], ID.sub("", self.header[i]), *ID.findall(self.header[i]))]
        if len(found) == 1:
            return found[0]
        alike = found or [i for i in named if wanted or _alike(assignment, ID.sub("", self.header[i]))]
        if alike or wanted:
            shown = ", ".join(repr(self.header[index]) for index in alike) or "none"
            raise CourseError(f"Which column is {name!r}? Say --column with one of the table's: {shown}.")
        self.header.append(assignment)
        for line in self.lines:
            line.append("")
        return len(self.header) - 1

    def graded(self) -> tuple[int | None, int | None]:
        """Moodle's columns of grades and of maximum grades: by name, else two neighbours with such content."""
        grade, maximum = _named(self.header, GRADE), _named(self.header, MAXIMUM)
        for right in range(1, len(self.header) if grade is None else 0):
            grades, maxima = ([line[column].strip() for line in self.lines] for column in (right - 1, right))
            one = len(set(maxima)) == 1 and (number(maxima[0]) or 0) > 0 and right - 1 not in self.keys.values()
            if one and all(not cell or number(cell) is not None for cell in grades):
                return right - 1, right
        return grade, maximum

    def write(self, out: Path, kept: Iterable[int] | None = None) -> None:
        columns = list(range(len(self.header)) if kept is None else kept)
        write(out, [[line[i] for i in columns] for line in (self.header, *self.lines)], self.delimiter)


def read(path: Path, platform: str) -> Roster:
    """A platform's table, whatever program saved it: commas, semicolons or tabs; UTF-8, UTF-16 or Windows-1252.

    Raises CourseError: it is no such table, or a line is longer than the header.
    """
    try:
        text = text_of(path.read_bytes()).removeprefix("\ufeff")
        first = text.lstrip().split("\n", 1)[0]
        delimiter = max(",;\t", key=lambda mark: len(next(csv.reader([first], delimiter=mark), ())))
        table = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(line)]
    except (OSError, csv.Error) as error:
        raise CourseError(f"{path} can't be read as a table: {error}") from None
    header, lines = (table[0], table[1:]) if table else ([], [])
    keys = {}
    for kind, names in KEYS[platform].items():
        if (index := _named(header, names)) is not None:
            keys[kind] = index
    for line in lines:
        if any(line[len(header) :]):
            raise CourseError(f"{path}: the line {delimiter.join(line)[:80]!r} has more cells than the header.")
        line[:] = (line + [""] * len(header))[: len(header)]
    if platform == "moodle":
        keys = _by_content(keys, lines, len(header)) | keys
    if not keys:
        names = ", ".join(names.split("|")[0] for names in KEYS[platform].values())
        raise CourseError(f"{path} has none of the columns {names}: is it what the platform exported?")
    return Roster(platform, header, lines, ";" if delimiter == ";" else ",", keys)


def _by_content(keys: dict[str, int], lines: list[list[str]], width: int) -> dict[str, int]:
    """Moodle's columns in other languages: the participant comes first, then the full name; addresses have an @."""
    found = {}
    for index in (i for i in range(width) if i not in keys.values()):
        cells = [line[index].strip() for line in lines if line[index].strip()]
        if (
            index == 0
            and cells
            and all(map(PARTICIPANT.fullmatch, cells))
            and len({c.rstrip("0123456789") for c in cells}) == 1
        ):
            found["number"] = index
        elif index == 1 and (found.get("number") == 0 or keys.get("number") == 0) and not any("@" in c for c in cells):
            found["name"] = index
        elif cells and all(re.fullmatch(r"\S+@\S+", cell) for cell in cells):
            found.setdefault("email", index)
    return found


def write(out: Path, table: Iterable[Iterable[str]], delimiter: str = ",") -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(table)


def plain(text: str) -> str:
    """A name as it is compared: composed characters, small letters, single spaces, one kind of apostrophe."""
    return " ".join(unicodedata.normalize("NFC", text).replace("’", "'").lower().split())


def number(text: str) -> float | None:
    """A number as platforms write it, also with a decimal comma; None where it is none."""
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        return None


def _named(header: list[str], names: str) -> int | None:
    """The first column with one of these names."""
    known = {plain(name) for name in names.split("|")}
    return next((index for index, name in enumerate(header) if plain(name) in known), None)


def _alike(assignment: str, header: str) -> bool:
    """Whether two names may mean the same assignment: nearly the same letters, and no other number."""
    words = [re.sub(r"[\W\d_]+", "", text.lower()) for text in (assignment, header)]
    numbers = [[int(digits) for digits in re.findall(r"\d+", text)] for text in (assignment, header)]
    close = words[0] in words[1] or SequenceMatcher(None, *words).ratio() > 0.8
    return close and (numbers[0] == numbers[1] or not all(numbers))
