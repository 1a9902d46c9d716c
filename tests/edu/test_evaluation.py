"""Scores against worked figures and their libraries; generation against transformers; memory against what was held."""

from __future__ import annotations

import math
import mmap

import pytest
import torch

from lorahub_edu import evaluation
from lorahub_edu.data import alpaca
from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import tiny


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices() -> None:
    assert evaluation.perplexity(math.log(49_152)) == pytest.approx(49_152)


def test_loss_is_the_mean_over_tokens_whatever_the_batching() -> None:
    model, tokenizer = tiny.model(attention="packed").double(), tiny.tokenizer()
    rows = alpaca.encode_rows(alpaca.shipped_examples()[:6], tokenizer, 256, too_long="drop")
    values = {b: evaluation.loss(model, rows, 2, b) for b in ("padded", "grouped", "packed")}
    total = labels = 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].log_softmax(-1)
        for position, label in enumerate(row.labels[1:]):
            if label != -100:
                total -= logits[position, label].item()
                labels += 1
    for value in values.values():
        assert value == pytest.approx(total / labels, rel=1e-9)


def test_bleu_of_papineni_s_example() -> None:
    # Papineni et al. 2002, section 2.1: "the the the the the the the" has a modified unigram precision of 2/7.
    assert evaluation.bleu(["the cat sat on the mat today"], ["the cat sat on the mat today"]) == pytest.approx(100)
    assert evaluation.bleu(["the the the the the the the"], ["the cat is on the mat"]) < 10
    # Worked by hand: 5 of 6 words, 4 of 5 pairs, 3 of 4 triples, 2 of 3 quadruples match; equal lengths, no penalty.
    found = evaluation.bleu(["a b c d e x"], ["a b c d e f"])
    assert found == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25, rel=1e-6)


def test_rouge_worked_by_hand() -> None:
    found = evaluation.rouge(["the cat was under the bed"], ["the cat was found under the bed"])
    # 6 words predicted, 7 in the reference, 6 shared: F = 2·(6/6)·(6/7)/(6/6 + 6/7); pairs: 4 shared of 5 and 6
    assert found["rouge1"] == pytest.approx(100 * 2 * 6 / 13)
    assert found["rouge2"] == pytest.approx(100 * 2 * 4 / 11)
    assert found["rougeL"] == pytest.approx(100 * 2 * 6 / 13)


@pytest.mark.parametrize("score", [evaluation.bleu, evaluation.rouge])
def test_scores_need_one_reference_each(score) -> None:
    with pytest.raises(CourseError, match="2 predictions for 1 references"):
        score(["a", "b"], ["a"])
    with pytest.raises(CourseError, match="0 predictions for 0"):
        score([], [])


def test_generation_of_a_batch_equals_each_alone() -> None:
    model, tokenizer = tiny.model(attention="packed"), tiny.tokenizer()
    prompts = ["Name a colour.", "A much longer prompt than the first one, so that padding is needed."]
    together = evaluation.generate(model, tokenizer, prompts, 8)
    for prompt, text in zip(prompts, together.texts, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == text
    assert together.new_tokens <= 16 and together.tokens_per_second > 0


def test_generation_goes_on_past_the_end_where_speed_is_measured() -> None:
    model, tokenizer = tiny.model(attention="packed"), tiny.tokenizer()
    prompt = "Name a colour."
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    first = int(model(ids).logits[0, -1].argmax())
    model.generation_config.eos_token_id = first  # so that greedy decoding ends at once
    assert model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0).shape[1] == ids.shape[1] + 1
    went_on = evaluation.generate(model, tokenizer, [prompt], 8, min_new_tokens=8)
    assert went_on.new_tokens == 8 and went_on.cpu_seconds > 0


def test_tokens_after_the_end_are_not_counted() -> None:
    tokenizer = tiny.tokenizer()

    class Scripted:
        config = tiny.config()
        device = torch.device("cpu")
        training = False

        def eval(self):
            return self

        def train(self, mode):
            return self

        def generate(self, input_ids, **_):
            end = tokenizer.eos_token_id
            return torch.cat([input_ids, torch.tensor([[7, end, end, end], [7, 8, 9, end]])], dim=1)

    out = evaluation.generate(Scripted(), tokenizer, ["a", "b"], 4)
    assert out.new_tokens == 2 + 4
    assert out.texts == [tokenizer.decode([7]), tokenizer.decode([7, 8, 9])]


def test_prompts_that_do_not_fit() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    with pytest.raises(CourseError, match="passes the model's context of 1024"):
        evaluation.generate(model, tokenizer, ["word " * 2000], 8)
    with pytest.raises(CourseError, match="no prompt"):
        evaluation.generate(model, tokenizer, [], 8)
    with pytest.raises(CourseError, match="no rows"):
        evaluation.loss(model, [])


def test_peak_memory_sees_what_was_held_and_dropped() -> None:
    size = 200_000_000
    with evaluation.peak_memory() as memory:
        held = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)  # pages of its own, not ones that malloc kept
        for _ in range(3):
            held.add_(1)
        del held
    assert 0.8 * size < memory.added < 2.5 * size


def test_mode_is_left_as_it_was() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    adapters.inject(model, LoRAConfig(rank=2, dropout=0.5), seed=0)
    model.train()
    evaluation.generate(model, tokenizer, ["a"], 2)
    assert model.training
