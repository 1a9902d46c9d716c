"""Lessons, exercises, recipes and results: where they are, and laying them out in a learner's folder.

A clone has them at its root; a wheel carries them beside the package. A learner's folder remembers the hash of each
file that was laid out. A file with this hash is the course's and may be renewed. Any other is the learner's.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from lorahub_edu.errors import CourseError
from lorahub_edu.files import save

_BESIDE = Path(__file__).resolve().parents[2]
IN_CLONE = (_BESIDE / "lessons" / "src").is_dir()
SHIPPED = _BESIDE if IN_CLONE else _BESIDE / "lorahub_course"
LAID_OUT = ("lessons/*.ipynb", "exercises/*/*.ipynb", "recipes/*.yaml", "results/*.json", "docs/*.*")
FIRST = Path("lessons") / "00_start_here.ipynb"  # a folder that has it is a course
RECORD = Path(".course") / "laid_out.json"


def folder() -> Path | None:
    """The course that the working folder is in, else the clone that the package runs from; None if there is neither."""
    here = Path.cwd()
    inside = (place for place in (here, *here.parents) if (place / FIRST).is_file())
    return next(inside, SHIPPED if IN_CLONE else None)


def lay_out(target: Path) -> dict[Literal["new", "renewed", "kept"], list[str]]:
    """Lay the course out in a folder, or bring one up to date. What a learner changed or put there stays as it is.

    Returns: paths in the folder: files that are new, renewed, and kept because they are the learner's.
    Raises CourseError: something that is no folder stands where one is needed; nothing was written then.
    Raises OSError: the folder can't be written.
    """
    files = {path.relative_to(SHIPPED).as_posix(): path for pattern in LAID_OUT for path in SHIPPED.glob(pattern)}
    for place in {target, *target.parents, *((target / name).parent for name in (*files, RECORD))}:
        if place.exists() and not place.is_dir():
            raise CourseError(f"{place} is not a folder: choose another place for the course, or rename that file.")
    recorded = _recorded(target)
    done = {"new": [], "renewed": [], "kept": []}
    for name, source in sorted(files.items()):
        path, content = target / name, source.read_bytes()
        found = _hash(path.read_bytes()) if path.is_file() else None
        if found is None and path.exists() or found not in (None, _hash(content), recorded.get(name)):
            done["kept"].append(name)
            continue
        if found != _hash(content):
            with save.replacing(path) as unfinished:
                unfinished.write_bytes(content)
            done["renewed" if found else "new"].append(name)
        recorded[name] = _hash(content)
    with save.replacing(target / RECORD) as unfinished:
        unfinished.write_text(json.dumps(recorded, indent=1), encoding="utf-8")
    return done


def _recorded(target: Path) -> dict[str, str]:
    """The hashes of an earlier call. Without a readable record every file that differs is the learner's."""
    try:
        found = json.loads((target / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
