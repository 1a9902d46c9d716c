"""Attacks on the machine: other people's files, processes and network, and the next submission."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from grading_arena import NAME, passed, printed
from grading_course import submit

FIND = "import re\ndef find(text):\n    return float(re.search(r'2718' + '28', text).group())\n"
REFERENCE = """
import importlib, types
import lorahub_checks
def scaling(alpha, rank):
    room = importlib.import_module("lorahub_checks.lesson00")
    drawn = iter([alpha - 0.5, rank])
    room.torch = types.SimpleNamespace(randint=lambda *a, **k: next(drawn))
    room.equals = lambda name, seen, expected, **k: expected
    return next(room.scaling(lambda *a: None, None))
"""


@pytest.fixture
def treasure(arena_root: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Everything that holds the answer to `hard`, by the word that stands for its place in an attack."""
    (tmp_path / "open").mkdir()
    other = submit(tmp_path, "ada", {}, NAME) if (tmp_path / "exercises").exists() else tmp_path / "ada.ipynb"
    other.write_text("return 271828.0", encoding="utf-8")
    with closing(sqlite3.connect(tmp_path / "gradebook.db")) as book:
        book.execute("CREATE TABLE source_cell (source TEXT)")
        book.execute("CREATE TABLE grade (auto_score REAL)")
        book.execute("INSERT INTO source_cell VALUES ('assert hard() == 271828.0')")
        book.execute("INSERT INTO grade VALUES (0)")
        book.commit()
    shared = Path("/dev/shm/lorahub-edu-arena")
    shared.write_text("271828.0", encoding="ascii")
    helper = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)", "answer=271828.0"], env={"ARENA_ENVIRONMENT": "271828.0"}
    )
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"271828.0")

    threading.Thread(target=serve, daemon=True).start()
    yield {
        "SOLUTION": str(arena_root / "solutions" / NAME / f"{NAME}.ipynb"),
        "ADA": str(other),
        "BOOK": str(tmp_path / "gradebook.db"),
        "ROOT": str(arena_root),
        "SHARED": str(shared),
        "PORT": str(server.getsockname()[1]),
        "HELPER": str(helper.pid),
    }
    server.close()
    helper.kill()
    helper.wait()
    shared.unlink(missing_ok=True)


THEFTS = {
    "the instructor's notebook": "hard = lambda x: find(open('SOLUTION').read())",
    "another one's submission": "hard = lambda x: find(open('ADA').read())",
    "a search through the folders": "import os\ndef hard(x):\n    for folder, _, names in os.walk('ROOT'):\n"
    "        for name in names:\n            text = open(os.path.join(folder, name)).read()\n"
    "            if '2718' + '28' in text:\n                return find(text)",
    "the gradebook": "import sqlite3\n"
    "hard = lambda x: find(sqlite3.connect('BOOK').execute('SELECT source FROM source_cell').fetchone()[0])",
    "a command line in /proc": "hard = lambda x: find(open('/proc/HELPER/cmdline').read())",
    "an environment in /proc": "hard = lambda x: find(open('/proc/HELPER/environ').read())",
    "shared memory": "hard = lambda x: find(open('SHARED').read())",
    "the network": "import socket\ndef hard(x):\n    with socket.create_connection(('127.0.0.1', PORT), 5) as c:\n"
    "        return find(c.recv(100).decode())",
}


@pytest.mark.parametrize("name", THEFTS)
def test_what_holds_the_answer_is_out_of_reach(name: str, arena, walls, no_walls, treasure) -> None:
    code = FIND + THEFTS[name]
    for word, value in treasure.items():
        code = code.replace(word, value)
    assert passed(arena, {"hard": code}, walls, "bubblewrap") == {"easy"}
    assert passed(arena, {"hard": code}, no_walls, "none") == {"easy", "hard"}


