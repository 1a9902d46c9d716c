"""An autograder for Gradescope: the zip file to upload, and what runs in its container for one submission.

`python -m lorahub_grader.gradescope ASSIGNMENT` reads /autograder/submission and writes
/autograder/results/results.json. There the platform's container is the outer sandbox; answers run as another user, or
in bubblewrap where the platform lets it.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

from lorahub_edu.errors import CourseError
from lorahub_edu.results import write_json
from lorahub_grader import assignments, worker
from lorahub_grader.assignments import RELEASE, ROOT, SOURCE, Assignment
from lorahub_grader.collect import collect
from lorahub_grader.journal import Outcome
from lorahub_grader.repair import read, which_assignment
from lorahub_grader.sandbox import choose
from lorahub_grader.sandbox.process import explain

PLACE = Path("/autograder")
PROJECT = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "LICENSE-content")
KINDS = ("bubblewrap", choose.CONTAINER)
PACKAGES = ("lorahub_edu", "lorahub_checks", "lorahub_grader", "lorahub_studies")
LEFT_OUT = ("__pycache__", "zoo")  # a grader needs no modules

SETUP = """#!/usr/bin/env bash
# Runs once, as root, when Gradescope builds the container.
set -euo pipefail
apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv bubblewrap
python3 -m venv /autograder/venv
cd /autograder/source/course
/autograder/venv/bin/pip install --no-cache-dir --constraint constraints.txt ".[teach]"
"""
RUN = """#!/usr/bin/env bash
# Runs as root for each submission. Solutions and results are root's alone; answers run as another user.
set -euo pipefail
chmod -R go-rwx /autograder/source /autograder/results /autograder/submission
chmod go-rwx /autograder/run_autograder
cd /autograder/source/course
exec /autograder/venv/bin/python -m lorahub_grader.gradescope {name} --course /autograder/source/course
"""


def pack(assignment: Assignment, root: Path, out: Path) -> Path:
    """Write the zip file that Gradescope takes as an autograder."""
    name = assignment.name
    own = [Path(part) / name / f"{name}.ipynb" for part in (SOURCE, RELEASE)]
    package = [
        path
        for part in PACKAGES
        for path in sorted((ROOT / part).rglob("*"))
        if path.is_file() and not set(LEFT_OUT) & set(path.relative_to(ROOT).parts)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in {"setup.sh": SETUP, "run_autograder": RUN.format(name=name)}.items():
            entry = zipfile.ZipInfo(file)
            entry.external_attr = 0o755 << 16
            archive.writestr(entry, text)
        for path in [*(ROOT / part for part in PROJECT), *package]:
            archive.write(path, Path("course") / path.relative_to(ROOT))
        for path in own:
            archive.write(root / path, Path("course") / path)
    return out


def grade(course: Path, name: str, place: Path = PLACE, sandbox: str | None = None) -> Path:
    """Grade the one submission that Gradescope put in place, in the first sandbox that works; what it reads."""
    assignment = assignments.load(name, course)
    hidden = (str(course / SOURCE), str(place / "results"))
    kind = choose.choose(sandbox, secrets=hidden, kinds=KINDS)
    try:
        outcome = _outcome(assignment, place / "submission", kind)
    finally:
        worker.SANDBOXES.close()
    return write_json(place / "results" / "results.json", report(outcome))


def _outcome(assignment: Assignment, folder: Path, kind: str) -> Outcome:
    ids = {assignment.name: assignment.answer_ids}
    try:  # all that lies there is one student's: the newest notebook of the assignment counts
        found = collect(folder, ids, assignment.name).submissions
        used = max(found, key=lambda s: (which_assignment(s.read()[0], ids) is not None, s.file.modified))
        answers, notes, trouble = read(*used.read(), assignment)
        notes += tuple(f"not used: {one.name}.ipynb" for one in found if one is not used)
    except CourseError as error:
        answers, notes, trouble = {}, (), str(error)
    job = worker.Job(assignment, "submission", "", answers, notes, sandbox=kind)
    return worker.outcome_of(job, [], f"unreadable: {trouble}") if trouble else worker.work(job)


def report(outcome: Outcome) -> dict:
    """An outcome in Gradescope's form: each test with its message and hint; what was printed stays hidden."""
    tests = []
    for test in outcome.tests:
        words = [test.message, *(_line(p) for p in test.properties if not p[1]), test.hint and f"Hint: {test.hint}"]
        tests.append(
            {
                "name": test.grade_id.removeprefix("test_"),
                "score": test.earned,
                "max_score": test.points,
                "status": "passed" if test.passed else "failed",
                "output": "\n".join(word for word in words if word),
                "visibility": "visible",
            }
        )
    said = [explain(outcome.reason).capitalize() + "."] if outcome.reason else []
    return {
        "score": outcome.earned,
        "output": "\n".join([*said, *outcome.notes]),
        "execution_time": round(outcome.seconds),
        "stdout_visibility": "hidden",
        "visibility": "visible",
        "tests": tests,
    }


def _line(found: tuple[str, bool, str, str]) -> str:
    name, _, seen, words = found
    return f"{name}: does not hold" + (f" ({seen})" if seen else "") + (f"; probably: {words}" if words else "")


def main() -> None:
    parser = argparse.ArgumentParser(description="Grade one submission in Gradescope's container.")
    parser.add_argument("assignment")
    parser.add_argument("--course", type=Path, default=ROOT)
    parser.add_argument("--place", type=Path, default=PLACE)
    parser.add_argument("--sandbox", help="one kind; default the first that works of " + ", ".join(KINDS))
    options = parser.parse_args()
    grade(options.course, options.assignment, options.place, options.sandbox)


if __name__ == "__main__":
    main()
