"""Every method through the one loss: as PEFT's own forward pass has it, packed or padded, and as text is generated."""

from __future__ import annotations

import pytest
import torch
from attached_methods import COMBINED, EVERY, batch, each, rows, stir
from transformers import DynamicCache

from lorahub_edu import scoring
from lorahub_edu.data import fewshot
from lorahub_edu.data.alpaca import IGNORED
from lorahub_edu.data.batching import make_batches
from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.methods import kinds
from lorahub_edu.methods.attach import attach
from lorahub_edu.models import tiny
from lorahub_edu.training.loop import TrainingConfig, train
from lorahub_edu.training.losses import batch_loss, last_hidden_states

IN_FRONT = each(name for name, method in kinds.METHODS.items() if method.kind == kinds.PROMPT)
IN_LAYERS = each(name for name, method in kinds.METHODS.items() if method.kind != kinds.PROMPT)


def stirred(method, attention: str = "sdpa"):
    made = attach(tiny.model(attention=attention), method)
    stir(made)
    return made


def items(count: int = 7) -> list[fewshot.PromptedRow]:
    prompts = ["Add one.\nInput: " + "7" * i + "\nOutput:" for i in range(1, count + 1)]
    return fewshot.encode(tiny.tokenizer(), prompts, [str(i) * (1 + i % 3) for i in range(count)])


@pytest.mark.parametrize("method", [*EVERY, *COMBINED])
def test_the_loss_is_the_one_of_the_wrappers_own_forward_pass(method) -> None:
    made, given = stirred(method), batch()
    with torch.no_grad():
        own = made.model(input_ids=given.input_ids, attention_mask=given.attention_mask, labels=given.labels).loss
        ours = batch_loss(made.model, given) / given.num_labels
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", IN_LAYERS)
def test_packed_and_padded_rows_have_the_same_loss(name: str) -> None:
    made = stirred(name, "packed")
    with torch.no_grad():
        padded, packed = (batch_loss(made.model, batch(4, how)) for how in ("padded", "packed"))
    torch.testing.assert_close(padded, packed, rtol=1e-5, atol=1e-4)


def test_pefts_lora_trains_as_the_courses_own_does() -> None:
    config = TrainingConfig(steps=3, learning_rate=5e-3, batch_size=4, micro_batch_size=2, batching="padded")
    made = attach(tiny.model(), "lora", rank=4, alpha=8.0)
    ours = tiny.model()
    for name, layer in adapters.inject(ours, LoRAConfig(rank=4, alpha=8.0), seed=0):
        layer.lora_A["default"].data = made.base.get_submodule(name).lora_A["default"].weight.data.clone()
    losses = [train(model, rows(), config, progress=False).losses for model in (made.model, ours)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-5, atol=1e-5)


def test_a_prompt_of_real_tokens_is_the_text_with_them_in_front() -> None:
    made, given, front = attach(tiny.model(), "prompt", length=5), batch(), torch.arange(10, 15)
    embeddings = made.base.get_input_embeddings()(front)
    made.model.prompt_encoder["default"].embedding.weight.data = embeddings.detach().clone()
    ids = torch.cat([front.expand(3, -1), given.input_ids], 1)
    mask = torch.cat([torch.ones(3, 5, dtype=torch.int64), given.attention_mask], 1)
    with torch.no_grad():
        expected = tiny.model().get_decoder()(input_ids=ids, attention_mask=mask).last_hidden_state[:, 5:]
        found = last_hidden_states(made.model, given)
    seen = given.attention_mask.bool()
    torch.testing.assert_close(found[seen], expected[seen])


