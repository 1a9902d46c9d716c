"""Write the memory planner's prediction into every recipe; a test holds what stands there to what the planner says.

python tools/predict_recipes.py
"""

from __future__ import annotations

from lorahub_edu.runs import recipe_file, recipes


def main() -> None:
    for name in recipe_file.names():
        path = recipes.write_prediction(name)
        print(f"{path.name}: {dict(recipes.read(name).prediction)}")


if __name__ == "__main__":
    main()
