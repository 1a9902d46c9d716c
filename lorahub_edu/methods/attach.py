"""One call for every method of fine-tuning: `attach` puts it on a model, `detach` restores the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from lorahub_edu.methods.attached import Attached, attach_parts, detach
from lorahub_edu.methods.budget import fit_budget
from lorahub_edu.methods.kinds import parts_of

__all__ = ["Attached", "attach", "attached", "detach"]


def attach(
    model: PreTrainedModel,
    method: str | Sequence[str] | Mapping[str, Mapping],
    *,
    budget: float | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **settings: object,
) -> Attached:
    """Attach a method of fine-tuning to a model, in place; whatever is not the method's own is frozen.

    Args:
        model: a model of transformers; it may be on the meta device, except for "qlora".
        method: a key of `kinds.METHODS`; several are combined (["lora", "prefix"]), with settings of their own in a
            mapping: {"lora": {"rank": 4}, "prefix": {"length": 10}}.
        budget: the wished number of trainable parameters, or their share of the model's (below 1); it fixes each
            method's size (rank, length, bottleneck). A combination shares it evenly.
        seed: fixes what is drawn at random; the caller's generators stay as they were.
        dtype: of the added parameters. None is float32 where PEFT computes so on a half-precision base, else
            (LLaMA-Adapter, norm tuning) the base's. Under autocast float32 always works. Full fine-tuning keeps the
            base's.
        settings: of a single method, as in its `kinds.Method.settings`.

    Returns:
        What to train, and what `detach` and `files.save` take.

    Raises:
        CourseError: unknown method or setting, a size below 1, methods that can't stand together, a method that does
            not fit the model (the model is as before), or a budget that no size meets.
    """
    parts = parts_of(method, settings)
    if budget is not None:
        parts = fit_budget(model, parts, budget)
    return attach_parts(model, parts, seed, dtype)


@contextmanager
def attached(
    model: PreTrainedModel, method: str | Sequence[str] | Mapping[str, Mapping], **options: object
) -> Iterator[Attached]:
    """A model with a method while the block runs, with `attach`'s options; afterwards the model is as it was."""
    result = attach(model, method, **options)
    try:
        yield result
    finally:
        detach(result)
