"""Every batching must give what the rows give one by one; the truth is transformers' LLaMA without any batch."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from hypothesis import given, settings
from hypothesis import strategies as st

from lorahub_edu.data.alpaca import IGNORED, Encoded, encode_rows, shipped_examples
from lorahub_edu.data.batching import Batch, additive_mask, make_batches, step_rows, visible_positions
from lorahub_edu.errors import CourseError

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
LENGTHS = (23, 5, 14, 14, 2, 31, 9, 14)


def random_rows(lengths=LENGTHS, vocab_size=97, seed=0, response_only=True) -> list[Encoded]:
    draw = random.Random(seed)
    rows = []
    for length in lengths:
        ids = [draw.randrange(2, vocab_size) for _ in range(length)]
        prompt = draw.randrange(1, length) if response_only else 0
        rows.append(Encoded(ids, [IGNORED] * prompt + ids[prompt:]))
    return rows


def one_by_one_loss(model, rows) -> torch.Tensor:
    """Summed next-token loss, each row alone, without mask, positions or padding."""
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]  # (T - 1, vocabulary)
        total = total + F.cross_entropy(logits, torch.tensor(row.labels[1:]), ignore_index=IGNORED, reduction="sum")
    return total


def batched_loss(model, batches: list[Batch], attention: str) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        logits = model(**batch.model_inputs(model.config, dtype)).logits[:, :-1]  # (B, T - 1, vocabulary)
        total = total + F.cross_entropy(
            logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
    return total


def gradients(model, loss) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("response_only", [True, False])
@pytest.mark.parametrize(
    ("strategy", "attention"),
    [(s, a) for s in ("padded", "grouped", "packed") for a in ("eager", "sdpa", "packed")],
)
def test_loss_and_gradients_equal_one_row_at_a_time(make_model, strategy, attention, response_only, dtype):
    rows = random_rows(response_only=response_only)
    # transformers' eager attention takes its softmax in float32
    tolerance = 1e-5 if attention == "eager" else TOLERANCE[dtype]
    truth_model, model = make_model("sdpa", dtype), make_model(attention, dtype)
    truth = one_by_one_loss(truth_model, rows)
    loss = batched_loss(model, make_batches(rows, strategy, 3, pad_token_id=0), attention)
    assert abs(loss - truth).item() <= tolerance * truth.item()
    expected, found = gradients(truth_model, truth), gradients(model, loss)
    assert (found - expected).norm() <= tolerance * expected.norm()


def test_the_slow_loss_is_transformers_own(make_model):
    model, (row,) = make_model("sdpa"), random_rows([30])
    labels = torch.tensor([row.labels])
    mean = model(input_ids=torch.tensor([row.input_ids]), labels=labels).loss
    count = (labels[:, 1:] != IGNORED).sum()
    torch.testing.assert_close((mean * count).double(), one_by_one_loss(model, [row]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
def test_hidden_states_of_a_packed_row_are_those_of_the_row_alone(make_model, attention):
    rows = random_rows()
    model = make_model(attention, torch.float64)
    (batch,) = make_batches(rows, "packed", len(rows), pad_token_id=0)
    hidden = model.model(**batch.model_inputs(model.config, torch.float64)).last_hidden_state[0]
    by_tokens = {tuple(row.input_ids): row for row in rows}
    for ids, states in zip(
        batch.input_ids[0].split(batch.segment_lengths), hidden.split(batch.segment_lengths), strict=True
    ):
        row = by_tokens.pop(tuple(ids.tolist()))
        alone = model.model(input_ids=torch.tensor([row.input_ids])).last_hidden_state[0]
        # transformers' eager attention takes its softmax in float32
        torch.testing.assert_close(states, alone, rtol=0, atol=1e-5 if attention == "eager" else 1e-12)
    assert not by_tokens


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
def test_a_changed_token_changes_no_other_row(make_model, attention):
    model = make_model(attention)
    (batch,) = make_batches(random_rows(), "packed", len(LENGTHS), pad_token_id=0)
    first, second = batch.segment_lengths[:2]
    before = model.model(**batch.model_inputs(model.config)).last_hidden_state[0]
    batch.input_ids[0, first] = (batch.input_ids[0, first] + 1) % 97  # the first token of the second row
    after = model.model(**batch.model_inputs(model.config)).last_hidden_state[0]
    changed = (before != after).any(dim=-1)
    assert changed[first : first + second].all()
    assert not changed[:first].any() and not changed[first + second :].any()


def test_rows_would_leak_without_the_separation(make_model):
    """The control: the same packed tokens under plain causal attention do not give the rows' loss."""
    rows = random_rows()
    model = make_model("sdpa")
    (batch,) = make_batches(rows, "packed", len(rows), pad_token_id=0)
    plain = model(input_ids=batch.input_ids).logits[0, :-1]
    loss = F.cross_entropy(plain, batch.labels[0, 1:], ignore_index=IGNORED, reduction="sum")
    assert abs(loss - one_by_one_loss(model, rows)).item() > 1.0


