"""Alpaca's instruction rows: load, split, put into the prompt, and encode with the loss on the response."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from lorahub_edu.data.rows import Example, read_rows
from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.files import assets

logger = logging.getLogger(__name__)
Row = TypeVar("Row")

IGNORED = -100  # torch's cross_entropy and transformers both skip this label
SHIPPED_FILE = "alpaca_original.jsonl"
SHIPPED = "the course's own small set of rows in Alpaca's format (CC BY 4.0)"
ADVICE_52K = (
    "\n  - fetch all 52,002 rows with: lorahub-edu fetch --profile gpu24"
    "\n  - train on the Alpaca rows that are here: --data alpaca"
)
SETS = ("tiny", "alpaca", "alpaca-52k", "dolly")

PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
PROMPT_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Encoded:
    """One row as tokens; `labels[i]` belongs to `input_ids[i]` (not shifted) and is -100 where no loss is taken."""

    input_ids: list[int]
    labels: list[int]


def format_prompt(example: Example) -> str:
    """The prompt up to and including "### Response:" and a line break. Source: Taori et al. 2023, Stanford Alpaca."""
    template = PROMPT_WITH_INPUT if example.input else PROMPT_WITHOUT_INPUT
    return template.format(instruction=example.instruction, input=example.input)


def shipped_examples() -> list[Example]:
    """The original instruction rows that come with the package (CC BY 4.0), in the file's order; nothing is fetched."""
    with resources.as_file(resources.files(__package__) / SHIPPED_FILE) as path:
        return read_rows(path)


def load_rows(name_or_path: str | Path, *, offline: bool = False) -> tuple[list[Example], str]:
    """The rows of a set or a file, and one sentence that says which.

    The sets: "tiny" (the shipped rows), "alpaca" (any edition, else the shipped rows), "alpaca-52k" (all rows or none),
    "dolly". Alpaca's rows with an empty output are left out. Raises CourseError for anything else that `read_rows` does
    not take, or where the set can't be had.
    """
    check_rows(name_or_path)
    name = str(name_or_path)
    if name == "tiny":
        return shipped_examples(), SHIPPED
    is_alpaca = name in ("alpaca", "alpaca-52k")
    try:
        path = assets.fetch(name, offline=offline) if name in SETS else Path(name_or_path)
        rows = read_rows(path, on_bad_row="skip" if is_alpaca else "raise")
    except CourseError as problem:
        if name == "alpaca":
            logger.warning("Alpaca could not be loaded, so the smaller shipped set is used. %s", problem)
            return shipped_examples(), SHIPPED
        raise CourseError(f"{problem}{ADVICE_52K if is_alpaca else ''}") from None
    licence = " (CC BY-NC 4.0, non-commercial use only)" if is_alpaca else ""
    return rows, f"{len(rows):,} {'Alpaca ' if is_alpaca else ''}rows from {path.name}{licence}"


def check_rows(name_or_path: str | Path) -> None:
    """Raise CourseError where there is neither a set of that name nor a file."""
    if str(name_or_path) not in SETS and not Path(name_or_path).exists():
        hint = near_matches(str(name_or_path), SETS)
        raise CourseError(f"{str(name_or_path)!r} is neither a set of rows nor a file. {hint}")


def split(
    rows: Sequence[Row], validation_rows: int, seed: int, train_rows: int | None = None
) -> tuple[list[Row], list[Row]]:
    """Two disjoint random parts of `rows` for training and validation, the same for the same seed.

    The validation part does not depend on `train_rows`, so runs with more or fewer rows are compared on the same rows.
    Without `train_rows`, all others are for training.
    Raises CourseError: there are too few rows, or a size is not possible.
    Source: Raschka 2023 trains on 49,759 and validates on 2,000 of lit-llama's 51,759 cleaned rows; the public
        file has 52,002, so `train_rows=49_759` takes exactly as many.
    """
    if train_rows is None:
        train_rows = max(1, len(rows) - validation_rows)
    sizes = f"{train_rows:,} training and {validation_rows:,} validation rows"
    if validation_rows < 0 or train_rows < 1:
        raise CourseError(f"{sizes} is no possible split. Take at least 1 and at least 0.")
    if len(rows) < validation_rows + train_rows:
        raise CourseError(f"{len(rows):,} rows are too few for {sizes}. Ask for fewer, or load a larger set.")
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    train = order[validation_rows : validation_rows + train_rows]
    return [rows[index] for index in train], [rows[index] for index in order[:validation_rows]]


def encode(example: Example, tokenizer: Any, block_size: int, response_only: bool = True) -> Encoded:
    """One row as tokens, as `encode_rows` does it."""
    return encode_rows([example], tokenizer, block_size, response_only)[0]


def encode_rows(
    examples: Sequence[Example],
    tokenizer: Any,
    block_size: int,
    response_only: bool = True,
    too_long: Literal["raise", "drop"] = "raise",
) -> list[Encoded]:
    """Rows as tokens, in their order: prompt, response, end-of-sequence token; cut at `block_size` tokens.

    No end-of-sequence token follows a response that is cut: the model must not learn to stop in the middle of an
    answer. The loss is on response and end-of-sequence token, or on every token. A row whose prompt fills the block is
    refused or dropped (their number is logged).
    Raises CourseError: a prompt fills the block, every row was dropped, or the tokenizer has no end-of-sequence token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise CourseError("This tokenizer has no end-of-sequence token. Set tokenizer.eos_token before encoding.")
    # Prompt and response are tokenised apart: in one go, a token could straddle the boundary, and then no label
    # mask would be exact. Generation meets the same prompt tokens, since it also starts from the prompt alone.
    prompts = tokenizer([format_prompt(example) for example in examples], add_special_tokens=True)["input_ids"]
    responses = tokenizer([example.output for example in examples], add_special_tokens=False)["input_ids"]

    encoded: list[Encoded] = []
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True), start=1):
        prompt = prompt[:-1] if prompt[-1] == eos else prompt  # T5's kind of tokenizer closes every text
        if len(prompt) >= block_size:
            if too_long == "drop":
                continue
            raise CourseError(
                f"Row {number}: its prompt has {len(prompt)} tokens, which leaves no room for a response in a block of "
                f"{block_size}. Raise the block size, shorten the row, or leave such rows out with too_long='drop'."
            )
        ids = (prompt + response + [eos])[:block_size]
        labels = [IGNORED] * len(prompt) + ids[len(prompt) :] if response_only else list(ids)
        encoded.append(Encoded(ids, labels))
    if not encoded:
        raise CourseError(f"None of {len(examples)} rows fits into {block_size} tokens. Raise the block size.")
    if dropped := len(examples) - len(encoded):
        logger.warning("%d of %d rows dropped: prompt of %d tokens or more.", dropped, len(examples), block_size)
    return encoded
