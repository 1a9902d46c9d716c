"""How Canvas and Moodle name what a teacher downloads.

Both put a number of theirs into each name. It stays in the student's name here and tells students apart, so that points
can be given back without a table of names: Canvas's `lovelaceada_LATE_4711_90210_01_lora_layer-1.ipynb` becomes
`4711-lovelaceada`, a file in Moodle's folder `Ada Lovelace_4711_assignsubmission_file_` becomes `4711-Ada Lovelace`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

CANVAS = re.compile(r"(?P<name>[^_]+)(?:_LATE)?_(?P<id>\d+)_\d+_.+\.ipynb")
MOODLE = re.compile(r"(?P<name>.+)_(?P<id>\d+)_assignsubmission_file_?")
UNFIT = re.compile(r"[^\w.@ +-]")  # for a file's name
NUMBERED = re.compile(r"(?P<number>\d+)-.+")


def canvas_students(names: Sequence[str]) -> list[str] | None:
    """The students of files that lie side by side; None unless Canvas named all of them."""
    return _students([CANVAS.fullmatch(name) for name in names])


def moodle_students(folders: Sequence[str]) -> list[str] | None:
    """The students of folders; None unless Moodle named all of them."""
    return _students([MOODLE.fullmatch(folder) for folder in folders])


def _students(found: Sequence[re.Match | None]) -> list[str] | None:
    if not found or not all(found):
        return None
    return [f"{match['id']}-{UNFIT.sub('', match['name'])[:80].strip()}" for match in found]
