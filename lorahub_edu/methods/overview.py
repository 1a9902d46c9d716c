"""All methods on one page: what each trains and how many parameters that is."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from lorahub_edu.methods.attach import count_trainable
from lorahub_edu.methods.kinds import METHODS, parts_of
from lorahub_edu.models import pretrained
from lorahub_edu.models.profiles import get_profile
from lorahub_edu.results import Table


def methods_table(profile: str | None = None) -> Table:
    """Every method with its defaults on a profile's model, whose weights are not loaded."""
    base = get_profile(profile).base_model
    with pretrained.quiet_transformers(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(pretrained.load_config(base))
    total = sum(parameter.numel() for parameter in model.parameters())
    rows = []
    for name, method in METHODS.items():
        count = count_trainable(model, parts_of(name, {}))
        settings = {key: value for key, value in method.settings.items() if value is not None and key != "keep_base"}
        default = ", ".join(f"{key} {value}" for key, value in settings.items())
        rows.append((name, method.trains, default, f"{count:,}", f"{count / total:.3%}", method.made_by))
    caption = (
        f"Parameters are those of {base}. Sizes are settings; a budget in parameters sets them too. PEFT has no "
        f"bottleneck adapters. The library adapters (1.3.0) has them, but needs transformers 4.57 and does not run "
        f"with this course's version, so both are lorahub_edu's own."
    )
    return Table(("method", "trains", "by default", "parameters", "of all", "made by"), tuple(rows), caption)
