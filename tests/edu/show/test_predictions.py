"""Predictions: kept on this machine, judged on the slider's scale, shown beside what was measured; and recall."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import ipywidgets
import pytest

from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.show import findings, lessons, predictions, progress
from lorahub_edu.show.predictions import compare, predict, recall


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(assets.HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.delenv(progress.VARIABLE)
    predictions._MADE.clear()
    return tmp_path / "home"


def widgets(box: ipywidgets.VBox, kind: type) -> list:
    return [found for row in box.children for found in row.children if isinstance(found, kind)]


def press(box: ipywidgets.VBox, button: str) -> str:
    next(one for one in widgets(box, ipywidgets.Button) if one.description == button).click()
    return widgets(box, ipywidgets.HTML)[0].value


def test_a_choice_is_kept_compared_and_counted(capsys: pytest.CaptureFixture) -> None:
    box = predict("98.a", "Which?", ["q", "v"])
    assert press(box, "Keep") == "Choose one first." and progress.read().predictions == {}
    widgets(box, ipywidgets.RadioButtons)[0].value = "q"
    assert press(box, "Keep") == "Kept: q."
    assert progress.read().predictions["98.a"] == {"question": "Which?", "guess": "q"}
    capsys.readouterr()
    assert compare("98.a", "v") == "q"
    assert capsys.readouterr().out == "You predicted q, measured is v: a surprise.\n"
    table = predictions.table("98")
    assert table.rows == (("98.a", "Which?", "q", "v", "a surprise"),) and "1 surprised you" in table.caption
    assert "**Your predictions**" in findings.publish("98", [], get_profile("tiny"))._repr_markdown_()


def test_a_number_is_judged_as_a_share_of_its_slider() -> None:
    linear = predictions.Asked("98.b", "?", low=0, high=200)
    assert linear.off(100.0, 80.0) == pytest.approx(0.1)
    by_factor = predictions.Asked("98.b", "?", low=1, high=10_000, log=True)
    assert [by_factor.off(guess, 100.0) for guess in (10.0, 1000.0)] == pytest.approx([0.25, 0.25])
    curve = predictions.Asked("98.b", "?", low=0, high=1, points=("1", "2"))
    assert curve.off([0.2, 0.4], [0.4, 0.8]) == pytest.approx(0.3)


def test_sliders_and_a_curve_give_numbers() -> None:
    box = predict("98.c", "How much?", low=1, high=100, log=True)
    (slider,) = widgets(box, ipywidgets.FloatLogSlider)
    assert slider.value == pytest.approx(10) and slider.tooltip == "How much?"
    assert press(box, "Keep") == "Kept: 10."
    box = predict("98.d", "The curve?", low=0, high=2, points=(1, 4, 16))
    sliders = widgets(box, ipywidgets.FloatSlider)
    assert [one.description for one in sliders] == ["1", "4", "16"]
    sliders[2].value = 2
    press(box, "Keep")
    assert compare("98.d", [1, 1, 2]) == [1.0, 1.0, 2.0]
    assert [row[-1] for row in predictions.table("98").rows] == ["not measured yet", "close"]


def test_in_code_and_after_a_restart() -> None:
    predict("98.e", "How much?", high=100, guess=40)
    predictions._MADE.clear()  # a new kernel
    assert "Kept before: 40" in widgets(predict("98.e", "How much?", high=100), ipywidgets.HTML)[0].value
    assert compare("98.e", 41) == 40.0


def test_calibration_says_and_draws_how_far_off_each_kind_was(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple] = []
    monkeypatch.setattr(predictions.panels, "show", lambda figure, alt: shown.append((figure, alt)))
    predict("98.l", "Not measured", high=10, guess=5)
    assert "Answer a lesson's questions" in predictions.calibration().data and not shown
    asked = {"97.a": ("q", "q"), "97.b": ("q", "v"), "97.c": (20.0, 10.0), "97.d": (2.0, 12.0), "97.e": (0.0, 7.0)}
    asked["97.g"] = (0.0, 0.0)
    for id, (guess, value) in asked.items():
        predict(id, "?", ["q", "v"] if isinstance(guess, str) else (), high=100, guess=guess)
        compare(id, value)
    predict("97.f", "?", low=0, high=2, points=(1, 2), guess=[1, 1])
    compare("97.f", [1, 2])
    predictions._MADE.clear()  # in another lesson's kernel
    words = predictions.calibration().data
    assert words == (
        "Choices: 1 of 2 right. Numbers: off by a factor of 4 at the median, 100 at most. "
        "Curves: off by this % of the slider: 25 at the median, 25 at most."
    )
    ((figure, alt),) = shown
    lengths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert alt == words and lengths == [[1, 1], pytest.approx([2, 6, 100, 1]), pytest.approx([25])]


@pytest.mark.parametrize("guess", ["many", [1.0, 2.0]])
def test_what_is_no_guess_is_refused(guess: object) -> None:
    with pytest.raises(CourseError, match="98.f asks for a number from 0 to 1"):
        predict("98.f", "?", guess=guess)
    with pytest.raises(CourseError, match="has the choices q, v"):
        predict("98.f", "?", ["q", "v"], guess=guess)


def test_skipped_or_never_asked_says_nothing(capsys: pytest.CaptureFixture) -> None:
    assert press(predict("98.g", "?", ["q", "v"]), "Skip") == "Skipped."
    capsys.readouterr()
    assert compare("98.g", "v") is compare("98.h", 1) is None
    assert capsys.readouterr().out == "" and predictions.table("98").rows == ()


def test_nothing_is_kept_where_progress_is_off(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.VARIABLE, progress.OFF)
    predict("98.i", "?", high=10, guess=5)
    assert compare("98.i", 6) == 5.0 and not home.exists()


def test_an_older_progress_file_has_no_predictions(home: Path) -> None:
    home.mkdir()
    progress.path().write_text('{"lessons": {"01": "2026-01-01"}, "checks": {}, "points": {}}')
    predict("98.j", "?", high=10, guess=5)
    assert progress.read().lessons == {"01": "2026-01-01"} and "98.j" in progress.read().predictions


def test_a_teacher_gets_json() -> None:
    predict("98.k", "?", high=10, guess=5)
    command = [sys.executable, "-m", "lorahub_edu", "progress", "--predictions"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ)
    assert json.loads(done.stdout) == {"98.k": {"question": "?", "guess": 5.0}}


def test_a_class_is_counted_without_names(tmp_path: Path) -> None:
    def export(name: str, *made: tuple[str, object, float]) -> None:
        entries = {id: {"question": "?", "guess": guess, "measured": "v", "off": off} for id, guess, off in made}
        (tmp_path / name).write_text(json.dumps(entries | {"99.z": {"question": "?", "guess": "skipped"}}))

    export("ada.json", ("98.a", "q", 1.0), ("98.b", 50.0, 0.2))
    export("bob.json", ("98.a", "q", 1.0))
    export("eve.json", ("98.a", "v", 0.0), ("98.b", 10.0, 0.1))
    table = predictions.of_class(tmp_path)
    assert table.rows == (("98.a", "?", "1 of 3", "q (2 ×)", "v"), ("98.b", "?", "1 of 2", "50 (1 ×)", "v"))
    assert not any(name in str(table) for name in ("ada", "bob", "eve"))
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(CourseError, match="other.json is no export"):
        predictions.of_class(tmp_path)
    with pytest.raises(CourseError, match="No measured prediction"):
        predictions.of_class(tmp_path / "none")


def test_the_teachers_page_has_the_courses_questions() -> None:
    source = "".join(cell.source for name in lessons.names() for cell in lessons.build(name).cells)
    page = (lessons.LESSONS.parent / "docs" / "teaching.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| (\d\d\.\w) \| (.*) \| \[lesson (\d\d)\]\(\.\./lessons/(\d\d)_", page, re.MULTILINE)
    assert [line[:2] for line in told] == sorted(re.findall(r'predict\("(\d\d\.\w)", "([^"]*)"', source))
    assert all(id[:2] == lesson == file for id, _, lesson, file in told)


@pytest.mark.parametrize("name", lessons.names())
def test_every_lesson_asks_recalls_and_hides_the_answer(name: str) -> None:
    number, cells = name[:2], [cell for cell in lessons.build(name).cells if cell.cell_type == "code"]
    asked = [id for cell in cells for id in re.findall(r'\bpredict\(\s*"(\d\d\.\w)"', cell.source)]
    assert len(set(asked)) == len(asked) and all(id.startswith(number) for id in asked) and (asked or number == "00")
    for id in asked:
        (answer,) = (cell for cell in cells if f'compare("{id}"' in cell.source)
        assert "hide-output" in answer.metadata.tags and answer.metadata.jupyter["outputs_hidden"]
    assert any(f'recall("{number}")' in cell.source for cell in cells)
    text = recall(number).data
    assert text.count("<details>") == (5 if number > "00" else 3)
    earlier = {question for other, pairs in predictions.RECALL.items() if other < number for question, _ in pairs}
    assert sum(f". {question}\n" in text for question in earlier) == (2 if number > "00" else 0)
