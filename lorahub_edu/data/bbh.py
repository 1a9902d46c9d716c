"""BIG-Bench Hard, the 27 tasks that LoRAHub is judged on: found or fetched, and split into five examples and a test.

Source: Suzgun et al. 2022, "Challenging BIG-Bench Tasks", arXiv 2210.09261 (MIT licence).
"""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorahub_edu.data.tasks import Item, Task, draw
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.files.assets import LOCAL_VARIABLE, files_folder, hub_address, local_folder
from lorahub_edu.files.catalogue import HubFile
from lorahub_edu.files.downloads import (
    FULL_DISK,
    SourceError,
    describe,
    disk_problem,
    why_unreachable,
    without_password,
)

KIND = "bbh"
PUBLISHED = "https://github.com/suzgunmirac/BIG-Bench-Hard (folder bbh, MIT licence)"
REPO = "lukaemon/bbh"
REVISION = "982bb89fd79532a8ac676a61fc42eb1aeec63f99"
NOT_WRITABLE = (*FULL_DISK, errno.EACCES, errno.EPERM, errno.EROFS)

# The course's own wording: the published files hold questions only, and a prompt needs to say what is wanted.
INSTRUCTIONS = {
    "boolean_expressions": "Work out whether the expression is True or False.",
    "causal_judgement": "Say Yes or No, as most people would, about what caused the event.",
    "date_understanding": "Work out the date and give the letter of the right option.",
    "disambiguation_qa": "Find out whom the pronoun means and give the letter of the right option.",
    "dyck_languages": "Write the closing brackets that are still missing.",
    "formal_fallacies": "Say whether the conclusion follows from the premises: valid or invalid.",
    "geometric_shapes": "Give the letter of the shape that the path draws.",
    "hyperbaton": "Give the letter of the sentence that has its adjectives in the usual order.",
    "logical_deduction_five_objects": "Put the five objects in order and give the letter of the true statement.",
    "logical_deduction_seven_objects": "Put the seven objects in order and give the letter of the true statement.",
    "logical_deduction_three_objects": "Put the three objects in order and give the letter of the true statement.",
    "movie_recommendation": "Give the letter of the film that is most like those in the list.",
    "multistep_arithmetic_two": "Calculate the value of the expression.",
    "navigate": "Say Yes if the steps lead back to the start, and No if they do not.",
    "object_counting": "Count the things that are asked for and give the number.",
    "penguins_in_a_table": "Read the table of penguins and give the letter of the right option.",
    "reasoning_about_colored_objects": "Look at the coloured objects and give the letter of the right option.",
    "ruin_names": "Give the letter of the change that turns the name into a joke.",
    "salient_translation_error_detection": "Give the letter of the kind of mistake that the translation holds.",
    "snarks": "Give the letter of the sarcastic sentence.",
    "sports_understanding": "Say yes if the sentence about sport is plausible, and no if it is not.",
    "temporal_sequences": "Give the letter of the hours in which it can have happened.",
    "tracking_shuffled_objects_five_objects": "Follow the five people's swaps and give the letter of the outcome.",
    "tracking_shuffled_objects_seven_objects": "Follow the seven people's swaps and give the letter of the outcome.",
    "tracking_shuffled_objects_three_objects": "Follow the three people's swaps and give the letter of the outcome.",
    "web_of_lies": "Find out who lies, and say Yes or No to the question.",
    "word_sorting": "Write the words in alphabetical order.",
}


def names() -> list[str]:
    """The names of the 27 tasks, as in the published files."""
    return list(INSTRUCTIONS)


def hub_file(name: str) -> HubFile:
    """Where the hub keeps a task: a copy of the published rows in parquet, at one fixed commit."""
    return HubFile(REPO, f"{name}/test-00000-of-00001.parquet", REVISION, "dataset")


def load(name: str, *, offline: bool = False) -> Task:
    """All rows of one task, not yet split: from the local folder, the cache or the hub, in this order.

    In the local folder a task may lie as the authors publish it (`bbh/<name>.json` or `<name>.json`) or as the hub has
    it (`bbh/<name>/test-00000-of-00001.parquet`, or without `bbh/`), so that a clone of either place serves. The
    hub's files are pinned by the commit that is asked for, not by a hash.

    Args:
        name: one of `names()`.
        offline: never open a connection.

    Returns:
        The task, of kind "bbh", with every row in `train`, in the file's order, and nothing in `test`: see `split`.

    Raises:
        CourseError: there is no such task, no place has it (all are listed, with what to do), or the file found first
            can't be read.

    Source: Suzgun et al. 2022; answers to multiple choice are letters in brackets, "(A)".
    """
    if name not in INSTRUCTIONS:
        raise CourseError(f"BIG-Bench Hard has no task {name!r}. {near_matches(name, INSTRUCTIONS)}")
    path, reasons = _find(name)
    if path is None and offline:
        reasons.append("hub: not asked, because offline was chosen")
    elif path is None:
        try:
            path = _from_hub(hub_file(name))
        except SourceError as error:
            reasons.append(f"hub {without_password(hub_address())}: {error}")
    if path is None:
        tried = "\n".join(f"  - {reason}" for reason in reasons)
        raise CourseError(
            f"Can't get {name} of BIG-Bench Hard. Places tried:\n{tried}\nWhat to do, one of:\n"
            f"  - {'run it again without offline' if offline else 'check the network and run it again'}\n"
            f"  - set {LOCAL_VARIABLE} to a folder and put {name}.json in its folder bbh: it is at {PUBLISHED}"
        )
    return Task(name=name, kind=KIND, instructions=(INSTRUCTIONS[name],), train=tuple(read(path)), test=())


