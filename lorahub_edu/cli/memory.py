"""The memory planner on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from lorahub_edu.cli.terminal import console, listed


def plan(
    model: Annotated[str, typer.Option(help="A shape's name, a folder with a config.json, or owner/name on the hub.")],
    method: Annotated[str, typer.Option(help="lora, rslora, dora, full, bitfit, ia3, llama_adapter, …")] = "lora",
    rank: Annotated[int, typer.Option(help="Rank of LoRA.")] = 8,
    targets: Annotated[str, typer.Option(help="Layers that LoRA adapts, by commas, or all-linear.")] = "q_proj,v_proj",
    micro_batch: Annotated[int, typer.Option(help="Rows that go through the model at one time.")] = 4,
    block: Annotated[int, typer.Option(help="Tokens in a row.")] = 512,
    accumulation: Annotated[int, typer.Option(help="Micro-batches for one optimizer step.")] = 1,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Recompute activations.")] = False,
    gpu: Annotated[float, typer.Option(help="Size of the card as it is sold, in GB.")] = 24,
    dtype: Annotated[str, typer.Option(help="Of frozen weights and autocast.")] = "bfloat16",
    trained_dtype: Annotated[str, typer.Option(help="Of trained parameters.")] = "float32",
    optimizer: Annotated[str, typer.Option(help="adamw, adamw-8bit or sgd.")] = "adamw",
    base: Annotated[str, typer.Option(help="Frozen weights: none (as --dtype says), nf4 or nf4-dq.")] = "none",
    task: Annotated[str, typer.Option(help="training, scoring or generation.")] = "training",
    loss: Annotated[str, typer.Option(help="course (logits at labels, in chunks) or library (all logits).")] = "course",
    dropout: Annotated[float, typer.Option(help="Dropout of LoRA.")] = 0.05,
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection.")] = False,
) -> None:
    """Predict the peak memory of a step, and the cheapest change that makes it fit. Needs no GPU and no weights."""
    from lorahub_edu.lora.layer import LoRAConfig
    from lorahub_edu.memory.advice import advise
    from lorahub_edu.memory.plan import capacity
    from lorahub_edu.memory.setting import Setting
    from lorahub_edu.memory.shapes import read_config

    modules = targets if targets == "all-linear" else listed(targets)
    setting = Setting(
        method=method.replace("-", "_").lower(),
        lora=LoRAConfig(rank=rank, alpha=2.0 * rank, dropout=dropout, target_modules=modules),
        micro_batch=micro_batch,
        block=block,
        accumulation=accumulation,
        checkpointing=checkpointing,
        dtype=dtype,
        trained_dtype=trained_dtype,
        optimizer=optimizer,
        quantisation=base,
        task=task,
        loss=loss,
    )
    config = read_config(model, offline=offline)
    advice = advise(model, config, setting, capacity(gpu), f"a {gpu:g} GB card without the driver's part")
    console.print(str(advice), markup=False)
