"""Loading SmolLM2-135M: the converted copy (every load but the first) against reading the GGUF file each time.

python benchmarks/load.py [--repeats 3] [--save]
"""

from __future__ import annotations

import hashlib
import json
import time

import common


def fingerprint(model) -> str:
    """A hash of every weight, to show that both ways give the same model."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def measure(variant: str) -> dict:
    """Seconds to a model and tokenizer that are ready, imports apart."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lorahub_edu.files import assets
    from lorahub_edu.models import pretrained

    torch.set_num_threads(2)
    started = time.perf_counter()
    if variant == "ours":
        model, _ = pretrained.load("cpu", offline=True)
    else:
        file = assets.fetch("SmolLM2-135M-Instruct", offline=True)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 3), "weights": fingerprint(model)}


def main() -> None:
    options = common.arguments(__doc__, repeats=3)
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    measure("ours")  # the first load fetches and converts if it must; it is not what is measured
    script = common.script_path(__file__)
    runs = common.interleaved(("ours", "gguf"), options.repeats, lambda v: common.isolated(script, v, options))
    ours, peer = (common.median_of(runs[v], "seconds") for v in ("ours", "gguf"))
    common.report(
        "load",
        ratios={"seconds": peer / ours, "target_3_seconds": 3 / ours},
        ours={"seconds": ours},
        peer={"seconds": peer},
        equal={"weights": len({run["weights"] for found in runs.values() for run in found}) == 1, "tolerance": 0},
        save=options.save,
    )


if __name__ == "__main__":
    main()
