"""Every recipe's small twin, run for real on SmolLM2: the command of a GPU recipe with --profile cpu, for a few steps.

    python benchmarks/recipe_twins.py [--only NAME,NAME] [--steps 2] [--block 128] [--save]

It shows that each recipe runs from its file to a saved adapter, not how good that is: a GPU's run has a thousand times
the steps. Dolly's rows come from the hub; where they are not here, the course's own rows stand in, in Dolly's form.
Started again with --save, it runs only what is missing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import date
from pathlib import Path

import common

from lorahub_edu import results
from lorahub_edu.data import alpaca
from lorahub_edu.files import assets
from lorahub_edu.runs import recipes

PROFILE = "cpu"


def dolly_stand_in(folder: Path) -> Path:
    """The shipped rows with Dolly's names of the fields."""
    rows = [{"instruction": r.instruction, "context": r.input, "response": r.output} for r in alpaca.shipped_examples()]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(name: str, options: argparse.Namespace) -> dict:
    """One twin: losses in nats a token before and after, and what it took."""
    recipe = recipes.twin(recipes.read(name), PROFILE)
    line = {"model": recipe.profile.base_model, "method": recipe.method, "rows": recipe.rows}
    started = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        out, data = Path(scratch) / "run", None
        if recipe.rows == "dolly" and assets.locate("dolly") is None:
            data = dolly_stand_in(Path(scratch))
            line["rows"] = "the course's own rows, in Dolly's form"
        changes = {"train_steps": options.steps, "block_size": options.block}
        done = recipes.run(name, PROFILE, changes, data=data, out=out, progress=False)
        line |= {
            "steps": done.training.steps,
            "block": options.block,
            "loss_before": round(done.loss_before, 4),
            "loss_after": round(done.loss_after, 4),
        }
        line["adapter_mb"] = round(sum(f.stat().st_size for f in (out / "adapter").rglob("*.safetensors")) / 1e6, 2)
    return line | {"cpu_seconds": round(time.process_time() - started, 1)}


def main() -> None:
    options = common.arguments(__doc__, only="", steps=2, block=128)
    path = results.committed_folder() / "recipe_twins.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["twins"] if options.save and path.is_file() else {}
    line = {"name": "recipe_twins", "profile": PROFILE, "twins": kept}
    for name in options.only.split(",") if options.only else recipes.names():
        if name in kept:
            continue
        line["twins"][name] = run(name, options)
        print(name, line["twins"][name], flush=True)
        line |= {"versions": results.library_versions(), "device": results.describe_device()}
        line["date"] = date.today().isoformat()
        if options.save:
            results.write_json(path, line)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
