"""A platform's table: every point stands in its owner's line or nowhere, however the table was saved."""

from __future__ import annotations

import csv
import tempfile
import unicodedata
from pathlib import Path
from unittest.mock import patch

import pytest
from grading_course import NAME
from hypothesis import given, settings
from hypothesis import strategies as st

from lorahub_edu.errors import CourseError
from lorahub_grader import exports
from lorahub_grader.gradebook import Course
from lorahub_grader.roster import Row

CANVAS = f"Student,ID,SIS User ID,SIS Login ID,Section,{NAME} (9)\n    Points Possible,,,,,10\n"
MOODLE = "Identifier,Full name,ID number,Email address,Grade,Maximum Grade\n"


def fill(built: Path, to: str, roster: str | bytes, *rows: Row, **more) -> tuple[list[list[str]], str]:
    """The table that the export writes for these rows, and its notes."""
    with tempfile.TemporaryDirectory() as folder, patch.object(exports, "rows", lambda *_: list(rows)):
        given_, out = Path(folder) / "in.csv", Path(folder) / "out.csv"
        given_.write_bytes(roster if isinstance(roster, bytes) else roster.encode())
        _, notes = exports.export(Course(built), NAME, to, given_, out, **more)
        text = out.read_text(encoding="utf-8")
        return list(csv.reader(text.splitlines(), delimiter=";" if ";" in text else ",")), " ".join(notes)


def ada(student: str = "4711-lovelaceada", score: float = 5, **more) -> Row:
    return Row(student, score, False, **more)


def same(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()


@st.composite
def classes(draw: st.DrawFn) -> tuple[str, list[dict], list[tuple[Row, int | None]]]:
    """A platform, its lines with numbers, logins and names that collide, and graded rows with their owners."""
    word = st.sampled_from(["1", "2", "3", "4", "ada", "Zoë", "zoe\u0308", "O'Brien", "Lovelace, Ada"])
    platform = draw(st.sampled_from(["canvas", "moodle"]))
    numbers = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5, unique=True))
    lines = [{"number": str(n), "name": draw(word), "sis": draw(word), "login": draw(word)} for n in numbers]
    graded: dict[str, tuple[Row, int | None]] = {}
    for index in draw(st.lists(st.sampled_from(range(len(lines))), max_size=6)):
        kind = draw(st.sampled_from(["number", "name", "sis", "login"]))
        own = lines[index][kind]
        row = Row(f"{own}-x" if kind == "number" else own, 0, False, platform=platform if kind == "number" else "")
        others = [line for i, line in enumerate(lines) if i != index]
        if kind != "number" and any(same(own) == same(line[k]) for line in others for k in ("name", "sis", "login")):
            graded[row.student] = (row, None)  # homonyms: the name does not say which of them it is
        else:
            graded[row.student] = (row, index)
    for stranger in draw(st.lists(st.integers(1, 9), max_size=2)):
        other = draw(st.sampled_from(["canvas", "moodle", ""]))
        if f"{stranger}-x" not in graded and (other != platform or str(stranger) not in map(str, numbers)):
            graded[f"{stranger}-x"] = (Row(f"{stranger}-x", 0, False, platform=other), None)
    rows = [
        (Row(row.student, score, False, platform=row.platform), owner)
        for score, (row, owner) in enumerate(graded.values(), 1)
    ]
    return platform, lines, rows


@settings(max_examples=300, deadline=None)
@given(classes())
def test_every_point_stands_in_its_owners_line_or_nowhere(built: Path, drawn) -> None:
    platform, lines, rows = drawn
    text = CANVAS if platform == "canvas" else MOODLE
    for line in lines:
        cells = {key: f'"{value}"' for key, value in line.items()}
        if platform == "canvas":
            text += f"{cells['name']},{line['number']},{cells['sis']},{cells['login']},S,\n"
        else:
            text += f"Participant {line['number']},{cells['name']},{cells['sis']},{cells['login']},,10\n"
    table, notes = fill(built, platform, text, *(row for row, _ in rows))
    written = [line[5 if platform == "canvas" else 4] for line in table[-len(lines) :]]
    placed = set()
    for index, cell in enumerate(written):
        if cell:
            row, owner = next((row, owner) for row, owner in rows if row.score == float(cell))
            assert owner == index, f"{row.student}'s points stand in line {index + 1}"
            placed.add(row.student)
    for row, owner in rows:
        assert row.student in placed or row.student in notes, "who stands nowhere is named"
        others = [other for other in rows if other[1] == owner]
        if row.platform and owner is not None and len(others) == 1 and not any(o is None for _, o in rows):
            assert row.student in placed, "a number that one line has, and nobody else claims, is enough"


def test_a_number_belongs_to_its_own_column(built) -> None:
    roster = CANVAS + '"Babbage, Charles",5000,4711,cb,S,\n"Lovelace, Ada",4711,5001,al,S,\n'
    assert [line[5] for line in fill(built, "canvas", roster, ada())[0][2:]] == ["", "5"]
    roster = MOODLE + "Participant 5000,Charles,4711,c@u,,10\nParticipant 4711,Ada,5001,a@u,,10\n"
    assert [line[4] for line in fill(built, "moodle", roster, ada(platform="moodle"))[0][1:]] == ["", "5"]
    table, notes = fill(built, "moodle", roster, ada(platform="canvas"))
    assert not any(line[4] for line in table[1:]) and "not in the roster: 4711-lovelaceada" in notes


