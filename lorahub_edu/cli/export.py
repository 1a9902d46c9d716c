"""A trained adapter leaves the course on the command line: export, push."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from lorahub_edu.cli.hub import ZooOption
from lorahub_edu.cli.spectra import BaseOption
from lorahub_edu.cli.terminal import ProfileOption, console, quiet_work
from lorahub_edu.cli.typed import writable_folder
from lorahub_edu.errors import CourseError

AdapterArgument = Annotated[
    str, typer.Argument(help="A module of the zoo, an adapter's folder, or owner/name on the hub.")
]


def export(
    adapter: AdapterArgument,
    merged: Annotated[
        bool, typer.Option("--merged", help="A folder for transformers: merged, in safetensors.")
    ] = False,
    gguf: Annotated[bool, typer.Option("--gguf", help="One file for llama.cpp.")] = False,
    ollama: Annotated[bool, typer.Option("--ollama", help="The GGUF and a Modelfile.")] = False,
    vllm: Annotated[bool, typer.Option("--vllm", help="As --merged, in bfloat16.")] = False,
    kind: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"], typer.Option("--type", help="Of the matrices in a GGUF.")
    ] = "f16",
    out: Annotated[Path, typer.Option(callback=writable_folder, help="The folder to write to.")] = Path("runs/export"),
    base: BaseOption = "",
    folder: ZooOption = None,
    profile: ProfileOption = None,
) -> None:
    """Write an adapter, merged into its base, for transformers, llama.cpp, Ollama or vLLM."""
    from lorahub_edu.hub import zoo

    if merged + gguf + ollama + vllm != 1:
        raise CourseError("Export for what? Give one of --merged, --gguf, --ollama, --vllm.")
    zoo.find_source(adapter, folder or zoo.SHIPPED)
    with quiet_work("merging and writing"):
        from lorahub_edu.runs import export as exports

        model, tokenizer, prompt = exports.merged_model(
            adapter, base=base, folder=folder or zoo.SHIPPED, profile=profile
        )
        if gguf or ollama:
            path = exports.write_gguf(model, tokenizer, out / exports.GGUF_FILE, kind)
        else:
            path = exports.write_merged(model.bfloat16() if vllm else model, tokenizer, out)
        if ollama:
            path = exports.write_modelfile(tokenizer, prompt, out)
    use = f"ollama create NAME -f {path}" if ollama else f"vllm serve {path}" if vllm else ""
    console.print(f"written to {path}" + (f"; use it with: {use}" if use else ""), markup=False)


def push(
    adapter: Annotated[Path, typer.Argument(help="The folder of a LoRA adapter.")],
    repo: Annotated[str, typer.Argument(help="owner/name on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="A new page is for its owner alone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the model card; open no connection.")] = False,
) -> None:
    """Put an adapter on the Hugging Face hub, with a model card written from its run."""
    from lorahub_edu.hub import zoo

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise CourseError(f"{repo!r} is no name on the hub. Give owner/name, with your own name as the owner.")
    if not isinstance(zoo.find_source(adapter), Path):
        raise CourseError(f"There is no folder {adapter}. Give the folder of a LoRA adapter.")
    with quiet_work("reading the adapter"):
        from lorahub_edu.runs import publish

        said = str(publish.model_card(adapter, repo)) if dry_run else publish.push(adapter, repo, private=private)
    console.print(said, markup=False)
