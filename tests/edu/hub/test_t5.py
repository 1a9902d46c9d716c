"""Trials, tuning and adapting on an encoder-decoder, against transformers' own loss and text and against PEFT."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import bbh_stand_ins
import hub_modules
import numpy as np
import peft_modules
import pytest
import tiny_t5
import torch
from peft import IA3Config, PeftModel, get_peft_model
from transformers import PreTrainedModel, get_scheduler

from lorahub_edu.data import bbh, fewshot
from lorahub_edu.data.fewshot import PromptedRow
from lorahub_edu.files import assets
from lorahub_edu.hub import task_adapter
from lorahub_edu.hub.adapt import SearchConfig
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import get_profile
from lorahub_studies import adapting, baselines
from lorahub_studies.adapting import Trial

TARGET, ITEMS = "bbh/object_counting", 6


@pytest.fixture(autouse=True)
def local_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(assets.LOCAL_VARIABLE, str(bbh_stand_ins.write(tmp_path / "stick", count=20)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three modules that PEFT made on the tiny T5's query and value projections, cross-attention's too."""
    return peft_modules.save_modules(
        tiny_t5.model, tmp_path_factory.mktemp("modules"), count=3, targets=("q", "v"), std=0.3
    )


@pytest.fixture
def exact_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials in float32 instead of bfloat16, so that figures can be compared to five digits."""
    load = pretrained.load
    monkeypatch.setattr(adapting.pretrained, "load", lambda *a, **k: load(*a, **k | {"dtype": "float32"}))
    adapting.bench.cache_clear()
    yield
    adapting.bench.cache_clear()


def rows_of(draw: int = 0) -> tuple[list[PromptedRow], list[PromptedRow]]:
    """The examples and the test rows of a draw, encoded for the tiny T5."""
    task = bbh.load("object_counting")
    tokenizer = tiny_t5.tokenizer()
    return tuple(
        fewshot.encode(
            tokenizer,
            [f"{task.instructions[0]}\nInput: {item.input}\nOutput:" for item in items],
            [item.output for item in items],
            encoder_decoder=True,
        )
        for items in fewshot.split(task, draw, 5, ITEMS)
    )


def loss_of(model: PreTrainedModel, rows: list[PromptedRow]) -> float:
    return hub_modules.plain_losses(model, rows)[0]


def with_module(folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(tiny_t5.model(), str(folder)).eval()


def rows_of_trials(folders: list[Path], *methods: str) -> list[dict]:
    settings = {"profile": "tiny", "test_items": ITEMS, "base_model": tiny_t5.folder()}
    return [adapting.run(Trial(TARGET, 0, method, tuple(map(str, folders)), **settings)) for method in methods]


def test_prompts_end_with_the_end_token_for_the_encoder() -> None:
    model, tokenizer = pretrained.load("tiny", base=tiny_t5.folder())
    examples, _ = adapting.split(adapting.find_task(TARGET), 0, 5, ITEMS)
    rows = adapting.rows_for(model, tokenizer, "Count.", examples)
    assert all(row.prompt_ids[-1] == tokenizer.eos_token_id == row.answer_ids[-1] for row in rows)
    assert tokenizer.decode(rows[0].answer_ids[:-1]) == examples[0].output  # no space before it


def test_a_trials_losses_are_transformers_own(folders: list[Path], exact_trials: None) -> None:
    examples, tested = rows_of()
    zero, average, single = rows_of_trials(folders, "zero_shot", "average", "single")
    assert zero["loss"] == pytest.approx(loss_of(tiny_t5.model(), tested), abs=1e-5)

    on_examples = [loss_of(with_module(folder), examples) for folder in folders]
    best = int(np.argmin(on_examples))
    assert single["top"] == [(f"module{best}", 1.0)]
    assert single["example_loss"] == pytest.approx(min(on_examples), abs=1e-5)
    assert single["loss"] == pytest.approx(loss_of(with_module(folders[best]), tested), abs=1e-5)

    mixed = with_module(folders[0])
    states = [{n: p for n, p in with_module(f).named_parameters() if "lora_" in n} for f in folders]
    for name, parameter in mixed.named_parameters():
        if "lora_" in name:
            parameter.data = sum(state[name].data / 3 for state in states)
    assert average["loss"] == pytest.approx(loss_of(mixed, tested), abs=1e-5)
    assert len({round(row["loss"], 4) for row in (zero, average, single)}) == 3


def peft_tuned(examples: list[PromptedRow], model: torch.nn.Module, learning_rate: float) -> list[float]:
    """Forty steps of AdamW with a linear decay on transformers' own loss of the padded batch."""
    batch = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row.prompt_ids) for row in examples], batch_first=True, padding_value=0
        ),
        "labels": torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row.answer_ids) for row in examples], batch_first=True, padding_value=-100
        ),
        "attention_mask": torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(row.prompt_ids)) for row in examples], batch_first=True
        ),
    }
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, 0, 40)
    history = []
    for _ in range(40):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        history.append(loss.item())
    return history


