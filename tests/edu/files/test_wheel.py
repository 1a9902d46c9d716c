"""What the wheel carries: the whole course, and nothing that a learner should find out alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lorahub_edu.files import course

ROOT = Path(__file__).resolve().parents[3]
LARGEST = 30e6  # bytes


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel that is built from a copy of the files that git knows."""
    folder = tmp_path_factory.mktemp("wheel")
    told = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if told.returncode:
        pytest.skip("not a clone")
    for name in filter(None, told.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    program = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    assert path.stat().st_size < LARGEST
    return zipfile.ZipFile(path)


def test_the_wheel_carries_what_init_lays_out(wheel: zipfile.ZipFile) -> None:
    wanted = {
        f"lorahub_course/{path.relative_to(ROOT).as_posix()}"
        for pattern in (*course.LAID_OUT, "lessons/src/*.py")
        for path in ROOT.glob(pattern)
    }
    carried = {name for name in wheel.namelist() if name.startswith("lorahub_course/")}
    assert carried == wanted and len(carried) > 70
    for name in carried:
        assert wheel.read(name) == (ROOT / name.partition("/")[2]).read_bytes()


def test_no_solution_and_no_test_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    parts = {part for name in wheel.namelist() for part in Path(name).parts}
    assert not parts & {"solutions", "tests", "benchmarks", "tools", "src.ipynb"}
    texts = [wheel.read(name).decode("utf-8", "ignore") for name in wheel.namelist() if name.endswith(".ipynb")]
    assert not [text for text in texts if "BEGIN HIDDEN TESTS" in text or "BEGIN SOLUTION" in text]
