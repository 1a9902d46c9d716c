"""Two tasks in BIG-Bench Hard's form, made by code: whoever needs the form does not need the published rows."""

from __future__ import annotations

import json
import random
from pathlib import Path

NUMBERS = ("a", "two", "three", "four", "five")
THINGS = ("cup", "bowl", "spoon", "plate", "jug", "fork", "pan")


def boolean_rows(count: int = 60, seed: int = 0) -> list[dict[str, str]]:
    """Distinct expressions of True, False, and, or, not; the target is what Python makes of them."""
    generator = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        terms = [
            generator.choice(("True", "False", "not True", "( not False )")) for _ in range(generator.randint(3, 5))
        ]
        expression = terms[0] + "".join(f" {generator.choice(('and', 'or'))} {term}" for term in terms[1:])
        rows[f"{expression} is"] = str(eval(expression))
    return [{"input": asked, "target": answer} for asked, answer in rows.items()]


def counting_rows(count: int = 60, seed: int = 0) -> list[dict[str, str]]:
    """Distinct shelves of kitchen things; the target is how many there are."""
    generator = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        things = generator.sample(THINGS, generator.randint(2, 5))
        amounts = [generator.randint(1, 5) for _ in things]
        listed = [f"{NUMBERS[n - 1]} {thing}{'s' * (n > 1)}" for n, thing in zip(amounts, things, strict=True)]
        rows[f"The shelf holds {', '.join(listed)}. How many things does it hold?"] = str(sum(amounts))
    return [{"input": asked, "target": answer} for asked, answer in rows.items()]


def write(folder: Path, count: int = 60, seed: int = 0) -> Path:
    """Both tasks as the authors publish theirs: `folder`/bbh/boolean_expressions.json and object_counting.json.

    Returns:
        `folder`, which can serve as LORAHUB_EDU_LOCAL.
    """
    made = {"boolean_expressions": boolean_rows(count, seed), "object_counting": counting_rows(count, seed)}
    (folder / "bbh").mkdir(parents=True, exist_ok=True)
    for name, rows in made.items():
        content = {"canary": "Rows made by code for a test.", "examples": rows}
        (folder / "bbh" / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return folder
