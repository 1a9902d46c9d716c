"""An adapter on the Hugging Face hub: its two files and a model card, written from what the run recorded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData

from lorahub_edu.errors import CourseError
from lorahub_edu.files.sources import hub_address
from lorahub_edu.hub import zoo
from lorahub_edu.lora.adapter_files import AdapterFile, read_adapter, write_adapter
from lorahub_edu.results import Table
from lorahub_edu.runs.export import prompt_of
from lorahub_edu.runs.finetune import RUN_FILE

ON_HUB = {"SmolLM2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
# Of the rows that a run was trained on, by their set.
LICENCES = {"alpaca": "cc-by-nc-4.0", "alpaca-52k": "cc-by-nc-4.0", "dolly": "cc-by-sa-3.0", "tiny": "cc-by-4.0"}


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
            added = [CommitOperationAdd(path.name, path) for path in sorted(Path(staged).iterdir())]
            api.create_commit(repo, added, commit_message="LoRA adapter from lorahub-edu")
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
