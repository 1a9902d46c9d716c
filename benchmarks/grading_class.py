"""A class of 300: mixed submissions, one in twenty broken, graded in one run with a row for each.

python benchmarks/grading_class.py [--submissions 300] [--cluster local:2] [--save]

The submissions are made from a seed: right, wrong in some problems, empty, without end, crashing, greedy for memory,
cheating, and broken in every way that we know. Each kind's points are known beforehand; the run must find them. With
--cluster the same class is graded in one process, too: both gradebooks must be equal.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import common
import nbformat
from grading import NAME, ROOT, WRONG

from lorahub_grader import assignments
from lorahub_grader.gradebook import Course

EVERYTHING = {
    "count_parameters": 1,
    "lora_forward": 3,
    "init_lora": 2,
    "merge": 2,
    "LoRALayer": 4,
    "break_even_rank": 1,
}
ENDLESS = "def merge(W, A, B, alpha):\n    while True:\n        pass"
CRASH = "import os\nos._exit(1)"
GREEDY = "import torch\nblock = torch.ones(4 << 30, dtype=torch.uint8)"
CHEAT = "import torch\ntorch.allclose = lambda *a, **k: True\ndef lora_forward(x, W, A, B, alpha):\n    return x"
BROKEN = (b"", b"{", b"\xff\xfe\x00", b"[]", b'{"cells": 3}', b"[" * 50_000)


def write_class(folder: Path, count: int) -> dict[str, tuple[str, float]]:
    """A flat folder of submissions; each student's kind and the points it must get."""
    draw = random.Random(0)
    loaded = assignments.load(NAME, ROOT)
    right = {cell.grade_id: cell.source for cell in loaded.cells if cell.role == "answer"}
    released = (ROOT / "exercises" / NAME / f"{NAME}.ipynb").read_text(encoding="utf-8")
    expected = {}
    for number in range(count):
        student = f"student{number:03d}"
        kind, answers, points = _drawn(draw, right, broken=number % 20 == 7)
        expected[student] = (kind, points)
        made = nbformat.reads(released, as_version=4)
        for cell in made.cells:
            grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
            cell.source = answers.get(grade_id, cell.source)
        content = draw.choice(BROKEN) if kind == "broken" else json.dumps(made).encode()
        (folder / f"{student}.ipynb").write_bytes(content)
    return expected


def _drawn(draw: random.Random, right: dict[str, str], broken: bool) -> tuple[str, dict[str, str], float]:
    """One submission: its kind, its answers, its points."""
    if broken:
        return "broken", {}, 0
    kind = draw.choices(
        ("right", "wrong", "empty", "cheating", "endless", "crashing", "greedy"), (35, 45, 8, 5, 3, 2, 2)
    )[0]
    total = sum(EVERYTHING.values())
    if kind == "wrong":
        chosen = draw.sample(sorted(WRONG), draw.randint(1, 3))
        return kind, right | {name: WRONG[name] for name in chosen}, total - sum(EVERYTHING[name] for name in chosen)
    special = {
        "right": ({}, total),
        "empty": (None, 0),
        "cheating": ({"lora_forward": CHEAT}, total - EVERYTHING["lora_forward"]),
        "endless": ({"merge": ENDLESS}, total - EVERYTHING["merge"]),
        "crashing": ({"merge": CRASH}, total - EVERYTHING["merge"]),
        "greedy": ({"merge": GREEDY}, total - EVERYTHING["merge"]),
    }
    changes, points = special[kind]
    return kind, {} if changes is None else right | changes, points


def grade(folder: Path, place: Path, cluster: str) -> dict:
    """Grade the class into a new course: its gradebook, reasons, processor seconds and bytes written."""
    course = folder / (cluster.replace(":", "-") or "alone")
    for part in ("solutions", "exercises"):
        shutil.copytree(ROOT / part, course / part)
    before = sum(file.stat().st_size for file in course.rglob("*") if file.is_file())
    command = [sys.executable, "-m", "lorahub_edu", "grade", str(place), "--assignment", NAME, "--course", str(course)]
    started, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--cluster", cluster], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    seconds, since = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    with Course(course).open() as gradebook:
        submissions = gradebook.find_assignment(NAME).submissions
        points = {s.student_id: s.score for s in submissions}
        grades = {(s.student_id, g.name): (g.auto_score, g.needs_manual_grade) for s in submissions for g in _grades(s)}
    return {
        "points": points,
        "grades": grades,
        "reasons": Counter(o.reason.partition(":")[0] for o in Course(course).journal.all(NAME) if o.reason),
        "wall_seconds": round(seconds),
        "cpu_seconds": since.ru_utime + since.ru_stime - used.ru_utime - used.ru_stime,
        "bytes": sum(file.stat().st_size for file in course.rglob("*") if file.is_file()) - before,
    }


def _grades(submission: Any) -> list[Any]:
    return [grade for notebook in submission.notebooks for grade in notebook.grades]


def main() -> None:
    options = common.arguments(__doc__, submissions=300, cluster="")
    with tempfile.TemporaryDirectory(prefix="lorahub-edu-") as scratch:
        folder, place = Path(scratch), Path(scratch) / "handed-in"
        place.mkdir()
        expected = write_class(place, options.submissions)
        runs = [grade(folder, place, cluster) for cluster in dict.fromkeys((options.cluster, ""))]
    found = runs[0]
    points = found["points"]
    wrong = {s: (kind, right, points.get(s)) for s, (kind, right) in expected.items() if points.get(s) != right}
    for student, line in wrong.items():
        print(student, *line)
    kinds = Counter(kind for kind, _ in expected.values())
    same = all(run[key] == found[key] for run in runs for key in ("points", "grades", "reasons"))
    common.report(
        "grading_class" + ("_cluster" if options.cluster else ""),
        ratios={"rows": len(points) / options.submissions},
        ours={
            "rows": len(points),
            "grades": len(found["grades"]),
            "cpu_seconds_each": round(found["cpu_seconds"] / options.submissions, 3),
            "bytes_each": found["bytes"] // options.submissions,
        },
        peer={"submissions": options.submissions, "kinds": dict(sorted(kinds.items()))},
        equal={"points_as_expected": not wrong, "gradebook_of_one_process": same, "tolerance": 0},
        save=options.save,
        reasons=dict(sorted(found["reasons"].items())),
        wall_seconds=[run["wall_seconds"] for run in runs],
        cluster=options.cluster,
    )


if __name__ == "__main__":
    main()
