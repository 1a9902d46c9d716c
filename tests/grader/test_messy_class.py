"""A class of hand-ins as people make them: the command must find the points that were found by hand."""

from __future__ import annotations

import io
import json
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from grading_course import HEADER, NAME, POINTS, RIGHT, copy_of, notebook

from lorahub_grader import assignments, feedback, runner
from lorahub_grader.gradebook import Course
from lorahub_grader.inside.zygote import Limits
from lorahub_grader.split import Times

GOOD = RIGHT | {
    "double": "def double(x):  # für später\n    return x + x",
    "essay": "Because it is so. <script>alert(1)</script>",
}
LAST_WEEK = "00_before"
SETTINGS = {"preload": (), "times": Times(cell=20.0, call=5.0, total=120.0), "limits": Limits(memory=512 << 20)}
IPYNB = f"{NAME}.ipynb"
Notebook = nbformat.NotebookNode
Mess = Callable[[Notebook], dict[str, bytes] | None]  # changes a right notebook, or gives other files in its place
own = nbformat.v4.new_code_cell


def data(made: object) -> bytes:
    return json.dumps(made, ensure_ascii=False).encode()


def cell(made: Notebook, grade_id: str) -> Notebook:
    return next(one for one in made.cells if one.metadata.get("nbgrader", {}).get("grade_id") == grade_id)


def answer(grade_id: str, *sources: str) -> Mess:
    """Another answer; several stand in copies of its cell, as Jupyter's "Split Cell" makes them too."""

    def change(made: Notebook) -> None:
        place = made.cells.index(cell(made, grade_id))
        old = made.cells.pop(place)
        made.cells[place:place] = [nbformat.from_dict(old | {"source": source}) for source in sources]

    return change


def before(grade_id: str, source: str) -> Mess:
    return answer(grade_id, f"{source}\n{GOOD[grade_id]}")


def called(name: str, change: Callable[[bytes], bytes] = lambda content: content) -> Mess:
    return lambda made: {name: change(data(made))}


def coded(coding: str) -> Mess:
    return called(IPYNB, lambda content: content.decode().encode(coding))


def colab(made: Notebook) -> None:
    made.cells.insert(0, own("from google.colab import drive\ndrive.mount('/content/drive')"))
    made.cells.insert(-1, own(""))
    for one in made.cells:
        one.metadata = nbformat.from_dict({"id": "x1Yz"})


def reordered(made: Notebook) -> None:
    made.cells = [one for one in reversed(made.cells) if "assert" not in one.source]


def merged(made: Notebook) -> None:
    """Jupyter's "Merge Cells" keeps the metadata of one."""
    root = cell(made, "root")
    made.cells.remove(root)
    cell(made, "double").source += f"\n\n{root.source}"


def below(made: Notebook) -> None:
    """The answers stand in new cells; their places are as they were given."""
    stub = 'def double(x):\n    """Twice x."""\n    # YOUR CODE HERE\n    raise NotImplementedError()'
    for grade_id, given in (("double", stub), ("essay", "YOUR ANSWER HERE")):
        old = cell(made, grade_id)
        new = nbformat.from_dict({"cell_type": old.cell_type, "metadata": {}, "source": old.source})
        old.source = given
        made.cells.insert(made.cells.index(old) + 1, new)


def own_cells(*sources: str, double: str = GOOD["double"]) -> Mess:
    def change(made: Notebook) -> None:
        cell(made, "double").source = double
        made.cells[2:2] = [own(source) for source in sources]

    return change


def packed(made: Notebook) -> dict[str, bytes]:
    with zipfile.ZipFile(content := io.BytesIO(), "w") as archive:
        archive.writestr(IPYNB, data(made))
    return {"homework.zip": content.getvalue()}


def twice(made: Notebook) -> dict[str, bytes]:
    """The older one is wrong; names do not tell which is newer, times do."""
    new = data(made)
    answer("guess", "guess = 8")(made)
    return {"z old.ipynb": data(made), "a new.ipynb": new}


def another(source: str, grade_id: str | None = None) -> Mess:
    made = nbformat.v4.new_notebook(cells=[own(source, metadata={"nbgrader": {"grade_id": grade_id}})])
    return lambda _: {IPYNB: data(made)}


