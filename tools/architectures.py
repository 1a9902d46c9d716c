"""Which architectures give transformers' own losses and PEFT's logits here, and which are refused.

python tools/architectures.py     measures small random models of them all and writes results/architectures.json
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))
import lora_models
import tiny_architectures as arch

from lorahub_edu import evaluation, results, scoring
from lorahub_edu.errors import CourseError
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig

ROWS = arch.prompted_rows()
ENCODED = [row.encoded() for row in ROWS]
LABELLED = sum(len(row.answer_ids) for row in ROWS)
PATH = results.committed_folder() / "architectures.json"


def lora_against_peft(name: str) -> float:
    """The largest difference between logits under an adapter on every linear layer and PEFT's, relative."""
    model = arch.make(name)
    ours = copy.deepcopy(model)
    endings = {layer.rpartition(".")[2] for layer in adapters.find_targets(ours, adapters.ALL_LINEAR)}
    config = LoRAConfig(rank=2, alpha=4, target_modules=tuple(sorted(endings)))
    adapters.inject(ours, config, seed=0)
    lora_models.randomise(ours)
    twin = lora_models.peft_twin(model, ours, config).to(model.dtype)
    ids = torch.tensor([ENCODED[0].input_ids])
    with torch.no_grad():
        found, own = (each(input_ids=ids, use_cache=False).logits for each in (ours, twin))
    return ((found - own).abs().max() / own.abs().max()).item()


def loss_against_own(name: str, ours: Callable, attention: str | None = None) -> float:
    """The difference between a mean loss and that of the model's own forward pass, relative."""
    own = arch.own_loss(arch.make(name), ENCODED).item() / LABELLED
    return abs(ours(arch.make(name, attention)) - own) / own


def packed(model: torch.nn.Module) -> float:
    return evaluation.loss(model, ENCODED, 2, "packed")


WAYS = {
    "LoRA": lora_against_peft,
    "padded": lambda name: loss_against_own(name, lambda model: evaluation.loss(model, ENCODED, 2, "padded")),
    "packed": lambda name: loss_against_own(name, packed),
    "packed attention": lambda name: loss_against_own(name, packed, "packed"),
    "scores": lambda name: loss_against_own(name, lambda model: scoring.score(model, ROWS).losses[0]),
}


def outcome(name: str, way: Callable[[str], float]) -> str:
    """ "equal", "not equal", or "refused: " and the reason."""
    try:
        return "equal" if way(name) <= 1e-5 else "not equal"
    except CourseError as error:
        reason = str(error)
    except KeyError:  # transformers' own, for an attention that a model does not ask
        reason = "transformers has its own attention only"
    return f"refused: {reason}"


def main() -> None:
    """Measure all and write the file."""
    types = {
        name: {key: outcome(name, way) for key, way in WAYS.items()} for name in {**arch.SETTINGS, **arch.UNLISTED}
    }
    about = {"versions": results.library_versions(), "date": date.today().isoformat()}
    results.write_json(PATH, {"types": types, **about})


if __name__ == "__main__":
    main()
