"""Training and its way out on the command line: train, plan, methods list, export, push, export-llamafactory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from lorahub_edu.cli.hub import AdapterArgument, BaseOption, ZooOption
from lorahub_edu.cli.terminal import (
    COUNT,
    NATURAL,
    OutOption,
    ProfileOption,
    console,
    finite,
    known_recipe,
    known_rows,
    listed,
    quiet_work,
    writable_folder,
)
from lorahub_edu.errors import CourseError
from lorahub_edu.files.save import one_writer
from lorahub_edu.hub import zoo

Dtype = Literal["float32", "bfloat16", "float16"]
Batching = Literal["packed", "grouped", "padded"]
Reporter = Literal["tensorboard", "trackio"]

RECIPE = typer.Argument(callback=known_recipe, help="A recipe's name or file.")

methods_app = typer.Typer(no_args_is_help=True, help="Methods of fine-tuning: list them.")


def train(
    recipe: Annotated[str | None, RECIPE] = None,
    profile: ProfileOption = None,
    data: Annotated[Path | None, typer.Option(callback=known_rows, help="A file of rows, alpaca or dolly.")] = None,
    out: Annotated[Path | None, typer.Option(callback=writable_folder, help="Default a folder in runs/.")] = None,
    steps: Annotated[int | None, typer.Option(**COUNT, help="Optimizer steps.")] = None,
    rank: Annotated[int | None, typer.Option(**COUNT, help="Rank of LoRA.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, callback=finite, help="The highest rate.")] = None,
    batching: Annotated[Batching | None, typer.Option(help="How rows fill a batch; default packed.")] = None,
    seed: Annotated[int, typer.Option(**NATURAL, help="Seed of A, the order of rows, dropout and the split.")] = 0,
    micro_batch: Annotated[int | None, typer.Option(**COUNT, help="Rows in the model at one time.")] = None,
    block: Annotated[int | None, typer.Option(**COUNT, help="Tokens in a row.")] = None,
    checkpointing: Annotated[bool | None, typer.Option(help="Recompute activations.")] = None,
    validation: Annotated[int | None, typer.Option(**COUNT, help="Rows held back; default at most a fifth.")] = None,
    report_to: Annotated[Reporter | None, typer.Option(help="Where figures go, if installed.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Run even if the predicted memory does not fit.")] = False,
) -> None:
    """Fine-tune the profile's model on Alpaca with LoRA, or run a recipe. An interrupted run continues.

    Settings without an option come from the profile or the recipe. A recipe runs on the GPU that it is for. With
    --profile cpu its small twin runs on a laptop.
    """
    from lorahub_edu.runs import recipes

    usual = Path("runs/alpaca")
    if recipe is not None:
        job = recipes.twin(recipes.read(recipe), profile)
        usual = Path("runs", job.name if job.profile.name == recipes.BIG.name else f"{job.name}-{job.profile.name}")
    out = writable_folder(out or usual)
    with quiet_work("loading torch"):
        from lorahub_edu.runs import finetune
    changes = dict(
        train_steps=steps, rank=rank, learning_rate=learning_rate, batching=batching, micro_batch_size=micro_batch,
        block_size=block, gradient_checkpointing=checkpointing, validation_rows=validation,
    )  # fmt: skip
    options = {"data": data, "out": out, "seed": seed, "anyway": anyway, "report_to": report_to or ""}
    with one_writer(out):
        if recipe is not None:
            done = recipes.run(recipe, profile, changes, report=console.print, **options)
        else:
            done = finetune.finetune(profile, changes, **options)
        console.print(str(done))
    if done.interrupted:
        raise typer.Exit(130)


def export_llamafactory(
    recipe: Annotated[str, RECIPE],
    out: OutOption,
    profile: ProfileOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection.")] = False,
) -> None:
    """Write a recipe for LLaMA-Factory; the adapter that it trains loads here."""
    from lorahub_edu.runs import llamafactory

    with quiet_work("reading the rows"):
        path = llamafactory.export(recipe, out, profile=profile, offline=offline)
    console.print(f"Train it with: llamafactory-cli train {path}")


def plan(
    model: Annotated[str, typer.Option(help="A shape's name, a folder with a config.json, or owner/name on the hub.")],
    method: Annotated[str, typer.Option(help="lora, rslora, dora, full, bitfit, ia3, llama_adapter, …")] = "lora",
    rank: Annotated[int, typer.Option(**COUNT, help="Rank of LoRA.")] = 8,
    targets: Annotated[str, typer.Option(help="Layers that LoRA adapts, by commas, or all-linear.")] = "q_proj,v_proj",
    micro_batch: Annotated[int, typer.Option(**COUNT, help="Rows that go through the model at one time.")] = 4,
    block: Annotated[int, typer.Option(**COUNT, help="Tokens in a row.")] = 512,
    accumulation: Annotated[int, typer.Option(**COUNT, help="Micro-batches for one optimizer step.")] = 1,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Recompute activations.")] = False,
    gpu: Annotated[float, typer.Option(min=0, max=1e6, help="Size of the card as it is sold, in GB.")] = 24,
    dtype: Annotated[Dtype, typer.Option(help="Format of frozen weights and autocast.")] = "bfloat16",
    trained_dtype: Annotated[Dtype, typer.Option(help="Format of trained parameters.")] = "float32",
    optimizer: Annotated[Literal["adamw", "adamw-8bit", "sgd"], typer.Option(help="Its state is counted.")] = "adamw",
    base: Annotated[Literal["none", "nf4", "nf4-dq"], typer.Option(help="4-bit frozen weights, or none.")] = "none",
    task: Annotated[Literal["training", "scoring", "generation"], typer.Option(help="The step's job.")] = "training",
    loss: Annotated[Literal["course", "library"], typer.Option(help="library: all logits at one time.")] = "course",
    dropout: Annotated[float, typer.Option(min=0, max=0.999, callback=finite, help="Dropout of LoRA.")] = 0.05,
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection.")] = False,
) -> None:
    """Predict the peak memory of a step, and the cheapest change that makes it fit. Needs no GPU and no weights."""
    from lorahub_edu.memory.shapes import find, read_config
    from lorahub_edu.methods import kinds

    find(model)  # before torch is loaded
    method = method.replace("-", "_").lower()
    if method != "none":
        kinds.get_method(method)
    modules = targets if targets == "all-linear" else listed(targets)
    if not modules:
        raise CourseError("Which layers does LoRA adapt? Give --targets, for example q_proj,v_proj or all-linear.")
    from lorahub_edu.lora.layer import LoRAConfig
    from lorahub_edu.memory.setting import Setting

    setting = Setting(
        method=method,
        lora=LoRAConfig(rank=rank, alpha=2.0 * rank, dropout=dropout, target_modules=modules),
        micro_batch=micro_batch, block=block, accumulation=accumulation, checkpointing=checkpointing, dtype=dtype,
        trained_dtype=trained_dtype, optimizer=optimizer, quantisation=base, task=task, loss=loss,
    )  # fmt: skip
    from lorahub_edu.memory.plan import advise, capacity  # transformers: after the setting is known to be possible

    with quiet_work("counting the memory of a step"):
        config = read_config(model, offline=offline)
        advice = advise(model, config, setting, capacity(gpu), f"a {gpu:g} GB card without the driver's part")
    console.print(str(advice))


@methods_app.command("list")
def methods_list(profile: ProfileOption = None) -> None:
    """Every method: what it trains, how many parameters of the profile's model, whose code it is."""
    from lorahub_edu.methods.overview import methods_table

    with quiet_work("counting parameters"):
        table = methods_table(profile)
    console.print(str(table))


