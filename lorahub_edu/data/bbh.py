"""BIG-Bench Hard, the 27 tasks that LoRAHub is judged on: found or fetched, and split into five examples and a test.

Source: Suzgun et al. 2022, "Challenging BIG-Bench Tasks", arXiv 2210.09261 (MIT licence).
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from lorahub_edu.data.rows import parse, read_parquet, read_text, text_field
from lorahub_edu.data.tasks import Item, Task
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.files import assets
from lorahub_edu.files.assets import Asset, Edition
from lorahub_edu.files.sources import HubFile

KIND = "bbh"
PUBLISHED = "https://github.com/suzgunmirac/BIG-Bench-Hard (folder bbh)"
REPO = "lukaemon/bbh"
REVISION = "982bb89fd79532a8ac676a61fc42eb1aeec63f99"

# The course's own wording: the published files hold questions only, and a prompt needs to say what is wanted.
INSTRUCTIONS: dict[str, str] = json.loads((resources.files(__package__) / "bbh.json").read_text(encoding="utf-8"))


def names() -> list[str]:
    return list(INSTRUCTIONS)


def check_name(name: str) -> None:
    if name not in INSTRUCTIONS:
        raise CourseError(f"There is no task of BIG-Bench Hard {name!r}. {near_matches(name, INSTRUCTIONS)}")


def asset(name: str) -> Asset:
    """A task's file as the authors publish it, or as the hub has it: a copy in parquet, pinned by a commit, not a hash.

    In a local folder it lies in `bbh`, or without that folder, so a clone of either repository serves.
    """
    copy = HubFile(REPO, f"{name}/test-00000-of-00001.parquet", REVISION, "dataset")
    files = (f"{name}.json", copy.filename)
    places = [f"{folder}{file}" for file in files for folder in (f"{KIND}/", "")]
    kept = f"{KIND}/{copy.filename}"  # in the cache
    editions = tuple(Edition(place, hub=copy if place == kept else None) for place in places)
    return Asset(f"{name} of BIG-Bench Hard", editions, "MIT", page=PUBLISHED)


def load(name: str, *, offline: bool = False) -> Task:
    """All rows of one task, in `train`, not yet split: from the local folder, the cache or the hub, in this order.

    Raises CourseError: there is no such task, no place has it (the message lists all), or its file can't be read.
    """
    check_name(name)
    path = assets.fetch(asset(name), offline=offline)
    return Task(name=name, kind=KIND, instructions=(INSTRUCTIONS[name],), train=tuple(read(path)), test=())


def read(path: str | Path) -> list[Item]:
    """The rows of a file in BIG-Bench Hard's form, in its order, without white space at either end.

    A .json file holds {"canary": …, "examples": [{"input": …, "target": …}]}, a .parquet file these two columns.
    Raises CourseError: the file is missing, cut short or of another form, or a row (named) has no input or target.
    """
    path = Path(path)
    try:
        records = read_parquet(path) if path.suffix == ".parquet" else _examples(path, parse(read_text(path), path))
        items = [_item(f"{path}, example {number}", record) for number, record in enumerate(records, start=1)]
        if not items:
            raise CourseError(f"{path} holds no example.")
    except CourseError as error:
        raise CourseError(f"{error} The published files are at {PUBLISHED}.") from None
    return items


def _examples(path: Path, content: Any) -> list[Any]:
    if not isinstance(content, dict) or not isinstance(content.get("examples"), list):
        shown = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise CourseError(f'{path} holds {shown!s:.60}, not {{"examples": [{{"input": …, "target": …}}]}}.')
    return content["examples"]


def _item(where: str, record: Any) -> Item:
    texts = [record.get(field) if isinstance(record, dict) else None for field in ("input", "target")]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise CourseError(f"{where} is {record!r:.60}: it needs the texts input and target, neither empty.")
    return Item(*(text_field(where, "text", text).strip() for text in texts))
