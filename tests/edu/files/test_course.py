"""The course in a learner's folder: laid out whole, renewed where untouched, and never over a learner's work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from lorahub_edu.errors import CourseError
from lorahub_edu.files import course
from lorahub_edu.files.course import lay_out

EXERCISE = "exercises/01_lora_layer/01_lora_layer.ipynb"
RECIPE = "recipes/llama_7b_lora_alpaca.yaml"


@pytest.fixture
def edition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small course in the place of the shipped one, whose files a test may change."""
    shipped = tmp_path / "shipped"
    for name in (course.FIRST.as_posix(), "lessons/src/00_start_here.py", EXERCISE, RECIPE):
        (shipped / name).parent.mkdir(parents=True, exist_ok=True)
        (shipped / name).write_text(f"first edition of {name}")
    monkeypatch.setattr(course, "SHIPPED", shipped)
    return shipped


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8", "replace") for path in files}


def laid_out(new: tuple, renewed: tuple, kept: tuple) -> dict[str, list[str]]:
    return {"new": [*new], "renewed": [*renewed], "kept": [*kept]}


def test_all_that_a_learner_needs_is_laid_out(tmp_path: Path) -> None:
    done = lay_out(tmp_path / "new" / "course")
    assert not done["renewed"] and not done["kept"]
    found = contents(tmp_path / "new" / "course")
    assert set(done["new"]) | {course.RECORD.as_posix()} == found.keys()
    assert len([name for name in found if name.startswith("lessons/")]) == 11 and EXERCISE in found and RECIPE in found
    assert not [name for name in found if name.endswith(".py") or "solution" in name]
    lesson = json.loads(found[course.FIRST.as_posix()])
    assert lesson == json.loads((course.SHIPPED / course.FIRST).read_text(encoding="utf-8"))


def test_a_second_call_renews_the_untouched_and_names_the_rest(edition: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    lay_out(target)
    (target / EXERCISE).write_text("my answer")
    (target / "notes.txt").write_text("mine")
    assert lay_out(target) == laid_out((), (), (EXERCISE,))
    for name in (EXERCISE, RECIPE):
        (edition / name).write_text(f"second edition of {name}")
    (edition / "recipes" / "more.yaml").write_text("a recipe that is new")
    done = lay_out(target)
    assert done == laid_out(("recipes/more.yaml",), (RECIPE,), (EXERCISE,))
    found = contents(target)
    assert (found[EXERCISE], found["notes.txt"], found[RECIPE]) == ("my answer", "mine", f"second edition of {RECIPE}")
    (target / EXERCISE).rename(target / "mine.ipynb")
    assert lay_out(target)["new"] == [EXERCISE] and contents(target)["mine.ipynb"] == "my answer"


def test_what_stood_in_the_folder_before_stays(edition: Path, tmp_path: Path) -> None:
    target = tmp_path / "full"
    (target / "recipes").mkdir(parents=True)
    (target / RECIPE).write_text("a recipe of mine")
    assert lay_out(target)["kept"] == [RECIPE]
    (edition / RECIPE).write_text("second edition")
    assert lay_out(target)["kept"] == [RECIPE] and (target / RECIPE).read_text() == "a recipe of mine"


@pytest.mark.parametrize("record", ["", "[]", '{"recipes/llama_7b_lora_alpaca.yaml": 3}', None])
def test_without_a_readable_record_what_differs_is_the_learners(edition: Path, tmp_path: Path, record: str) -> None:
    target = tmp_path / "mine"
    lay_out(target)
    (target / course.RECORD).unlink() if record is None else (target / course.RECORD).write_text(record)
    (edition / RECIPE).write_text("second edition")
    assert lay_out(target)["kept"] == [RECIPE]


def test_a_laying_out_that_was_killed_goes_on(edition: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, replacing = tmp_path / "mine", course.save.replacing
    lay_out(target)
    for name in (EXERCISE, RECIPE):
        (edition / name).write_text(f"second edition of {name}")

    def full(path: Path) -> object:
        if path.name == Path(RECIPE).name:
            raise OSError(28, "No space left on device", str(path))
        return replacing(path)

    with monkeypatch.context() as patch:
        patch.setattr(course.save, "replacing", full)
        with pytest.raises(OSError, match="No space"):
            lay_out(target)
    assert lay_out(target) == laid_out((), (RECIPE,), ())


@pytest.mark.parametrize("blocked", [".", "lessons", "exercises/01_lora_layer", ".course"])
def test_a_file_in_the_way_is_found_before_anything_is_written(edition: Path, tmp_path: Path, blocked: str) -> None:
    target = tmp_path / "mine"
    (target / blocked).parent.mkdir(parents=True, exist_ok=True)
    (target / blocked).write_text("a file") if blocked != "." else target.write_text("a file")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CourseError, match="is not a folder"):
        lay_out(target)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_in_the_place_of_a_file_is_kept(edition: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / RECIPE).mkdir(parents=True)
    assert lay_out(tmp_path / "mine")["kept"] == [RECIPE]


def test_a_course_is_found_from_every_folder_inside(
    edition: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path / "mine")
    monkeypatch.setattr(course, "IN_CLONE", False)
    for inside in ("mine", "mine/exercises/01_lora_layer"):
        monkeypatch.chdir(tmp_path / inside)
        assert course.folder() == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    assert course.folder() is None
    monkeypatch.setattr(course, "IN_CLONE", True)
    assert course.folder() == edition


def lorahub_edu(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "lorahub_edu", *arguments], cwd=cwd, capture_output=True, text=True, timeout=240
    )


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that nobody may write to, also not root")
def test_on_the_command_line(tmp_path: Path) -> None:
    done = lorahub_edu("init", "my course", cwd=tmp_path)
    assert done.returncode == 0 and 'lorahub-edu lab "my course"' in done.stdout
    (tmp_path / "my course" / EXERCISE).write_text("{}")
    done = lorahub_edu("init", ".", cwd=tmp_path / "my course")
    assert done.returncode == 0 and f"kept as it is: {EXERCISE}" in done.stdout and "0 files new" in done.stdout
    for target in ("/proc/course", "my course/" + EXERCISE):
        done = lorahub_edu("init", target, cwd=tmp_path)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    done = lorahub_edu("lab", "nowhere", cwd=tmp_path)
    assert done.returncode == 1 and 'lorahub-edu init "nowhere"' in done.stderr


