"""How good is a model: loss and perplexity, BLEU and ROUGE, generated text with its speed and memory."""

from __future__ import annotations

import gc
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lorahub_edu.data.alpaca import Encoded
from lorahub_edu.data.batching import make_batches
from lorahub_edu.errors import CourseError
from lorahub_edu.training.losses import check_batching, mean_loss

SAMPLING_SECONDS = 0.005


def loss(model: PreTrainedModel, rows: Sequence[Encoded], micro_batch_size: int = 4, batching: str = "packed") -> float:
    """Mean next-token loss over every labelled token of some rows, in nats a token.

    `batching`, as in `make_batches`, changes the speed, not the value.
    Raises CourseError: there are no rows, or the model's own loss is another one (`losses.check_loss`).
    """
    if not rows:
        raise CourseError("There are no rows to evaluate on.")
    check_batching(model, batching)
    pad = model.config.pad_token_id if isinstance(model.config.pad_token_id, int) else 0
    return mean_loss(model, make_batches(rows, batching, micro_batch_size, pad))


def perplexity(mean_loss_in_nats: float) -> float:
    """exp(loss): among how many equally likely tokens the model hesitates on average. Claim R13."""
    return math.exp(mean_loss_in_nats)


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU, 0 to 100, by sacrebleu: shared runs of one to four words, with a penalty for short texts.

    Source: Papineni et al. 2002; Post 2018 (sacrebleu); claim R13.
    """
    _same_length(predictions, references)
    return sacrebleu.corpus_bleu(list(predictions), [list(references)]).score


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean ROUGE-1, ROUGE-2 and ROUGE-L F-measures, 0 to 100, by rouge-score: shared words, pairs, longest sequence.

    Source: Lin 2004; claim R13.
    """
    _same_length(predictions, references)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
    return {kind: 100 * sum(score[kind].fmeasure for score in scores) / len(scores) for kind in scores[0]}


def _same_length(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references) or not references:
        raise CourseError(
            f"There are {len(predictions)} predictions for {len(references)} references: give one reference each, and "
            f"at least one."
        )


@dataclass
class PeakMemory:
    """Memory while a block ran, in bytes: before it, and at its peak."""

    before: int = 0
    peak: int = 0

    @property
    def added(self) -> int:
        return self.peak - self.before


@contextmanager
def peak_memory(device: str | torch.device = "cpu") -> Iterator[PeakMemory]:
    """Measure the peak memory of a block; the result is complete once the block has ended.

    On a GPU it is torch's count of allocated bytes; on a CPU the process's resident memory, looked at every 5 ms, so
    a shorter spike can be missed.
    """
    measured = PeakMemory()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        measured.before = torch.cuda.memory_allocated(device)
        try:
            yield measured
        finally:
            torch.cuda.synchronize(device)
            measured.peak = torch.cuda.max_memory_allocated(device)
        return
    gc.collect()
    process = psutil.Process()
    measured.before = measured.peak = process.memory_info().rss
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLING_SECONDS):
            measured.peak = max(measured.peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield measured
    finally:
        measured.peak = max(measured.peak, process.memory_info().rss)
        ended.set()
        watcher.join()


@dataclass(frozen=True)
class Generation:
    """Generated texts and what they cost: seconds and processor seconds, new tokens, all in all, and peak bytes."""

    texts: list[str]
    seconds: float
    cpu_seconds: float
    new_tokens: int
    memory: PeakMemory = field(repr=False)

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    max_new_tokens: int = 50,
    min_new_tokens: int = 0,
) -> Generation:
    """Continue prompts greedily in one batch, padded on the left: the new texts without special tokens, and the cost.

    A row that ends before `max_new_tokens` counts only its own tokens. No row ends before `min_new_tokens`, so that
    speeds are compared over the same number of tokens. The model is left in the mode it was in.
    Raises CourseError: no prompt, or one that leaves no room in the model's context.
    """
    if not prompts:
        raise CourseError("There is no prompt to continue.")
    encoded = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(model.device)
    length = encoded["input_ids"].shape[1]
    context = getattr(model.config, "max_position_embeddings", math.inf)  # ALiBi has no last position
    if length + max_new_tokens > context:
        raise CourseError(
            f"The longest prompt has {length} tokens; with {max_new_tokens} new ones it passes the model's context of "
            f"{context}. Shorten the prompt or max_new_tokens."
        )
    was_training = model.training
    model.eval()
    with torch.no_grad(), peak_memory(model.device) as memory:
        started, cpu_started = time.perf_counter(), time.process_time()
        out = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    model.train(was_training)
    new = out[:, length:]  # (rows, <= max_new_tokens)
    is_end = new == tokenizer.eos_token_id
    new_tokens = int((is_end.cumsum(dim=1) - is_end.long() == 0).sum())  # up to a row's first end token
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    return Generation(texts, seconds, cpu_seconds, new_tokens, memory)