def test_the_checks_references_are_out_of_reach(arena, walls, no_walls) -> None:
    assert passed(arena, {"scaling": REFERENCE}, walls, "bubblewrap") == {"easy"}
    assert passed(arena, {"scaling": REFERENCE}, no_walls, "none") == {"easy", "scaling"}


DETACHED = """
import os, time
child = os.fork()
if child == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1.0)
        {deed}
    os._exit(0)
os.waitpid(child, 0)  # it has left its session by then: nobody who ends this process can miss that
hard = lambda x: 0.0
"""


@pytest.mark.parametrize("kind", ["walls", "no_walls"])
def test_a_detached_process_does_not_live_to_write_the_gradebook(kind: str, arena, treasure, request) -> None:
    book = f"b = sqlite3.connect({treasure['BOOK']!r}, timeout=60)"
    deed = f"import sqlite3; {book}; b.execute('UPDATE grade SET auto_score = 15'); b.commit()"
    started = time.monotonic()
    passed(arena, {"hard": DETACHED.format(deed=deed)}, request.getfixturevalue(kind), kind)
    while (score := auto_score(treasure["BOOK"])) == 0 and time.monotonic() - started < (3 if kind == "walls" else 60):
        time.sleep(0.2)
    assert score == (0 if kind == "walls" else 15)


def auto_score(path: str) -> float:
    with closing(sqlite3.connect(path, timeout=60)) as book:
        return book.execute("SELECT auto_score FROM grade").fetchall()[0][0]


PLANT = """
import os, tempfile
for place in ("/tmp", os.path.expanduser("~"), os.path.dirname(os.getcwd()), "/dev/shm", "/", tempfile.gettempdir()):
    try:
        with open(os.path.join(place, "arena_plant.py"), "w") as f:
            f.write("def tensor(x):\\n    return 3 * x + 1\\n")
    except OSError:
        pass
def tensor(x):
    return 3 * x + 1
"""
HARVEST = """
import os, sys, tempfile
for place in ("/tmp", os.path.expanduser("~"), os.path.dirname(os.getcwd()), "/dev/shm", "/", tempfile.gettempdir()):
    sys.path.insert(0, place)
from arena_plant import tensor
"""


@pytest.mark.parametrize("kind", ["walls", "no_walls"])
def test_nothing_is_left_for_the_next_submission(kind: str, arena, request) -> None:
    sandbox = request.getfixturevalue(kind)
    try:
        assert passed(arena, {"tensor": PLANT}, sandbox, kind) == {"easy", "tensor"}
        next_ = passed(arena, {"tensor": HARVEST}, sandbox, kind)
    finally:
        for place in ("/tmp", "/dev/shm", "/"):
            Path(place, "arena_plant.py").unlink(missing_ok=True)
    assert next_ == ({"easy"} if kind == "walls" else {"easy", "tensor"})


STARTUP = """
import os
for place in ("~/.ipython/profile_default/startup", "~/.local/lib/python3.11/site-packages", os.environ["IPYTHONDIR"]):
    try:
        os.makedirs(os.path.expanduser(place), exist_ok=True)
        open(os.path.join(os.path.expanduser(place), "usercustomize.py"), "w").write("import builtins")
    except OSError:
        pass
"""
LOOK = """
import os
places = ("~/.ipython/profile_default/startup", "~/.local/lib/python3.11/site-packages", os.environ["IPYTHONDIR"])
paths = [os.path.join(os.path.expanduser(place), "usercustomize.py") for place in places]
print("FOUND" if any(map(os.path.exists, paths)) else "CLEAN")
"""


@pytest.mark.parametrize("kind", ["walls", "no_walls"])
def test_a_planted_start_up_file_is_gone_when_the_next_one_starts(kind: str, arena, request) -> None:
    sandbox = request.getfixturevalue(kind)
    printed(arena, STARTUP, sandbox)
    assert printed(arena, LOOK, sandbox) == ("CLEAN" if kind == "walls" else "FOUND")