def test_packed_inputs_fail_loudly_under_another_attention(make_model):
    (batch,) = make_batches(random_rows(), "packed", len(LENGTHS), pad_token_id=0)
    with pytest.raises(RuntimeError):
        make_model("sdpa")(**batch.model_inputs(make_model("packed").config))
    config = make_model("sdpa").config
    config._attn_implementation = "flex_attention"
    with pytest.raises(CourseError, match="'flex_attention' cannot keep"):
        batch.model_inputs(config)


def test_packed_attention_makes_no_square_mask(make_model, monkeypatch):
    from lorahub_edu.data import batching

    model = make_model("packed")
    seen = []
    original = batching.sdpa_attention_forward
    monkeypatch.setattr(batching, "sdpa_attention_forward", lambda *a, **k: seen.append(1) or original(*a, **k))
    (batch,) = make_batches(random_rows(), "packed", len(LENGTHS), pad_token_id=0)
    inputs = batch.model_inputs(model.config)
    assert inputs["attention_mask"].numel() == 0
    model(**inputs)
    assert not seen, "a packed batch must not take the masked path"
    model(input_ids=batch.input_ids)
    assert seen, "without row ends the ordinary path must be taken"


def test_gradient_checkpointing_keeps_the_rows_apart(make_model):
    rows = random_rows()
    plain, checkpointed = make_model("packed"), make_model("packed")
    checkpointed.train()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batches = make_batches(rows, "packed", 3, pad_token_id=0)
    expected = gradients(plain, batched_loss(plain, batches, "packed"))
    found = gradients(checkpointed, batched_loss(checkpointed, batches, "packed"))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sample", [False, True])
def test_generation_with_left_padding_equals_sdpa(make_model, sample):
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 97, (3, 12), generator=draw)
    mask = torch.ones_like(ids)
    ids[0, :7], mask[0, :7] = 0, 0
    ids[2, :3], mask[2, :3] = 0, 0
    texts = []
    for attention in ("sdpa", "packed"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            texts.append(
                make_model(attention).generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=20, min_new_tokens=20, do_sample=sample
                )
            )
    assert texts[0].shape == (3, 32)
    assert torch.equal(*texts)


