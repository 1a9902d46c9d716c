"""Training speed and memory on real Alpaca rows: ours against PEFT with transformers' Trainer.

Same model, rows, order, LoRA settings, dtype and optimizer. The peer pads each micro-batch to its longest row
("trainer"), or every row to the block size as the sources' scripts do ("trainer_block").

    python benchmarks/train_step.py [--repeats 3] [--steps 2] [--batch-size 16] [--block-size 512] [--save | --quick]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time

import common
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from lorahub_edu.data import alpaca
from lorahub_edu.data.batching import step_rows
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import pretrained
from lorahub_edu.training.loop import TrainingConfig, train

VARIANTS = ("ours", "trainer", "trainer_block")
RANK, ALPHA, RATE, MICRO = 8, 16.0, 3e-4, 4
QUICK = {"repeats": 1, "steps": 1, "batch_size": 8, "block_size": 256}
TOLERANCE = 1e-4  # on the mean loss of a step, in nats, float32


def encoded_rows(tokenizer, block_size: int) -> list[alpaca.Encoded]:
    rows, _ = alpaca.load_rows("alpaca", offline=True)
    training, _ = alpaca.split(rows, 32, seed=0)
    return alpaca.encode_rows(training, tokenizer, block_size, too_long="drop")


def start_adapter(model) -> None:
    """Both sides start from the same A (drawn from one seed) and B = 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.uniform_(-0.04, 0.04, generator=generator)


def measure_ours(rows: list, options: argparse.Namespace) -> dict:
    model, _ = pretrained.load("cpu", attention="packed", offline=True)
    adapters.inject(model, LoRAConfig(rank=RANK, alpha=ALPHA))
    start_adapter(model)
    config = TrainingConfig(
        steps=options.steps + 1, learning_rate=RATE, batch_size=options.batch_size, micro_batch_size=MICRO
    )
    history = train(model, rows, config, progress=False).history
    return {"seconds": [r["seconds"] for r in history], "losses": [r["loss"] for r in history]}


class StepTimer(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_args, **_kwargs) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *_args, **_kwargs) -> None:
        self.seconds.append(time.perf_counter() - self._started)


class InOrder(Trainer):
    def _get_train_sampler(self, *_args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def measure_trainer(rows: list, options: argparse.Namespace, pad_to: int | None) -> dict:
    model, tokenizer = pretrained.load("cpu", attention="sdpa", offline=True)
    model = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    start_adapter(model)

    def collate(features: list) -> dict[str, torch.Tensor]:
        width = pad_to or max(len(row.input_ids) for row in features)
        gaps = [width - len(row.input_ids) for row in features]
        pairs = list(zip(features, gaps, strict=True))
        return {
            "input_ids": torch.tensor([row.input_ids + [tokenizer.pad_token_id] * gap for row, gap in pairs]),
            "labels": torch.tensor([row.labels + [-100] * gap for row, gap in pairs]),
            "attention_mask": torch.tensor([[1] * len(row.input_ids) + [0] * gap for row, gap in pairs]),
        }

    steps = options.steps + 1
    ordered = [rows[i] for step in range(steps) for i in step_rows(len(rows), options.batch_size, step, 0)]
    timer = StepTimer()
    arguments = TrainingArguments(
        output_dir="/tmp/unused",
        max_steps=steps,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=options.batch_size // MICRO,
        learning_rate=RATE,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    trainer = InOrder(model, arguments, train_dataset=ordered, data_collator=collate, callbacks=[timer])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": timer.seconds, "losses": losses}


def measure(variant: str, options: argparse.Namespace) -> dict:
    """Useful tokens a second (median of the steps after the first) and peak resident memory of this process."""
    torch.set_num_threads(2)
    _, tokenizer = pretrained.load("cpu", offline=True)
    rows = encoded_rows(tokenizer, options.block_size)
    if variant == "ours":
        found = measure_ours(rows, options)
    else:
        found = measure_trainer(rows, options, options.block_size if variant == "trainer_block" else None)
    tokens = [
        sum(len(rows[i].input_ids) for i in step_rows(len(rows), options.batch_size, step, 0))
        for step in range(options.steps + 1)
    ]
    rates = [t / s for t, s in zip(tokens[1:], found["seconds"][1:], strict=True)]
    return {
        "tokens_per_second": round(statistics.median(rates), 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "losses": [round(loss, 6) for loss in found["losses"]],
    }


def main() -> None:
    options = common.arguments(__doc__, QUICK, repeats=3, steps=2, batch_size=16, block_size=512)
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    script = common.script_path(__file__)
    runs = common.interleaved(VARIANTS, options.repeats, lambda variant: common.isolated(script, variant, options))
    speed = {variant: common.median_of(runs[variant], "tokens_per_second") for variant in VARIANTS}
    memory = {variant: common.median_of(runs[variant], "peak_gb") for variant in VARIANTS}
    worst = max(
        abs(a - b)
        for variant in VARIANTS[1:]
        for a, b in zip(runs["ours"][0]["losses"], runs[variant][0]["losses"], strict=True)
    )
    common.report(
        "train_step",
        ratios={
            "tokens_per_second": speed["ours"] / speed["trainer"],
            "peak_memory": memory["trainer"] / memory["ours"],
            "tokens_per_second_block": speed["ours"] / speed["trainer_block"],
            "peak_memory_block": memory["trainer_block"] / memory["ours"],
        },
        ours={"tokens_per_second": speed["ours"], "peak_gb": memory["ours"]},
        peer={
            "tokens_per_second": speed["trainer"],
            "peak_gb": memory["trainer"],
            "tokens_per_second_block": speed["trainer_block"],
            "peak_gb_block": memory["trainer_block"],
        },
        equal={"losses": worst <= TOLERANCE, "largest_difference": round(worst, 7), "tolerance": TOLERANCE},
        save=options.save,
        settings=f"float32, rank {RANK} on q and v, {options.batch_size} rows a step, micro-batch {MICRO}, block "
        f"{options.block_size}, {options.repeats} rounds of {options.steps} timed steps",
    )


if __name__ == "__main__":
    main()