def test_ia3_and_full_tuning_are_what_peft_and_transformers_do(folders: list[Path], exact_trials: None) -> None:
    examples, tested = rows_of()
    ia3, full = rows_of_trials(folders, "ia3", "full")
    targets = {"target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]}
    adapted = get_peft_model(tiny_t5.model(), IA3Config(**targets))
    history = peft_tuned(examples, adapted, 2e-4)
    assert ia3["example_loss"] == pytest.approx(history[-1], abs=1e-4)
    assert ia3["loss"] == pytest.approx(loss_of(adapted.eval(), tested), abs=1e-4)
    whole = tiny_t5.model()
    history = peft_tuned(examples, whole, 3e-5)
    assert full["example_loss"] == pytest.approx(history[-1], abs=1e-3)
    assert full["loss"] == pytest.approx(loss_of(whole, tested), abs=1e-3)
    assert history[-1] < history[0] - 0.05


def test_lora_tunes_q_and_v_of_all_attentions_and_tuning_leaves_no_trace() -> None:
    model, _ = pretrained.load("tiny", base=tiny_t5.folder())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    examples, tested = rows_of()
    with baselines.tuned(model, examples, baselines.TUNINGS["lora_fast"], seed=1) as history:
        trained = {name.partition(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
        assert history[-1] < history[0] - 0.5
        assert loss_of(model, tested) != pytest.approx(loss_of(tiny_t5.model(), tested), abs=1e-2)
    attentions = [f"{side}.block.{i}.layer.0.SelfAttention" for side in ("encoder", "decoder") for i in (0, 1)]
    attentions += [f"decoder.block.{i}.layer.1.EncDecAttention" for i in (0, 1)]
    assert trained == {f"{attention}.{part}" for attention in attentions for part in "qv"}
    with baselines.tuned(model, examples, baselines.TUNINGS["ia3"]):
        pass
    assert not hasattr(model, "peft_config")
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_an_adaptation_ends_as_an_adapter_that_peft_loads(folders: list[Path], tmp_path: Path) -> None:
    t5_profile = replace(get_profile("tiny"), base_model=tiny_t5.folder())
    done = task_adapter.adapt_to(
        TARGET, SearchConfig("cma", 21), modules=list(map(str, folders)), profile=t5_profile, test_items=ITEMS,
        out=tmp_path / "run", progress=False,
    )  # fmt: skip
    examples, tested = rows_of()
    loaded = with_module(done.folder / task_adapter.ADAPTER_FOLDER)
    assert done.adapted.loss == pytest.approx(loss_of(loaded, examples), abs=1e-5)
    assert done.before.losses[0] == pytest.approx(loss_of(tiny_t5.model(), tested), abs=1e-5)
    assert done.after.losses[0] == pytest.approx(loss_of(loaded, tested), abs=1e-5)
    settings = json.loads((done.folder / task_adapter.ADAPTER_FOLDER / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == tiny_t5.folder() and settings["r"] == 4


def test_a_trial_runs_its_searches_in_bfloat16_as_on_a_gpu(folders: list[Path]) -> None:
    adapting.bench.cache_clear()
    examples, _ = rows_of()
    names = ("cma_40", "auto_60", "gradient_40")
    rows = {row["method"]: row for row in rows_of_trials(folders, *names)}
    zero = loss_of(tiny_t5.model(), examples)
    assert all(row["example_loss"] < zero and row["failed"] == 0 for row in rows.values())
    assert [row["evaluations"] for row in rows.values()] == [40, 60, 40]
    adapting.bench.cache_clear()