def split(task: Task, seed: int, shots: int = 5) -> Task:
    """The same task with a few of its own rows drawn as examples and the rest left for the test.

    Args:
        task: from `load`.
        seed: another seed draws other examples.
        shots: how many examples.

    Returns:
        A task with the drawn examples in `train` and, in the file's order, every other row in `test`. A row that asks
        a drawn example's question again (one task holds two such pairs, with opposite answers) is in neither.

    Raises:
        CourseError: fewer than one example is asked for, no row would be left, or the task is split already.

    Source: Huang et al. 2023, "LoraHub", arXiv 2307.13269, section 4.1: five examples of each task.
    """
    if task.test:
        raise CourseError(f"{task.name} is split already, into {len(task.train)} and {len(task.test)} rows: load it.")
    pool = list({item.input: item for item in task.train}.values())  # one row a question
    if not 1 <= shots < len(pool):
        raise CourseError(
            f"{shots} examples can't be drawn from the {len(pool)} of {task.name}: take 1 or more, say 5."
        )
    drawn = draw(replace(task, train=tuple(pool)), seed, shots)
    asked = {item.input for item in drawn}
    return replace(task, train=tuple(drawn), test=tuple(item for item in task.train if item.input not in asked))


def read(path: str | Path) -> list[Item]:
    """The rows of a file in BIG-Bench Hard's form.

    Args:
        path: a .json file, {"canary": …, "examples": [{"input": …, "target": …}]}, or a .parquet file with the columns
            input and target.

    Returns:
        The rows in the file's order, without white space at either end.

    Raises:
        CourseError: the file is missing, cut short or of another form, or a row (named) has no input or target.
    """
    path = Path(path)
    try:
        records = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    except OSError as error:
        raise CourseError(f"{path} can't be read: {error.strerror or error}. Give a file you may read.") from None
    items = []
    for number, record in enumerate(records, start=1):
        fields = [record.get(field) if isinstance(record, dict) else None for field in ("input", "target")]
        if not all(isinstance(field, str) and field.strip() for field in fields):
            raise CourseError(
                f"{path}, example {number} is {record!r:.60}: it needs the texts input and target, neither empty. "
                f"Correct it, or take the published file from {PUBLISHED}."
            )
        items.append(Item(fields[0].strip(), fields[1].strip()))
    if not items:
        raise CourseError(f"{path} holds no example. Take the published file from {PUBLISHED}.")
    return items


def _json_rows(path: Path) -> Sequence[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise CourseError(f"{path} is not UTF-8 text (offset {error.start}). Save it again as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise CourseError(
            f"{path} is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno}). It may be cut short: "
            f"take the published file from {PUBLISHED}."
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("examples"), list):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise CourseError(f'{path} holds {found!s:.60}, not {{"examples": [{{"input": …, "target": …}}]}}.')
    return content["examples"]


def _parquet_rows(path: Path) -> Sequence[Any]:
    import pyarrow.parquet  # only the hub's files need it, and it is slow to import

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise CourseError(f"{path} is not a readable parquet file: {reason} Delete it and load it again.") from None


def _find(name: str) -> tuple[Path | None, list[str]]:
    """The first file of that task in the local folder or the cache, and why each place before it has none."""
    as_published = [f"{name}.json", hub_file(name).filename]
    reasons: list[str] = []
    for label, folder in ((f"local folder ({LOCAL_VARIABLE})", local_folder()), ("cache", files_folder())):
        if folder is None:
            reasons.append(f"{label}: not set")
            continue
        for path in [folder / place / file for file in as_published for place in (KIND, ".")]:
            if path.is_file():
                return path, reasons
        reasons.append(f"{label} {folder}: holds no {KIND}/{name}.json")
    return None, reasons


def _from_hub(file: HubFile) -> Path:
    """Bring a file into the cache, where a broken download leaves only a part under another name."""
    from huggingface_hub import constants, hf_hub_download

    if constants.HF_HUB_OFFLINE:
        raise SourceError("not asked, because HF_HUB_OFFLINE is set")
    # The library would wait half a minute for a hub that a firewall hides.
    if reason := why_unreachable(hub_address()):
        raise SourceError(reason)
    folder = files_folder() / KIND
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetched = hf_hub_download(
            file.repo,
            file.filename,
            repo_type=file.repo_type,
            revision=file.revision,
            endpoint=hub_address(),
            local_dir=folder,
            token=False,
        )
    except Exception as error:  # its own errors and those of whichever HTTP library it uses
        if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
            raise disk_problem(error, folder, None) from error
        raise SourceError(f"{file.repo}/{file.filename}: {describe(error)}") from None
    return Path(fetched)
