"""How Canvas and Moodle name what a teacher downloads.

Both put a number of theirs into each name. It stays in the student's name here and tells students apart, so that points
can be given back without a table of names: Canvas's `lovelaceada_LATE_4711_90210_01_lora_layer-1.ipynb` becomes
`4711-lovelaceada`, a file in Moodle's folder `Ada Lovelace_4711_assignsubmission_file_` becomes `4711-Ada Lovelace`.
"""

from __future__ import annotations

import re

from lorahub_edu.errors import CourseError, near_matches

TARGETS = ("canvas", "moodle", "nbgrader", "gradescope")  # of an export
CANVAS = re.compile(r"(?P<name>[^_]+)(?P<late>_LATE)?_(?P<number>\d+)_(?P<file>\d+(?=_)|(?=text\.html))_?(?P<rest>.+)")
MOODLE = re.compile(r"(?P<name>.+?)_(?P<number>\d+)_assignsubmission_[a-z]+_?(?P<rest>.*)")
MOODLE_FOLDER = re.compile(r"(?P<name>.+)_(?P<number>\d+)_assignsubmission_[a-z]+_?(?P<rest>)")
NUMBERED = re.compile(r"(?P<number>\d+)-.+")  # a student's name here that begins with a platform's number


def check_target(to: str) -> None:
    """Raise CourseError where grades can't be exported to a platform of that name."""
    if to not in TARGETS:
        raise CourseError(f"There is no export {to!r}. {near_matches(to, TARGETS)}")