def export(
    adapter: AdapterArgument,
    merged: Annotated[bool, typer.Option("--merged", help="A folder in safetensors, for transformers.")] = False,
    gguf: Annotated[bool, typer.Option("--gguf", help="One file for llama.cpp.")] = False,
    ollama: Annotated[bool, typer.Option("--ollama", help="The GGUF and a Modelfile.")] = False,
    vllm: Annotated[bool, typer.Option("--vllm", help="As --merged, in bfloat16.")] = False,
    kind: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"], typer.Option("--type", help="Format of a GGUF's matrices.")
    ] = "f16",
    out: OutOption = Path("runs/export"),
    base: BaseOption = "",
    folder: ZooOption = zoo.SHIPPED,
    profile: ProfileOption = None,
) -> None:
    """Write an adapter, merged into its base, for transformers, llama.cpp, Ollama or vLLM."""
    if merged + gguf + ollama + vllm != 1:
        raise CourseError("Export for what? Give one of --merged, --gguf, --ollama, --vllm.")
    zoo.find_source(adapter, folder)
    with quiet_work("merging and writing"):
        from lorahub_edu.runs import export as exports

        model, tokenizer, prompt = exports.merged_model(adapter, base=base, folder=folder, profile=profile)
        if gguf or ollama:
            path = exports.write_gguf(model, tokenizer, out / exports.GGUF_FILE, kind)
        else:
            path = exports.write_merged(model.bfloat16() if vllm else model, tokenizer, out)
        if ollama:
            path = exports.write_modelfile(tokenizer, prompt, out)
    use = f"ollama create NAME -f {path}" if ollama else f"vllm serve {path}" if vllm else ""
    console.print(f"written to {path}" + (f"; use it with: {use}" if use else ""))


def push(
    adapter: Annotated[Path, typer.Argument(help="The folder of a LoRA adapter.")],
    repo: Annotated[str, typer.Argument(help="owner/name on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Only the owner sees a new page.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the model card; open no connection.")] = False,
) -> None:
    """Put an adapter on the Hugging Face hub, with a model card written from its run."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise CourseError(f"{repo!r} is no name on the hub. Give owner/name, with your own name as the owner.")
    if not isinstance(zoo.find_source(adapter), Path):
        raise CourseError(f"There is no folder {adapter}. Give the folder of a LoRA adapter.")
    with quiet_work("reading the adapter"):
        from lorahub_edu.runs import export as exports

        said = str(exports.model_card(adapter, repo)) if dry_run else exports.push(adapter, repo, private=private)
    console.print(said)
