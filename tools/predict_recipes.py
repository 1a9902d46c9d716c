"""Write the memory planner's prediction into every recipe; a test holds what stands there to what the planner says.

python tools/predict_recipes.py
"""

from __future__ import annotations

from pathlib import Path

import yaml

from lorahub_edu.memory.plan import Plan
from lorahub_edu.runs import recipes


def prediction(plan: Plan) -> dict[str, float]:
    """A plan as it stands in a recipe's file, in GB: tensors, with all allowances, and what stays free of the card."""
    figures = {"tensors_gb": plan.prediction.peak, "needed_gb": plan.needed, "room_gb": plan.room}
    return {name: round(size / 1e9, 2) for name, size in figures.items()}


def write_prediction(recipe: str | Path) -> Path:
    """Update the prediction in a recipe's file, which is returned; the rest of the file stays as it is."""
    path = recipes.find(recipe)
    before = path.read_text(encoding="utf-8").partition("\nprediction:")[0].rstrip("\n")
    block = yaml.safe_dump({"prediction": prediction(recipes.planned(recipes.read(path)))}, sort_keys=False)
    path.write_text(f"{before}\n{block}", encoding="utf-8")
    return path


def main() -> None:
    for name in recipes.names():
        path = write_prediction(name)
        print(f"{path.name}: {dict(recipes.read(name).prediction)}")


if __name__ == "__main__":
    main()
