"""The loss of a batch, computed only where there is a label and never for the whole vocabulary at once.

Is it the model's own loss? Known architectures are tested, others are measured at their first use (`check_loss`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from lorahub_edu.data.alpaca import IGNORED
from lorahub_edu.data.batching import PACKED_ATTENTION, Batch, make_batches
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.errors import CourseError

# Rows of logits that exist at one time: 128 x 49,152 float32 values are 25 MB, where a whole batch would need 400.
CHUNK = 128

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


def chunk_starts(rows: int) -> range:
    return range(0, rows, CHUNK)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(hidden @ weight.T)[label]; the gradient is computed chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:  # noqa: ANN001
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        for start in chunk_starts(hidden.shape[0]):
            h, y = hidden[start : start + CHUNK], labels[start : start + CHUNK, None]
            logits = (h @ weight.t()).to(total.dtype)  # (chunk, vocabulary)
            log_normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)  # (chunk, 1)
            total += (log_normaliser - logits.gather(1, y)).sum()
            if wants_hidden or wants_weight:
                # d loss / d logits = softmax - one-hot, written over the logits to save memory
                slope = logits.sub_(log_normaliser).exp_()
                slope.scatter_add_(1, y, slope.new_full(y.shape, -1.0))
                slope = slope.to(h.dtype)
                if wants_hidden:
                    torch.mm(slope, weight, out=grad_hidden[start : start + CHUNK])
                if wants_weight:
                    grad_weight.addmm_(slope.t(), h)
        ctx.gradients = grad_hidden, grad_weight
        return total

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # noqa: ANN001
        return *(None if g is None else g * upstream.to(g.dtype) for g in ctx.gradients), None


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy in nats of a linear output head, in at least float32, without ever holding all logits.

    `hidden` is (N, d), `weight` (vocabulary, d), and `labels` (N,) int64 without ignored ones. torch 2.13 has the same
    idea as `F.linear_cross_entropy(..., options=...)`. On a CPU it was several times slower than the plain product and,
    in bfloat16, off in the second digit of the loss.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return _ChunkedCrossEntropy.apply(hidden, weight, labels)


def has_virtual_tokens(model: nn.Module) -> bool:
    """Whether a wrapper of PEFT puts trained tokens before every row, as in prompt, prefix and P-tuning."""
    config = getattr(model, "active_peft_config", None)
    return bool(getattr(config, "is_prompt_learning", False))


def last_hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """What the output head reads at every token of a batch, (B, T, d), without the outputs of PEFT's virtual tokens.

    Raises CourseError: the model has virtual tokens, and the batch is packed or gradient checkpointing drops them.
    """
    if not has_virtual_tokens(model):
        inputs = batch.model_inputs(model.config, model.dtype)
        return model.get_decoder()(**inputs).last_hidden_state  # (B, T, d)
    if batch.segment_lengths is not None:
        raise CourseError(
            "Trained tokens stand before every row, and a packed sequence has one beginning: choose batching='padded'."
        )
    decoder = model.get_decoder()
    if model.training and any(getattr(m, "gradient_checkpointing", False) for m in decoder.modules()):
        raise CourseError(
            "transformers drops a trained prefix under gradient checkpointing: switch gradient_checkpointing off."
        )
    states: list[Tensor] = []
    hook = decoder.register_forward_hook(lambda _module, _inputs, out: states.append(out.last_hidden_state))
    # No position's logits: the loss takes its own. Even one a row would copy the head for every row: the slice is not
    # contiguous, so torch multiplies it in a batch.
    nowhere = batch.input_ids.new_empty(0)
    try:
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, logits_to_keep=nowhere)
    finally:
        hook.remove()
    return states[0][:, -batch.input_ids.shape[1] :]  # (B, virtual + T, d) or (B, T, d) -> (B, T, d)


class _DecoderOutput(BaseModelOutputWithPast):
    def __getattr__(self, _name: str) -> None:
        """Nothing but hidden states: routers, caches and attentions of some decoder are not there."""


@contextmanager
def _replaced(module: nn.Module, forward: Callable) -> Iterator[None]:
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def output_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The model's own logits (N, vocabulary) from last hidden states (N, d), with what is before and after its head."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's wrapper adds tokens
    inputs = {"encoder_outputs": (hidden[None],)} if whole.config.is_encoder_decoder else {}
    with _replaced(whole.get_decoder(), lambda *_args, **_kwargs: _DecoderOutput(hidden[None])):
        return whole(**inputs, use_cache=False).logits[0]


def _head_is_a_product(model: PreTrainedModel, head: nn.Module, hidden: Tensor) -> bool:
    """Whether the model's logits are its head's weight times the hidden states, and nothing else."""
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    received, product = [], hidden.new_empty(1, 1, 1)

    def forward(states: Tensor) -> Tensor:
        received.append(states)
        return product

    with _replaced(head, forward):
        logits = output_logits(model, hidden)
    pairs = ((received[0], hidden), (logits, product))  # the same memory: nothing was computed before or after
    return all(a.untyped_storage()._cdata == b.untyped_storage()._cdata for a, b in pairs)


def batch_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Next-token loss summed over a batch's `num_labels` positions, in nats: divide by the labels of the whole step."""
    hidden = last_hidden_states(model, batch)  # (B, T, d)
    targets = batch.labels[:, 1:]  # position t predicts token t + 1
    return labelled_loss(model, hidden, targets, (targets != IGNORED).nonzero(as_tuple=True))


def labelled_loss(model: PreTrainedModel, hidden: Tensor, targets: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
    """Loss summed over N chosen positions, in nats; N is known here without looking at any number.

    `hidden` is (B, T, d), `targets` (B, T - 1) int64 what each position but the last must predict, and `where` the rows
    and columns of `targets` at which the loss is taken, (N,) int64 each.
    """
    hidden, targets = hidden[:, :-1][where], targets[where]  # (N, d), (N,)
    head = model.get_output_embeddings()
    if _head_is_a_product(model, head, hidden.detach()):
        return chunked_cross_entropy(hidden, head.weight, targets)

    def chunk_loss(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = output_logits(model, hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets, reduction="sum")

    # Each chunk's logits are computed again in the backward pass, so that only one chunk's exist at a time.
    chunks = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    options = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.stack([checkpoint(chunk_loss, *chunk, **options) for chunk in chunks]).sum()


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """Mean next-token loss over every labelled position of some batches, in nats; the model is left in its mode."""
    was_training = model.training
    model.eval()
    total, labels = 0.0, 0
    device = next(model.parameters()).device
    for batch in batches:
        total += batch_loss(model, batch.to(device)).item()
        labels += batch.num_labels
    model.train(was_training)
    return total / labels if labels else float("nan")


def check_batching(model: PreTrainedModel, batching: str) -> None:
    """Raise CourseError unless the losses of such batches are the model's own."""
    if has_virtual_tokens(model):  # these run the model's own forward pass
        return

    def ours(rows: Sequence[PromptedRow]) -> float:
        return mean_loss(model, make_batches([row.encoded() for row in rows], batching, len(rows), pad_token_id=0))

    others = "padded" if batching == "packed" else "packed"
    check_loss(model, f"{batching} batches", ours, f"choose batching={others!r}.")


def check_loss(model: PreTrainedModel, way: str, ours: Callable[[Sequence[PromptedRow]], float], advice: str) -> None:
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
