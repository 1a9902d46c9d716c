"""Grading: processor time a submission against `nbgrader autograde`; every submission imports torch and PEFT.

python benchmarks/grading.py [--submissions 30] [--peer-submissions 30] [--save | --quick]

Both grade the same notebooks with their own command, everything that it starts is counted, and the scores must be the
same. The peer grades one half before ours and one half after it.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import nbformat

IMPORTS = "import torch\nimport transformers\nimport peft\n\n"
ROOT = Path(__file__).resolve().parent.parent
NAME = "01_lora_layer"
QUICK = {"submissions": 8, "peer_submissions": 4}
WRONG = {
    "lora_forward": "def lora_forward(x, W, A, B, alpha):\n    return x @ W.T + alpha * (x @ A.T @ B.T)",
    "merge": "def merge(W, A, B, alpha):\n    W += alpha / A.shape[0] * (B @ A)\n    return W",
    "init_lora": "def init_lora(i, o, r):\n    return torch.zeros(r, i), torch.zeros(o, r)",
    "count_parameters": "def count_parameters(i, o, r):\n    return i * o",
    "break_even_rank": "break_even_rank = 4096",
}


def make_class(folder: Path, count: int, peer_count: int) -> None:
    """A course with submissions: a third right, the others wrong in one or two problems; the peer grades a* and b*."""
    for part in ("solutions", "exercises"):
        shutil.copytree(ROOT / part, folder / part)
    shutil.copyfile(ROOT / "nbgrader_config.py", folder / "nbgrader_config.py")
    solved = nbformat.read(folder / "solutions" / NAME / f"{NAME}.ipynb", as_version=4)
    right = {cell.metadata.get("nbgrader", {}).get("grade_id"): cell.source for cell in solved.cells}
    names = list(WRONG)
    for number in range(count):
        made = nbformat.read(folder / "exercises" / NAME / f"{NAME}.ipynb", as_version=4)
        chosen = {names[number % len(names)], names[number * 2 % len(names)]} if number % 3 else set()
        for cell in made.cells:
            said = cell.metadata.get("nbgrader", {})
            if said.get("solution"):
                source = WRONG[said.grade_id] if said.grade_id in chosen else right[said.grade_id]
                cell.source = IMPORTS + source if cell.cell_type == "code" else source
        half = "a" if number < peer_count // 2 else "b" if number < peer_count else "c"
        place = folder / "submitted" / f"{half}{number:03d}" / NAME
        place.mkdir(parents=True)
        nbformat.write(made, place / f"{NAME}.ipynb")


def cpu_seconds(command: list[str], folder: Path) -> float:
    """Processor seconds of a command and of all processes that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])  # for alembic
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def nbgrader(folder: Path, *words: str) -> float:
    """One of nbgrader's own commands; kernels that start slowly on a busy machine get ten minutes for a cell."""
    command = [sys.executable, "-W", "ignore", "-m", "nbgrader", *words, "--Execute.timeout=600"]
    return cpu_seconds(command, folder)


def scores(folder: Path) -> dict[str, float]:
    """Each student's points in a course's gradebook."""
    from lorahub_grader.gradebook import Course

    with Course(folder).open() as gradebook:
        return {s.student_id: s.score for s in gradebook.find_assignment(NAME).submissions}


def main() -> None:
    options = common.arguments(__doc__, QUICK, submissions=30, peer_submissions=30)
    with tempfile.TemporaryDirectory(prefix="lorahub-edu-") as folder:
        course, other = Path(folder) / "ours", Path(folder) / "peer"
        for place in (course, other):
            make_class(place, options.submissions, options.peer_submissions)
        nbgrader(other, "generate_assignment", NAME, "--force")
        # The peer's two halves stand around ours, so that a slow hour of the machine hits both.
        first = nbgrader(other, "autograde", NAME, "--student=a*")
        mine = cpu_seconds([sys.executable, "-m", "lorahub_edu", "grade", "submitted"], course)
        second = nbgrader(other, "autograde", NAME, "--student=b*")
        found, known = scores(course), scores(other)
    same = len(known) == options.peer_submissions and all(found[student] == known[student] for student in known)
    each, theirs = mine / options.submissions, (first + second) / options.peer_submissions
    common.report(
        "grading",
        ratios={"cpu_seconds": theirs / each},
        ours={"seconds": round(each, 3), "submissions": options.submissions},
        peer={"seconds": round(theirs, 3), "submissions": options.peer_submissions},
        equal={"scores": same, "different_scores": len(set(found.values())), "tolerance": 0},
        save=options.save,
        note="processor seconds a submission, with everything that was started; gradebook and feedback included",
    )


if __name__ == "__main__":
    main()
