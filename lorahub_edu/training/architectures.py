"""Is the loss computed here the model's own? Known architectures are tested, others are measured at their first use."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from transformers import PreTrainedModel

from lorahub_edu.data.batching import PACKED_ATTENTION, make_batches
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.errors import CourseError
from lorahub_edu.training.losses import has_virtual_tokens, mean_loss

# Model types whose losses equal transformers' own: tests/edu/training/test_architectures.py proves it for each.
TESTED = frozenset({
    "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral",
    "mixtral", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "starcoder2", "t5",
})  # fmt: skip
WINDOWS = ("sliding_window", "attention_chunk_size")
PREFIX, LENGTHS, WINDOW = 5, ((2, 5), (1, 2), (3, 4)), 4  # of the probe: a prompt's beginning, its rest and an answer
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}  # relative; eager attention takes its softmax in float32
TOLERANCE_OF_HALF = 3e-2
_agree: set[tuple[str, str, str]] = set()  # what was measured and found equal: configuration, attention, way


def check_batching(model: PreTrainedModel, batching: str) -> None:
    """Raise CourseError unless the losses of such batches are the model's own."""
    if has_virtual_tokens(model):  # these run the model's own forward pass
        return

    def ours(rows: Sequence[PromptedRow]) -> float:
        return mean_loss(model, make_batches([row.encoded() for row in rows], batching, len(rows), pad_token_id=0))

    others = "padded" if batching == "packed" else "packed"
    check(model, f"{batching} batches", ours, f"choose batching={others!r}.")


def check(model: PreTrainedModel, way: str, ours: Callable[[Sequence[PromptedRow]], float], advice: str) -> None:
    """Compare a loss with the model's own forward pass on a few tokens, once for each architecture.

    A sliding window is narrowed meanwhile, so that the few tokens pass it. In half precision only differences above 3 %
    are seen. `way` says what is compared, and `ours` gives the mean loss over the labels of some rows, in nats.
    Raises CourseError: they differ, or `ours` fails; it names the model type and both losses, and gives `advice`.
    """
    config = model.config
    key = config.to_json_string(), config._attn_implementation, way
    if config.model_type in TESTED or key in _agree:
        return
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _narrow_window(model):
            rows = _rows(config.get_text_config().vocab_size)
            own = _own_loss(model, rows)
            try:
                found = ours(rows)
                what = f"a loss of {found:.4f} nats where the model's own is {own:.4f}"
            except Exception as error:  # a forward that can't take such inputs raises many kinds
                found, what = math.nan, f"{type(error).__name__}: {str(error).splitlines()[0]:.200}"
    finally:
        model.train(was_training)
    exact = model.dtype in TOLERANCE and not torch.is_autocast_enabled(model.device.type)
    tolerance = TOLERANCE[model.dtype] if exact else TOLERANCE_OF_HALF
    if not abs(found - own) <= tolerance * own:
        attention = config._attn_implementation
        other = "load it with attn_implementation='eager'; if that is refused too, " * (attention == PACKED_ATTENTION)
        raise CourseError(
            f"{type(model).__name__} ({config.model_type}, attention {attention!r}) can't be used with {way}: {what}. "
            f"What helps: {other}{advice}"
        )
    _agree.add(key)


def _rows(vocabulary: int) -> list[PromptedRow]:
    """Three short rows whose prompts begin alike; tokens from the middle, since special ones stand at the ends."""
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(vocabulary // 4, vocabulary // 2) for _ in range(count)]

    prefix = ids(PREFIX)
    return [PromptedRow(prefix + ids(rest), ids(answer)) for rest, answer in LENGTHS]


def _own_loss(model: PreTrainedModel, rows: Sequence[PromptedRow]) -> float:
    """Mean loss over the answers' tokens by the model's own forward pass in eager attention, a row at a time."""
    attention = model.config._attn_implementation
    model.config._attn_implementation = "eager" if attention == PACKED_ATTENTION else attention
    losses = []
    try:
        for row in rows:
            prompt, answer = (torch.tensor([ids], device=model.device) for ids in (row.prompt_ids, row.answer_ids))
            if model.config.is_encoder_decoder:
                logits = model(input_ids=prompt, labels=answer, use_cache=False).logits[0]
            else:
                ids = torch.cat([prompt, answer], 1)
                logits = model(input_ids=ids, use_cache=False).logits[0, prompt.shape[1] - 1 : -1]
            losses.append(F.cross_entropy(logits.double(), answer[0], reduction="none"))
    finally:
        model.config._attn_implementation = attention
    return torch.cat(losses).mean().item()


@contextmanager
def _narrow_window(model: PreTrainedModel) -> Iterator[None]:
    """A sliding window of a few tokens, in the configuration and in every layer, while the block lasts."""
    things = [model.config.get_text_config(), *model.modules()]
    held = [(vars(thing), name) for thing in things for name in WINDOWS if isinstance(vars(thing).get(name), int)]
    before = [values[name] for values, name in held]
    try:
        for values, name in held:
            values[name] = min(WINDOW, values[name])
        yield
    finally:
        for (values, name), window in zip(held, before, strict=True):
            values[name] = window
