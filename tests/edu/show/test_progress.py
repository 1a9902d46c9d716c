"""Progress: what is noted when, by several processes at once, and that no damaged or missing file is in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lorahub_edu.files import assets
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.show import findings, lessons, progress
from lorahub_edu.show.check import ASSIGNMENT
from lorahub_edu.show.check import check as check_in_assignment
from lorahub_edu.show.notebook import check

PASS = "import sys; from lorahub_edu.show import progress; [progress.check_passed(id) for id in sys.argv[1:]]"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.delenv(progress.VARIABLE)
    return tmp_path / "home"


@dataclass(frozen=True)
class Test:
    __test__ = False
    points: float


@dataclass(frozen=True)
class Graded:
    student: str
    assignment: str
    earned: float
    tests: tuple[Test, ...] = field(default=(Test(2), Test(3)))


def right(alpha: float, rank: int) -> float:
    return alpha / rank


def test_a_passed_check_is_noted_and_a_failed_one_is_not(home: Path) -> None:
    check("00.1", lambda alpha, rank: alpha)
    assert progress.read() == progress.NOTHING and not home.exists()
    check("00.1", right)
    assert set(progress.read().checks) == {"00.1"}
    check("00.1", lambda alpha, rank: alpha)
    assert set(progress.read().checks) == {"00.1"}, "once passed stays passed"


def test_a_lesson_and_an_assignment_keep_theirs_apart(home: Path) -> None:
    check_in_assignment("00.1", right)
    assert set(progress.read().checks) == {ASSIGNMENT + "00.1"}
    assert dict(row[::2] for row in lessons.progress_tables()[0].rows)["00_start_here"] == "0 of 1"


def test_a_check_with_a_seed_is_a_test_and_not_progress(home: Path) -> None:
    check_in_assignment("00.1", right, seed=0)
    assert progress.read().checks == {}


def test_lessons_and_points(home: Path) -> None:
    findings.publish("01", [findings.Row("a", 1.0)], get_profile("tiny"))
    progress.lesson_run("06")
    progress.graded([Graded("ada", "01_lora_layer", 4.0), Graded("ada", "06_composing", 1.0)])
    progress.graded([Graded("ada", "01_lora_layer", 5.0)])
    done = progress.read()
    assert set(done.lessons) == {"01", "06"} and all(len(day) == 10 for day in done.lessons.values())
    assert done.points == {"01_lora_layer": (5.0, 5.0), "06_composing": (1.0, 5.0)}
    progress.graded([Graded("bob", "01_lora_layer", 0.0), Graded("eve", "01_lora_layer", 0.0)])
    assert progress.read().points["01_lora_layer"] == (5.0, 5.0), "a class is nobody's progress"


def test_switched_off_nothing_is_kept_or_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress.check_passed("01.1")
    monkeypatch.setenv(progress.VARIABLE, "OFF")
    progress.check_passed("01.2")
    assert progress.read() == progress.NOTHING
    monkeypatch.delenv(progress.VARIABLE)
    assert set(progress.read().checks) == {"01.1"}


@pytest.mark.parametrize(
    "text", ["{not json", "[]", '{"lessons": {}}', '{"lessons": {}, "checks": {"01.1": 3}, "points": {}}', "\xff"]
)
def test_a_damaged_file_is_put_aside(text: str, home: Path) -> None:
    home.mkdir()
    progress.path().write_text(text, encoding="latin-1")
    assert progress.read() == progress.NOTHING
    progress.check_passed("01.1")
    assert set(progress.read().checks) == {"01.1"}
    assert (home / progress.DAMAGED).read_text(encoding="latin-1") == text


def test_a_place_that_cant_be_written_is_no_error(home: Path) -> None:
    home.write_text("a file where the folder should be")
    progress.check_passed("01.1")
    assert check("00.1", right).passed and progress.read() == progress.NOTHING


def test_processes_that_write_at_once_lose_nothing(home: Path) -> None:
    ids = [[f"{process:02d}.{number}" for number in range(8)] for process in range(2)]
    started = [subprocess.Popen([sys.executable, "-c", PASS, *own], env=os.environ) for own in ids]
    assert [process.wait(120) for process in started] == [0, 0]
    assert set(progress.read().checks) == {id for own in ids for id in own}
    assert json.loads(progress.path().read_text()).keys() == {"lessons", "checks", "points", "predictions", "machine"}


def test_the_overview_counts_what_there_is_and_what_was_done(home: Path) -> None:
    check("00.1", right)
    progress.check_passed(ASSIGNMENT + "08.4")
    progress.lesson_run("01")
    progress.graded([Graded("ada", "08_intruder_dimensions", 4.0)])
    of_lessons, assignments = lessons.progress_tables()
    rows = {row[0]: row[1:] for row in of_lessons.rows}
    assert rows["00_start_here"] == ("–", "1 of 1") and rows["01_lora_from_scratch"][0] == progress.read().lessons["01"]
    work = {row[0]: row[1:] for row in assignments.rows}
    assert work["08_intruder_dimensions"] == ("1 of 6", "4 of 5") and work["09_forgetting"][1] == "–"
    assert str(progress.path()) in assignments.caption


def test_on_the_command_line(home: Path) -> None:
    progress.check_passed("00.1")
    command = [sys.executable, "-m", "lorahub_edu", "progress"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ)
    assert done.returncode == 0 and "1 of 1" in done.stdout and str(progress.path()) in done.stdout


def test_a_file_that_can_not_be_opened_stays_where_it_is(home: Path) -> None:
    progress.path().mkdir(parents=True)
    progress.check_passed("1.1")
    assert [path.name for path in progress.path().parent.iterdir() if path.is_dir()] == [progress.path().name]
