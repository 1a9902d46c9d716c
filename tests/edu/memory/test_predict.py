"""Predictions: equal to the real step's bytes, to counts by hand, and the same from a few layers as from all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_t5
from memory_runs import LORA, real_peak
from transformers import GPT2Config, LlamaConfig

from lorahub_edu.errors import CourseError
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.memory import fake
from lorahub_edu.memory.predict import predict, with_layers
from lorahub_edu.memory.setting import Setting
from lorahub_edu.memory.tracker import GRADIENTS, LOGITS, OPTIMIZER, WEIGHTS, StorageTracker
from lorahub_edu.models import tiny
from lorahub_edu.training import losses

CPU = {"micro_batch": 2, "block": 96, "dtype": "float32", "device": "cpu"}


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": LORA},
        {"lora": LORA, "checkpointing": True},
        {"lora": LORA, "accumulation": 3},
        {"lora": LORA, "dtype": "bfloat16"},
        {"method": "full", "dtype": "bfloat16", "trained_dtype": "bfloat16"},
        {"method": "full", "dtype": "bfloat16"},
        {"method": "full", "checkpointing": True, "accumulation": 2},
        {"method": "ia3"},
    ],
    ids=lambda changes: " ".join(str(getattr(value, "name", value)) for value in changes.values()),
)
def test_fake_step_equals_the_real_one(changes: dict) -> None:
    """The course's training loop, run for real under the same tracker on real tensors."""
    setting = Setting(**CPU | changes)
    # What differs are a few KB: where each row ends, and sums of the loss. A tensor more in each layer is over 1 %.
    assert predict(tiny.config(), setting).peak == pytest.approx(real_peak(setting).total, rel=0.004)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lora", {"checkpointing": True, "accumulation": 4}),
        ("lora", {"quantisation": "nf4-dq", "block": 32}),
        ("full", {"trained_dtype": "bfloat16"}),
        ("llama_adapter", {}),
        ("prefix", {}),
        ("lora", {"task": "generation"}),
        ("lora", {"loss": "library"}),
    ],
)
def test_a_few_layers_tell_what_all_layers_take(method: str, changes: dict) -> None:
    config = with_layers(tiny.config(), 9)
    setting = Setting(**{"method": method, "micro_batch": 2, "block": 64} | changes)
    assert predict(config, setting) == predict(config, setting, every_layer=True)


def test_both_stacks_of_an_encoder_decoder_grow() -> None:
    config = with_layers(tiny_t5.config(), 7)
    setting = Setting(lora=LoRAConfig(target_modules=("q", "v")), micro_batch=2, block=32)
    assert predict(config, setting) == predict(config, setting, every_layer=True)


def test_full_fine_tuning_by_hand() -> None:
    """Weights, gradients and two moments of four bytes each, and a third copy while AdamW updates all at once."""
    model = tiny.model()
    count = sum(parameter.numel() for parameter in model.parameters())
    found = predict(tiny.config(), Setting(method="full", micro_batch=1, block=8, dtype="float32"))
    assert found.stage == "optimizer" and found.trained == found.parameters == count
    assert found.parts[GRADIENTS] == pytest.approx(4 * count, rel=0.01)
    assert found.parts[WEIGHTS] == pytest.approx(4 * count, rel=0.01)
    assert found.parts[OPTIMIZER] == pytest.approx((2 + 1) * 4 * count, rel=0.01)


@pytest.mark.parametrize(("optimizer", "bytes_each"), [("sgd", 0), ("adamw-8bit", 2 * (1 + 4 / 256))])
def test_optimizers_by_hand(optimizer: str, bytes_each: float) -> None:
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, vocab_size=2048
    )
    setting = Setting(method="full", micro_batch=1, block=4, optimizer=optimizer, trained_dtype="bfloat16")
    found = predict(config, setting)
    # Norms have fewer entries than 4,096 and keep 32-bit states; the two tables are 1 KiB each.
    assert found.parts[OPTIMIZER] == pytest.approx(bytes_each * found.parameters, rel=0.02)


def test_the_librarys_loss_holds_all_logits_and_the_courses_a_chunk() -> None:
    setting = Setting(micro_batch=8, block=128, dtype="float32")
    course, library = (predict(tiny.config(), replace(setting, loss=loss)) for loss in ("course", "library"))
    all_logits = 8 * 127 * tiny.config().vocab_size * 4
    assert library.parts[LOGITS] >= 2 * all_logits
    assert course.peak < library.peak - all_logits


