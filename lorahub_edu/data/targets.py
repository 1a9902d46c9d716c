"""A task to adapt to: found by name, drawn, and encoded for a model."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorahub_edu.data import bbh, fewshot, tasks
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.data.tasks import Item, Task


def find_task(name: str) -> Task:
    """A task by name, of the course's own or of BIG-Bench Hard ("bbh/<task>")."""
    if name.startswith("bbh/"):
        return bbh.load(name.removeprefix("bbh/"))
    return tasks.get(name)


def split(task: Task, draw: int, shots: int, test_items: int) -> tuple[list[Item], list[Item]]:
    """A draw of examples, and the items to test on, which hold none of the examples."""
    if task.kind == bbh.KIND:
        parts = bbh.split(task, draw, shots)
        return list(parts.train), list(parts.test[:test_items])
    return tasks.draw(task, draw, shots), list(task.test[:test_items])


def rows_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    instruction: str,
    items: Sequence[Item],
    shots: Sequence[Item] = (),
) -> list[PromptedRow]:
    """Items as encoded rows for this model, in their order; `shots` stand in every prompt, for in-context learning.

    Raises:
        CourseError: no item, an empty answer, or an item longer than the model's context.
    """
    prompts = [tasks.prompt(instruction, item.input, shots) for item in items]
    answers = [item.output for item in items]
    if model.config.is_encoder_decoder:
        return fewshot.encode(tokenizer, prompts, answers, encoder_decoder=True)
    return fewshot.encode(tokenizer, prompts, answers, context=model.config.max_position_embeddings)