def test_a_prefix_of_real_keys_and_values_is_the_text_with_their_tokens_in_front() -> None:
    made, given, front = attach(tiny.model(), "prefix", length=5), batch(), torch.arange(10, 15)
    plain = tiny.model().get_decoder()
    cache = DynamicCache()
    with torch.no_grad():
        plain(input_ids=front[None], past_key_values=cache, use_cache=True)
        states = torch.stack([s for layer in cache.layers for s in (layer.keys[0], layer.values[0])])  # (2·L, 2, 5, 32)
        made.model.prompt_encoder["default"].embedding.weight.copy_(states.permute(2, 0, 1, 3).flatten(1))
        ids = torch.cat([front.expand(3, -1), given.input_ids], 1)
        mask = torch.cat([torch.ones(3, 5, dtype=torch.int64), given.attention_mask], 1)
        expected = plain(input_ids=ids, attention_mask=mask).last_hidden_state[:, 5:]
        found = last_hidden_states(made.model, given)
    seen = given.attention_mask.bool()
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [*EVERY, *COMBINED])
def test_generated_text_is_what_the_loss_was_taken_of(method) -> None:
    made = stirred(method)
    made.model.eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    out = made.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    grown = ids
    head = made.model.get_output_embeddings()
    with torch.no_grad():
        for _ in range(out.shape[1] - 4):
            step = make_batches([_row(grown[0].tolist())], "padded", 1, 2)[0]
            grown = torch.cat([grown, head(last_hidden_states(made.model, step)[:, -1]).argmax(-1, keepdim=True)], 1)
    assert out.shape[1] > 4 and torch.equal(out, grown)


def _row(ids: list[int]):
    return type(rows()[0])(ids, [IGNORED] * len(ids))


@pytest.mark.parametrize("method", [*IN_LAYERS, ["lora", "houlsby"]])
def test_padded_scoring_is_packed_scoring(method) -> None:
    made = stirred(method)
    packed, padded = scoring.score(made.model, items()), scoring.score_padded(made.model.eval(), items(), 3)
    for name in ("losses", "answer_losses", "row_losses"):
        torch.testing.assert_close(
            torch.tensor(getattr(packed, name)), torch.tensor(getattr(padded, name)), rtol=1e-4, atol=1e-4
        )
    assert (packed.strict == padded.strict).all() and (packed.answer_only == padded.answer_only).all()


@pytest.mark.parametrize("name", IN_FRONT)
def test_scoring_with_tokens_in_front_is_the_loss_row_by_row(name: str) -> None:
    made = stirred(name)
    made.model.eval()
    scores = scoring.score(made.model, items())
    with torch.no_grad():
        for place, row in enumerate(items()):
            one = make_batches([row.encoded()], "padded", 1, 2)[0]
            assert scores.row_losses[0, place] == pytest.approx(
                batch_loss(made.model, one).item() / one.num_labels, rel=1e-4
            )


@pytest.mark.parametrize("method", [*IN_FRONT, ["lora", "prefix"]])
def test_the_head_sees_no_position_that_has_no_label(method) -> None:
    made, given, seen = stirred(method), batch(), []
    made.base.get_output_embeddings().register_forward_hook(lambda _head, inputs, _out: seen.append(inputs[0].shape[1]))
    last_hidden_states(made.model, given)
    assert seen == [0]


@pytest.mark.parametrize("name", IN_FRONT)
def test_tokens_in_front_of_a_packed_sequence_are_refused(name: str) -> None:
    made = stirred(name, "packed")
    with pytest.raises(CourseError, match="padded"):
        batch_loss(made.model, batch(4, "packed"))
    with pytest.raises(CourseError, match="rows"):
        scoring.score(made.model, fewshot.batches(made.model.config, items()))


def test_a_prefix_that_checkpointing_would_drop_is_refused() -> None:
    made = attach(tiny.model(), "prefix")
    config = TrainingConfig(steps=1, batch_size=2, batching="padded", gradient_checkpointing=True)
    with pytest.raises(CourseError, match="gradient_checkpointing"):
        train(made.model, rows(), config, progress=False)


@pytest.mark.parametrize("name", ["lora", "houlsby", "llama_adapter", "bitfit"])
def test_checkpointing_changes_no_gradient(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        made = stirred(name)
        config = TrainingConfig(
            steps=1, batch_size=2, batching="padded", gradient_checkpointing=checkpointing, learning_rate=1.0
        )
        train(made.model, rows(), config, progress=False)
        gradients.append([p.detach() for p in made.model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
