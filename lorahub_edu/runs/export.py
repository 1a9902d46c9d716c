"""An adapter for others: merged into its base for other programs, or put on the Hugging Face hub with a model card.

transformers and vLLM load the folder in safetensors; llama.cpp and Ollama load the one GGUF file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lorahub_edu.data import alpaca, tasks
from lorahub_edu.data.rows import Example
from lorahub_edu.errors import CourseError
from lorahub_edu.files import save
from lorahub_edu.files.sources import hub_address
from lorahub_edu.hub import zoo
from lorahub_edu.lora import adapter_files, adapters
from lorahub_edu.lora.adapter_files import AdapterFile, read_adapter, write_adapter
from lorahub_edu.models import pretrained
from lorahub_edu.results import Table
from lorahub_edu.runs.finetune import RUN_FILE
from lorahub_edu.spectra.updates import base_of

GGUF_FILE = "model.gguf"
ON_HUB = {"SmolLM2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
# Of the rows that a run was trained on, by their set.
LICENCES = {"alpaca": "cc-by-nc-4.0", "alpaca-52k": "cc-by-nc-4.0", "dolly": "cc-by-sa-3.0", "tiny": "cc-by-4.0"}


def merged_model(
    source: str | Path, *, base: str = "", folder: str | Path = zoo.SHIPPED, profile: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Callable[[str], str]]:
    """An adapter merged for good into its base in float32, the tokenizer, and the prompt that the adapter is for.

    The tokenizer's chat template is that prompt too.
    Raises CourseError: it is no LoRA module, or belongs to another base.
    """
    file = zoo.open_source(source, folder)
    if not isinstance(file, AdapterFile):
        raise CourseError(f"{source} is a whole model, which needs no merging: give a LoRA adapter.")
    name = base or base_of(file, profile)
    model, tokenizer = pretrained.load(profile, base=name, dtype=torch.float32, device="cpu")
    adapter_files.put_adapter(model, file, base_model_sha256=pretrained.base_sha256(name))
    prompt = prompt_of(file)
    template = prompt("{{ messages[-1]['content'] }}")
    tokenizer.chat_template = template.removesuffix("\n") + "{{ '\\n' }}" * template.endswith("\n")  # Jinja drops it
    return adapters.merge_and_unload(model), tokenizer, prompt


def prompt_of(file: AdapterFile) -> Callable[[str], str]:
    """The prompt around a text: of the task where the module has a card, else Alpaca's."""
    instruction = zoo.instruction_of(file)
    if instruction:
        return lambda text: tasks.prompt(instruction, text)
    return lambda text: alpaca.format_prompt(Example(text, "", ""))


def write_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: str | Path) -> Path:
    """A folder in safetensors that AutoModelForCausalLM and vLLM load; it appears whole or not at all."""
    with save.replacing(Path(out)) as unfinished, pretrained.quiet_transformers():
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return Path(out)


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: str | Path, kind: str = "f16") -> Path:
    """One GGUF file of a LLaMA, its tokenizer included; matrices are f32, f16, bf16 or q8_0, vectors f32.

    Raises CourseError: another architecture, scaled positions, or a tokenizer that is no byte-level BPE.
    Source: llama.cpp's convert_hf_to_gguf.py, whose names and order of the query and key rows this follows.
    """
    config, bpe = model.config, tokenizer.backend_tokenizer
    scaled = config.rope_parameters.get("rope_type", "default") != "default" if config.model_type == "llama" else True
    if scaled or type(bpe.decoder).__name__ != "ByteLevel":
        raise CourseError(
            f"Only a LLaMA with plain rotary positions and a byte-level tokenizer becomes a GGUF here, and this is "
            f"{config.model_type} with {type(tokenizer).__name__}. Export it with --merged, and convert that folder "
            f"with llama.cpp's convert_hf_to_gguf.py."
        )
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    with save.replacing(Path(out)) as unfinished:
        writer = gguf.GGUFWriter(unfinished, "llama")
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(heads)
        writer.add_head_count_kv(groups)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}" if kind != "f32" else "ALL_F32"])
        _add_tokenizer(writer, tokenizer, config.vocab_size)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        for name, weight in model.state_dict().items():
            if tied and name == "lm_head.weight":
                continue
            matrix = weight.float().numpy()
            for part, count in (("q_proj", heads), ("k_proj", groups)):
                if part in name:  # rotary pairs lie side by side in llama.cpp, half a head apart in transformers
                    matrix = matrix.reshape(count, 2, -1, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)
            dtype = gguf.GGMLQuantizationType[kind.upper() if matrix.ndim > 1 else "F32"]
            data = gguf.quants.quantize(np.ascontiguousarray(matrix), dtype)
            writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(out)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, size: int) -> None:
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["id"] for token in settings["added_tokens"] if token["special"]}
    words = {index: word for word, index in tokenizer.get_vocab().items()}
    kinds = [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(size)]
    writer.add_tokenizer_model("gpt2")
    digits_apart = '"Digits"' in json.dumps(settings["pre_tokenizer"])  # SmolLM's own tokenizer
    like_llama_3 = settings["model"].get("ignore_merges")
    writer.add_tokenizer_pre("smollm" if digits_apart else "llama-bpe" if like_llama_3 else "gpt-2")
    writer.add_token_list([words.get(i, f"[unused{i}]") for i in range(size)])
    writer.add_token_types(kinds)
    merges = settings["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for kind in ("bos", "eos", "unk", "pad"):
        if (index := getattr(tokenizer, f"{kind}_token_id")) is not None:
            getattr(writer, f"add_{kind}_token_id")(index)
    writer.add_add_bos_token(tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id])
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.chat_template)