@pytest.mark.parametrize("block", [16, 130, 400])
@pytest.mark.parametrize("changes", [{}, {"method": "full"}, {"task": "scoring"}], ids=str)
def test_three_chunks_of_the_loss_stand_for_all(block: int, changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(micro_batch=5, block=block, **changes)
    few = predict(tiny.config(), setting)
    real, patch = losses.chunk_starts, fake.mock.patch.object
    monkeypatch.setattr(
        fake.mock.patch, "object", lambda of, name, new: patch(of, name, real if name == "chunk_starts" else new)
    )
    assert predict(tiny.config(), setting) == few


def test_a_plan_takes_as_many_operations_for_a_large_batch_as_for_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    real = StorageTracker.__torch_dispatch__

    def counting(self: StorageTracker, *arguments: object) -> object:
        counts[-1] += 1
        return real(self, *arguments)

    monkeypatch.setattr(StorageTracker, "__torch_dispatch__", counting)
    for rows, block in ((4, 128), (1024, 8192)):
        counts.append(0)
        predict(tiny.config(), Setting(micro_batch=rows, block=block))
    assert counts[0] == counts[1] > 100


def test_what_each_change_saves() -> None:
    config, setting = with_layers(tiny.config(), 8), Setting(lora=LORA, micro_batch=4, block=128)
    before = predict(config, setting)
    for change in (
        {"checkpointing": True},
        {"micro_batch": 2},
        {"block": 64},
        {"quantisation": "nf4"},
        {"labelled": 0.1},
    ):
        assert predict(config, replace(setting, **change)).peak <= before.peak, change
    smaller = predict(config, replace(setting, micro_batch=2))
    lost = {part: before.parts[part] - smaller.parts[part] for part in before.parts}
    assert lost[WEIGHTS] == lost[OPTIMIZER] == 0 < sum(lost.values())


def test_merged_inference_saves_the_adapter_and_nothing_else() -> None:
    """Claim R15, by count: A and B in float32 are all that merging takes away."""
    config = tiny.config()
    setting = Setting(method="lora", task="generation", micro_batch=1, block=64)
    apart, merged = predict(config, setting), predict(config, replace(setting, method="none"))
    adapter = 4 * 8 * (128 + 128 + 128 + 64) * 4
    assert apart.parts[WEIGHTS] - merged.parts[WEIGHTS] == adapter


def test_other_architectures() -> None:
    config = GPT2Config(n_embd=64, n_layer=7, n_head=4, vocab_size=512)
    setting = Setting(method="full", micro_batch=2, block=32)
    assert predict(config, setting) == predict(config, setting, every_layer=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"micro_batch": 0}, "micro_batch must be at least 1, but it is 0"),
        ({"block": -5}, "block must be at least 1, but it is -5"),
        ({"micro_batch": 10**6, "block": 10**6}, "1000000 x 1000000 tokens at one time.*at most 2,147,483,648"),
        ({"optimizer": "adam"}, "no optimizer 'adam'.*Did you mean 'adamw'"),
        ({"quantisation": "nf5"}, "no quantisation 'nf5'.*'nf4'"),
        ({"dtype": "bf16"}, "no dtype 'bf16'"),
        ({"labelled": 0.0}, "share above 0"),
        ({"quantisation": "nf4", "method": "full"}, "4-bit base can't be trained in full"),
    ],
)
def test_settings_that_make_no_sense(changes: dict, words: str) -> None:
    with pytest.raises(CourseError, match=words):
        Setting(**changes)


def test_methods_that_do_not_exist_or_do_not_fit() -> None:
    with pytest.raises(CourseError, match="no method 'lorra'.*'lora'"):
        Setting(method="lorra")
    with pytest.raises(CourseError, match="LoRA on a base in 4 bits"):
        Setting(method="qlora")
    with pytest.raises(CourseError, match="No linear layer fits .*'q_proj'"):
        predict(tiny_t5.config(), Setting(method="lora"))
    with pytest.raises(CourseError, match="encoder-decoder"):
        predict(tiny_t5.config(), Setting(method="prefix"))
