"""Configurations by name: shapes that come with the course, a folder or file, or a model on the hub."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.files.sources import hub_address, why_unreachable
from lorahub_edu.models.profiles import BASE_MODELS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# transformers is imported where a configuration is made, so that a mistyped name is answered at once.

FILE = Path(__file__).resolve().parent.parent / "data" / "model_shapes.json"
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
# The course's bases and common names, by the shape that they have.
ALIASES = {
    "SmolLM2-135M-Instruct": "smollm2-135m",
    "open_llama_7b_v2": "llama-7b",
    "openlm-research/open_llama_7b_v2": "llama-7b",
    "llama-2-7b": "llama-7b",
    "meta-llama/Llama-2-7b-hf": "llama-7b",
    "meta-llama/Meta-Llama-3-8B": "llama-3-8b",
    "llama-2-13b": "llama-13b",
    "google/flan-t5-large": "flan-t5-large",
}


@cache
def shapes() -> dict[str, dict]:
    """The shipped shapes by name, as transformers' configurations spell them."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def read_config(model: str, *, offline: bool = False) -> PreTrainedConfig:
    """A model's configuration; no weights are read, and `offline` opens no connection.

    `model` is a name of a shipped shape, an alias or the tiny model in any case, a folder with a config.json or such a
    file, or a name on the hub.
    Raises CourseError: nothing of that name is known here or on the hub, or the file is no configuration.
    """
    found = find(model)
    from transformers import AutoConfig

    from lorahub_edu.models import tiny

    if found == tiny.NAME:
        return tiny.config()
    if found in shapes():
        shape = dict(shapes()[found])
        return AutoConfig.for_model(shape.pop("model_type"), **shape)
    return _from_file(found) if isinstance(found, Path) else _from_hub(found, offline)


def find(model: str) -> str | Path:
    """What `read_config` reads: a shape, the tiny model, a file, or a name on the hub. Raises as it does."""
    made = [base.name for base in BASE_MODELS.values() if not (base.asset or base.repo)]  # from no file
    known = {name.lower(): name for name in sorted({*shapes(), *ALIASES, *made})}
    name = known.get(model.lower())
    if name is not None:
        return ALIASES.get(name, name)
    path = Path(model)
    if path.exists():
        return path / "config.json" if path.is_dir() else path
    if "/" not in model or model.startswith((".", "/")):
        raise CourseError(
            f"There is no model {model!r}: the course has no model shape with this name, and there is no such folder. "
            f"{near_matches(model.lower(), known)} A name on the hub has the form owner/name."
        )
    return model


def _from_file(path: Path) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        config = AutoConfig.for_model(**fields)
    except Exception as error:  # transformers checks the fields by its own kinds of error
        raise CourseError(
            f"{path} can't be read as a model's configuration: {type(error).__name__}: {str(error)[:300]}. Give a "
            f"folder that holds a config.json with its model_type."
        ) from error
    # transformers would fill in what is missing, and the plan would be another model's.
    missing = [name for name in NEEDED if not {name, config.attribute_map.get(name)} & fields.keys()]
    if missing:
        raise CourseError(f"{path} does not give {', '.join(missing)}, without which nothing can be counted.")
    return config


def _from_hub(model: str, offline: bool) -> PreTrainedConfig:
    from transformers import AutoConfig

    reason = "offline was chosen" if offline else why_unreachable(hub_address())
    try:
        return AutoConfig.from_pretrained(model, local_files_only=reason is not None)
    except Exception as error:  # the hub library raises many kinds
        why = f"and the hub was not asked ({reason})" if reason else f"{type(error).__name__}: {str(error)[:200]}"
        raise CourseError(
            f"There is no configuration of {model!r} in the hub's cache on this machine, {why}. If access to the model "
            f"is granted by its makers, log in first (hf auth login); else give a shape: {', '.join(sorted(shapes()))}."
        ) from error