def test_homonyms_are_not_guessed_and_are_named(built) -> None:
    roster = MOODLE + "Participant 1,Ada Lovelace,,a1@u,,10\nParticipant 2,Ada Lovelace,,a2@u,3,10\n"
    table, notes = fill(built, "moodle", roster, ada("Ada Lovelace"))
    assert [line[4] for line in table[1:]] == ["", "3"] and "same name: Ada Lovelace" in notes
    roster = MOODLE + "Participant 1,Ada Lovelace,al,a1@u,,10\n"
    table, notes = fill(built, "moodle", roster, ada("al"), ada("Ada Lovelace", 2))
    assert table[1][4] == "" and "same name: al, Ada Lovelace" in notes


@pytest.mark.parametrize(
    ("mark", "encoding"), [(";", "utf-8-sig"), ("\t", "utf-16"), (",", "cp1252"), (";", "cp1252"), (",", "utf-8")]
)
def test_a_table_is_read_however_it_was_saved(mark: str, encoding: str, built) -> None:
    text = CANVAS.replace(",", mark) + mark.join(['"Müller, Zoë"', "4711", "1", "zm", "S", ""]) + "\r\n"
    table, _ = fill(built, "canvas", text.encode(encoding), ada())
    assert table[0][0] == "Student" and table[-1] == ["Müller, Zoë", "4711", "1", "zm", "S", "5"]


HEADERS = {
    "German": "ID;Vollständiger Name;E-Mail-Adresse;Status;Gruppe;Bewertung;Bestwertung;Bewertung kann geändert werden",
    "French": "Identifiant;Nom complet;Adresse de courriel;Statut;Groupe;Note;Note maximale;La note peut être modifiée",
    "Spanish": "Identificador;Nombre completo;Dirección de correo;Estado;Grupo;Calificación;Calificación máxima;Puede",
    "Dutch": "Identificatie;Volledige naam;E-mailadres;Toestand;Groep;Cijfer;Hoogste cijfer;Kan gewijzigd worden",
}


@pytest.mark.parametrize("language", HEADERS)
def test_moodles_headers_in_other_languages(language: str, built) -> None:
    word = {"German": "Teilnehmer/in", "Dutch": "Deelnemer "}.get(language, "Participant ")
    lines = f"{word}7;Ada Lovelace;a@u.org;x;G;;10,00;Ja\n{word}8;Zoë;z@u.org;x;G;;10,00;Ja\n"
    for row in (ada("8-Z", 2.5, platform="moodle"), ada("Zoë", 2.5), ada("Z@u.org", 2.5)):
        table, notes = fill(built, "moodle", f"{HEADERS[language]}\n{lines}", row)
        assert [line[5] for line in table[1:]] == ["", "2,5"] and notes == "", row


def test_another_maximum_is_scaled_or_refused(built) -> None:
    sheet, book = MOODLE + "Participant 4711,Ada,,a@u,,100.00\n", CANVAS.replace(",10\n", ",100\n") + "A,4711,,a,S,\n"
    for to, roster, column in (("moodle", sheet, 4), ("canvas", book, 5)):
        table, notes = fill(built, to, roster, ada(score=2.5))
        assert table[-1][column] == "25" and "scaled from 10 to 100" in notes
        with pytest.raises(CourseError, match="maximum is '100.*assignment's 10"):
            fill(built, to, roster, ada(), maximum="refuse")
        for other in ("poor", "0", "nan", "-5", "inf"):
            with pytest.raises(CourseError, match=f"maximum is '{other}"):
                fill(built, to, roster.replace("100.00", other).replace("100", other), ada())


def test_the_column_is_asked_for_where_it_is_not_sure(built) -> None:
    for header in (f"{NAME} (8),{NAME} (9)", "01 Small (8),Essay (9)", "Assignment 1: small (8),Essay (9)"):
        roster = f"Student,ID,{header}\nA,4711,,\n"
        with pytest.raises(CourseError, match=r"Which column .*--column .*\(8\)"):
            fill(built, "canvas", roster, ada())
        assert fill(built, "canvas", roster, ada(), column="8")[0][1] == ["A", "4711", "5"]
        assert fill(built, "canvas", roster, ada(), column="9")[0][0][2].endswith(" (9)")
    with pytest.raises(CourseError, match="Which column is '7'"):
        fill(built, "canvas", roster, ada(), column="7")
    table, notes = fill(built, "canvas", "Student,ID,02_small (8)\nA,4711,1\n", ada())
    assert "a new one was added" in notes
    assert table == [["Student", "ID", NAME], ["A", "4711", "5"]]  # another assignment's is left alone


def test_a_table_whose_lines_do_not_fit_is_refused(built) -> None:
    with pytest.raises(CourseError, match="'Lovelace, Ada,4711.* more cells than the header"):
        fill(built, "canvas", CANVAS + "Lovelace, Ada,4711,1,al,S,,\n".replace(",,", ",,3"), ada())