OLDER = another("first = 1", "first")
PARTS = "from math import sqrt", "def root(x):\n    return sqrt(x)", "root(4)"
LOOP, HOARD = "def root(x):\n    while True:\n        pass", "hoard = [bytearray(1 << 24) for _ in range(1000)]"
# Name, what is messy, points by hand (without the essay's), and what the row or the missing points must say.
CLASS: list[tuple[str, Mess | None, float, tuple[str, ...]]] = [
    ("Ada Colab", colab, 6, ("double: the cell had lost its id", "essay: the cell had lost its id", "1 of your own")),
    ("Bob Backwards, without tests", reordered, 6, ()),
    ("Cem Copy", answer("double", GOOD["double"], "double = abs"), 4, ("double: the cell was there 2 times",)),
    ("Dora Split", answer("root", *PARTS), 6, ("root: the cell was there 3 times; its parts",)),
    ("Eli Merge", merged, 6, ("root: the cell was missing; another",)),
    ("Fay Below", below, 6, ("double: the cell was left empty", "essay: the cell was left empty", "to be read")),
    ("Gus Magics", own_cells("%matplotlib inline", "%pylab", "!pip install torch"), 6, ("3 of your own cells",)),
    ("Hao Pip", before("double", "%matplotlib inline\n!pip install -q numpy"), 6, ()),
    ("Ida Quit", answer("double", GOOD["double"] + "\nquit()"), 6, ()),
    ("Jan Await", before("root", "import asyncio\nawait asyncio.sleep(0.01)"), 6, ()),
    ("Kim Helper", own_cells("two = 2", double="def double(x):\n    return two * x"), 4, ("1 of your own", "'two'")),
    ("Lea Browser", called(f"{NAME} (1).ipynb"), 6, ()),
    ("Max Textfile", called(f"{IPYNB}.txt"), 0, (f"no notebook was handed in: {IPYNB}.txt",)),
    ("Nia Printed", called(f"{NAME}.pdf", lambda _: b"%PDF-1.7"), 0, (f"no notebook was handed in: {NAME}.pdf",)),
    ("Ole Export", called(f"{NAME}.py", lambda _: b"guess = 7"), 0, (f"no notebook was handed in: {NAME}.py",)),
    ("Pia Zip", packed, 0, ("no notebook was handed in: homework.zip",)),
    ("Quentin Empty", called(IPYNB, lambda _: b""), 0, ("unreadable",)),
    ("李-小龍", coded("utf-16"), 6, ()),
    ("Seán O'Brien", coded("utf-8-sig"), 6, ()),
    ("Müller, Zoë", coded("cp1252"), 6, ()),
    ("Tom Broken", called(IPYNB, lambda content: content[: len(content) // 2]), 0, ("its JSON is broken",)),
    ("Una Old", lambda made: {IPYNB: nbformat.writes(made, 3).encode()}, 6, ()),
    ("Vic Twice", twice, 6, ("not used: z old.ipynb",)),
    ("Wim Nested", lambda made: {"homework/my own.ipynb": data(made)} | OLDER(made), 6, (f"not used: {IPYNB}",)),
    ("Xia Loop", answer("root", LOOP), 3, ("test_root: no answer within 5",)),
    ("Yan Crash", before("root", "import os\nos._exit(0)"), 3, ("its process ended early", "test_root: ")),
    ("Zed Hoard", before("double", HOARD), 4, ("emory",)),
    ("Amy Typo", answer("double", "def double(x):\n    return x * tow"), 4, ("'tow' is not defined",)),
    ("Ben Blank", None, 0, ("nothing was filled in", "test_double: the place to fill in is still empty")),
    ("Cat Loud", before("root", "print('x' * 5_000_000)"), 6, ()),
    ("Dan Emoji", called(IPYNB, lambda content: content.replace("für".encode(), b"\\ud83d")), 6, ()),
    ("Eve Stranger", another("import pandas as pd"), 0, ("double: the cell was missing", "1 of your own cells")),
    ("Fin Lastweek", OLDER, 0, (f"notebook of {LAST_WEEK}, not of {NAME}",)),
]


@pytest.fixture(scope="module")
def rows(built: Path, sandbox, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, str]]:
    """Points and all words about each student, from one run over what Moodle gives out."""
    root = copy_of(built, tmp_path_factory.mktemp("messy") / "course")
    source = HEADER + '# %% answer="first"\nfirst = 1\n\n# %% test="test_first" points=1\nassert first == 1\n'
    (root / "solutions" / "src" / f"{LAST_WEEK}.py").write_text(source, encoding="utf-8")
    assignments.build(LAST_WEEK, root)
    with zipfile.ZipFile(root / "all.zip", "w") as archive:
        for number, (name, mess, _, _) in enumerate(CLASS):
            made = notebook(root, GOOD if mess else {})
            files = (mess(made) if mess else None) or {IPYNB: data(made)}
            folder = unicodedata.normalize("NFD", f"{name}_{number}_assignsubmission_file_")
            for day, (file, content) in enumerate(files.items(), 1):
                archive.writestr(zipfile.ZipInfo(f"{folder}/{file}", (2026, 5, day, 12, 0, 0)), content)
                for outer in ("__MACOSX/", ""):
                    archive.writestr(f"{outer}{folder}/._{Path(file).name}", b"what a Mac adds")
    course = Course(root)
    graded = runner.grade(course, root / "all.zip", settings=SETTINGS)
    pages = feedback.write(course, assignments.load(NAME, root), graded.outcomes)
    assert not any("<script>alert" in page.read_text(encoding="utf-8") for page in pages)
    with course.open() as gradebook:
        kept = {one.student_id: one.to_dict() for one in gradebook.find_assignment(NAME).submissions}
    found = {}
    for outcome, (student, _, _, what) in zip(graded.outcomes, runner.table(graded.outcomes), strict=True):
        assert outcome.earned == kept[student]["score"]
        missed = [f"{test.grade_id}: {test.message}" for test in outcome.tests if not test.passed]
        essay = ["the essay is to be read"] if kept[student]["needs_manual_grade"] else []
        found[student] = outcome.earned, "\n".join((what, *missed, *essay))
    return found


def test_every_student_has_a_row(rows) -> None:
    assert set(rows) == {f"{number}-{name}" for number, (name, *_) in enumerate(CLASS)}


@pytest.mark.parametrize("number", range(len(CLASS)), ids=[name for name, *_ in CLASS])
def test_points_are_those_found_by_hand(number: int, rows) -> None:
    name, _, points, words = CLASS[number]
    earned, said = rows[f"{number}-{name}"]
    assert earned == points, said
    for word in (*words, *(["test_"] if points < POINTS else [])):
        assert word in said