def write_modelfile(tokenizer: PreTrainedTokenizerFast, prompt: Callable[[str], str], folder: str | Path) -> Path:
    """Ollama's Modelfile beside a GGUF: the prompt around what is typed, the end token, greedy answers."""
    text = (
        f'FROM ./{GGUF_FILE}\nTEMPLATE """{prompt("{{ .Prompt }}")}"""\n'
        f'PARAMETER stop "{tokenizer.eos_token}"\nPARAMETER temperature 0\n'
    )
    path = Path(folder) / "Modelfile"
    path.write_text(text, encoding="utf-8")
    return path


def model_card(folder: str | Path, repo: str) -> ModelCard:
    """The card of the adapter in a folder: base, rank, layers, prompt, how it was trained and what that did, licence.

    Facts that nothing on disk records are left out.
    Raises CourseError: there is no LoRA adapter in the folder, or its records can't be read.
    """
    file = read_adapter(folder)
    run, base = _records(Path(folder)), _on_hub(file)
    config = next(iter(file.configs.values()))
    layers = sorted({name.rpartition(".")[2] for name in file.weights})
    facts = {
        "base model": base,
        "rank, α": f"{config.rank}, {config.alpha:g}",
        "adapted layers": f"{len(file.weights)}: {', '.join(layers)}",
        "parameters": f"{sum(A.numel() + B.numel() for A, B in file.weights.values()):,}",
    } | {
        key.replace("_", " "): f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in run.items()
    }
    licence = LICENCES.get(run.get("rows", ""))
    told = f"The rows' licence, {licence}, holds for this adapter too. " if licence else ""
    data = ModelCardData(
        base_model=base, library_name="peft", license=licence, pipeline_tag="text-generation", tags=["lora"]
    )
    facts_table = Table(("what", "value"), tuple(facts.items()))._repr_markdown_()
    return ModelCard(
        f"""---
{data.to_yaml()}
---

# {repo.partition("/")[2]}

A LoRA adapter, trained with the course lorahub-edu. Losses are in nats a token, on rows that were held back.

{facts_table}

{told}The base model has a licence of its own.

## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{repo}")
```

The prompt that it was trained with:

````text
{prompt_of(file)("…")}
````
"""
    )


def push(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Put the adapter in a folder on the hub, with its card, and return the page's address; files there are replaced.

    Raises CourseError: there is no LoRA adapter in the folder, no such right, or no connection.
    """
    file, card = read_adapter(folder), model_card(folder, repo)
    with TemporaryDirectory() as staged:
        targets = next(iter(file.configs.values())).target_modules
        write_adapter(replace(file, base_model=_on_hub(file)), staged, targets)
        card.save(Path(staged) / "README.md")
        if (file.path / zoo.CARD_FILE).is_file():
            shutil.copy(file.path / zoo.CARD_FILE, staged)
        try:
            api = HfApi(endpoint=hub_address())
            address = api.create_repo(repo, private=private or None, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=staged, commit_message="LoRA adapter from lorahub-edu")
        except Exception as error:  # the hub's library raises many kinds
            raise CourseError(
                f"Can't put {repo} on the hub: {type(error).__name__}: {' '.join(str(error).split())[:200]}. Log in "
                f"with `hf auth login`, with a token that may write, and check the name and the network."
            ) from error
    return str(address)


def _on_hub(file: AdapterFile) -> str:
    return ON_HUB.get(file.base_model or "", file.base_model or "unknown")


def _records(folder: Path) -> dict[str, object]:
    """What the run wrote beside its adapter, or a module's card in it; {} where there is neither."""
    for path in (folder.parent / RUN_FILE, folder / zoo.CARD_FILE):
        if path.is_file():
            try:
                return dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                raise CourseError(f"{path} can't be read ({error}). Remove it, or train again.") from error
    return {}