def test_lab_trusts_what_is_as_it_was_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jupyterlab.labapp import LabApp
    from nbformat.sign import NotebookNotary

    from lorahub_edu.cli.app import lab

    lay_out(tmp_path / "mine")
    changed = tmp_path / "mine" / "lessons" / "01_lora_from_scratch.ipynb"
    notebook = nbformat.read(changed, as_version=4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("display_data", {"text/html": "<script>alert(1)</script>"})]
    nbformat.write(notebook, changed)
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "put back after the test")
    monkeypatch.delenv("JUPYTER_CONFIG_PATH")
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    monkeypatch.setattr(LabApp, "launch_instance", told.extend)
    lab(Path("mine"), browser=False, port=8899)
    assert Path.cwd() == tmp_path / "mine" and told[-1] == f"--LabApp.default_url=/lab/tree/{course.FIRST.as_posix()}"
    assert {"--port=8899", "--no-browser", f"--ServerApp.root_dir={Path.cwd()}"} <= set(told)
    assert ("--allow-root" in told) == (hasattr(os, "geteuid") and os.geteuid() == 0)
    setting = Path(os.environ["JUPYTER_CONFIG_PATH"]) / "labconfig/default_setting_overrides.d/lorahub-edu.json"
    settings = json.loads(setting.read_text(encoding="utf-8"))
    assert settings["@jupyter-widgets/jupyterlab-manager:plugin"] == {"saveState": True}
    assert settings["@jupyterlab/apputils-extension:notification"] == {"fetchNews": "false"}  # nor is anybody asked
    signed = {path.stem for path in changed.parent.glob("*.ipynb") if is_signed(NotebookNotary(), path)}
    assert len(signed) == 10 and changed.stem not in signed


def is_signed(notary: object, path: Path) -> bool:
    return notary.check_signature(nbformat.read(path, as_version=4))
