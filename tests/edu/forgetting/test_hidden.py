"""The tail over cached hidden states is the model itself."""

from __future__ import annotations

import pytest
import tiny_t5
import torch
from forgetting_rows import whole_loss

from lorahub_edu.data import sequence_tasks
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.errors import CourseError
from lorahub_edu.forgetting.hidden import PROJECTIONS, CachedRows, Tail
from lorahub_edu.models import tiny


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_have_the_loss_that_each_has_in_the_whole_model(attention: str) -> None:
    model = tiny.model(attention=attention)
    rows = sequence_tasks.encode(
        tiny.tokenizer(), sequence_tasks.split("pig_latin", train=7, settling=1, validation=1).train
    )
    tail = Tail(model, layers=2, dtype=None)
    cached = tail.cache(rows)
    with torch.no_grad():
        expected = [whole_loss(model, row) for row in rows]
        chosen = [4, 0, 5]
        together = tail.summed_loss(cached.batch(chosen))
    torch.testing.assert_close(together, sum(expected[place] for place in chosen), rtol=1e-5, atol=1e-5)
    labels = sum(len(row.answer_ids) for row in rows)
    assert tail.loss(cached.batches(positions=150)) == pytest.approx(float(sum(expected)) / labels, rel=1e-5)


def test_the_hidden_states_below_are_those_of_the_whole_model_to_the_last_bit() -> None:
    model = tiny.model()
    row = PromptedRow(list(range(5, 40)), [7, 8, 9])
    tail = Tail(model, layers=1, dtype=None)
    found: list[torch.Tensor] = []
    hook = model.model.layers[3].register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    ids = torch.tensor([row.prompt_ids + row.answer_ids[:-1]])
    mask = torch.zeros(1, 1, ids.shape[1], ids.shape[1]).masked_fill_(
        ~torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril(), torch.finfo(torch.float32).min
    )
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    hook.remove()
    cached = tail.cache([row])
    assert torch.equal(torch.cat([cached.prefix, cached.rests[0]]), found[0][0])


def test_text_has_the_loss_of_every_next_token() -> None:
    model = tiny.model()
    tail = Tail(model, layers=3, dtype=None)
    sequences = torch.randint(3, 1024, (5, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(input_ids=sequences, labels=sequences, use_cache=False).loss
    batches = tail.cache_texts(sequences, rows=2)
    assert sum(len(batch.labels) for batch in batches) == 5 * 19
    assert tail.loss(batches) == pytest.approx(expected.item(), rel=1e-5)


def test_the_gradient_reaches_the_tail_as_in_the_whole_model(tail: Tail, cached: CachedRows) -> None:
    name = tail.names[0]
    weight = tail.model.get_submodule(name).weight.requires_grad_(True)
    tail.summed_loss(cached.batch([1, 2])).backward()
    through_tail, weight.grad = weight.grad, None
    sum(whole_loss(tail.model, cached.rows[place]) for place in (1, 2)).backward()
    torch.testing.assert_close(through_tail, weight.grad, rtol=1e-4, atol=1e-6)


def test_the_tail_is_all_seven_matrices_of_the_last_layers(tail: Tail) -> None:
    assert len(tail.names) == 2 * len(PROJECTIONS)
    assert {name.split(".")[2] for name in tail.names} == {"2", "3"}


def test_weights_are_put_and_taken_back_bit_for_bit(tail: Tail, cached: CachedRows) -> None:
    before = tail.loss(cached.batches())
    name = tail.names[3]
    tail.put({name: tail.original[name] * 1.5})
    assert tail.loss(cached.batches()) != before
    assert torch.equal(tail.model.get_submodule(name).weight, tail.original[name] * 1.5)
    tail.put()
    assert tail.loss(cached.batches()) == before


def test_float32_weights_are_kept_when_the_model_computes_in_bfloat16() -> None:
    reference = tiny.model()
    tail = Tail(tiny.model(), layers=2)
    name = tail.names[0]
    assert tail.model.dtype == torch.bfloat16
    assert torch.equal(tail.original[name], reference.get_submodule(name).weight)


def test_wrong_tails_are_refused(tail: Tail) -> None:
    with pytest.raises(CourseError, match="has 4; take 1 to"):
        Tail(tiny.model(), layers=5)
    with pytest.raises(CourseError, match="not a LLaMA"):
        Tail(tiny_t5.model(), layers=1)
    with pytest.raises(CourseError, match="no rows"):
        tail.cache([])
    with pytest.raises(CourseError, match="no batch"):
        tail.loss([])