def test_switching_a_loaded_model_to_packed(make_model):
    rows = random_rows()
    model = make_model("sdpa")
    truth = one_by_one_loss(model, rows)
    model.set_attn_implementation("packed")
    torch.testing.assert_close(batched_loss(model, make_batches(rows, "packed", 4, 0), "packed"), truth)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=24),
    micro_batch_size=st.integers(1, 8),
    strategy=st.sampled_from(["padded", "grouped", "packed"]),
)
@settings(max_examples=150, deadline=None)
def test_every_row_is_used_once(lengths, micro_batch_size, strategy):
    rows = [Encoded([index + 1] * length, [index + 1] * length) for index, length in enumerate(lengths)]
    batches = make_batches(rows, strategy, micro_batch_size, pad_token_id=0)
    counts = torch.zeros(len(rows) + 1, dtype=torch.long)
    for batch in batches:
        counts += torch.bincount(batch.input_ids.flatten(), minlength=len(rows) + 1)
        assert batch.input_ids.numel() <= micro_batch_size * max(lengths)
        assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape
    assert counts[1:].tolist() == lengths
    assert sum(batch.num_tokens for batch in batches) == sum(lengths)
    assert sum(len(batch.segment_lengths or batch.input_ids) for batch in batches) == len(rows)
    assert sum(batch.num_labels for batch in batches) == sum(length - 1 for length in lengths)
    if strategy == "packed":
        assert counts[0] == 0 and all(batch.num_tokens == batch.input_ids.numel() for batch in batches)
        # Best fit leaves no two sequences that would fit into one, so together they are more than half full.
        assert len(batches) == 1 or len(batches) * micro_batch_size * max(lengths) < 2 * sum(lengths)
    else:
        assert len(batches) == -(-len(rows) // micro_batch_size)


def test_packed_batch_by_hand(make_model):
    rows = [Encoded([5, 6, 7], [IGNORED, 6, 7]), Encoded([8, 9, 10, 11], [8, 9, 10, 11])]
    (batch,) = make_batches(rows, "packed", 2, pad_token_id=0)
    assert batch.input_ids.tolist() == [[8, 9, 10, 11, 5, 6, 7]]
    assert batch.labels.tolist() == [[IGNORED, 9, 10, 11, IGNORED, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.segment_lengths == [4, 3] and batch.attention_mask is None
    assert (batch.num_tokens, batch.num_labels) == (7, 5)
    assert batch.model_inputs(make_model("packed").config)["cu_seq_lens_q"].tolist() == [0, 4, 7]
    assert batch.to("meta").input_ids.device.type == "meta"


def test_padded_batch_by_hand():
    rows = [Encoded([5, 6, 7], [IGNORED, 6, 7]), Encoded([8], [8])]
    (batch,) = make_batches(rows, "padded", 2, pad_token_id=1)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch.labels.tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2]] * 2
    assert (batch.num_tokens, batch.num_labels) == (4, 2)
    assert batch.to("meta").attention_mask.device.type == "meta"


def test_grouping_leaves_less_to_fill(tokenizer):
    rows = encode_rows(shipped_examples()[:48], tokenizer, 256, too_long="drop")

    def positions(strategy):
        return sum(batch.input_ids.numel() for batch in make_batches(rows, strategy, 4, pad_token_id=0))

    assert positions("packed") < positions("grouped") < positions("padded")


def test_packing_evens_its_sequences_out():
    sizes = [batch.num_tokens for batch in make_batches(random_rows([100] * 16), "packed", 10, pad_token_id=0)]
    assert sizes == [800, 800]


def test_block_diagonal_mask_against_a_slow_loop():
    lengths = [3, 1, 4]
    mask = additive_mask(visible_positions(lengths), torch.float64)
    row = [index for index, length in enumerate(lengths) for _ in range(length)]
    assert mask.shape == (1, 1, 8, 8) and mask.dtype == torch.float64
    for query in range(8):
        for key in range(8):
            allowed = row[query] == row[key] and key <= query
            assert mask[0, 0, query, key] == (0.0 if allowed else torch.finfo(torch.float64).min)


@given(num_rows=st.integers(1, 40), batch_size=st.integers(1, 17), seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_step_rows_cover_each_epoch_exactly(num_rows, batch_size, seed):
    steps = -(-3 * num_rows // batch_size)
    drawn = [step_rows(num_rows, batch_size, step, seed) for step in range(steps)]
    assert all(len(rows) == batch_size for rows in drawn)
    flat = [index for rows in drawn for index in rows]
    for epoch in range(3):
        assert sorted(flat[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))
    # A run that is resumed at any step, in any order, sees the same rows.
    assert [step_rows(num_rows, batch_size, step, seed) for step in reversed(range(steps))] == drawn[::-1]


def test_step_rows_depend_on_seed_and_epoch():
    first, second = step_rows(50, 50, 0, seed=1), step_rows(50, 50, 1, seed=1)
    assert first != second and first != step_rows(50, 50, 0, seed=2)
    assert second != step_rows(50, 50, 0, seed=2), "seed + epoch must not be what is mixed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "paked"}, "'paked'.*Did you mean 'packed'"),
        ({"rows": []}, "0 rows"),
        ({"micro_batch_size": 0}, "micro-batches of 0"),
    ],
)
def test_bad_batching_arguments(arguments, message):
    good = {"rows": random_rows(), "strategy": "padded", "micro_batch_size": 4, "pad_token_id": 0}
    with pytest.raises(CourseError, match=message):
        make_batches(**(good | arguments))
