"""More modules, more variance and a higher maximum? CMA-ES with 5, 10 and 20 modules drawn from the zoo. Claim H16.

    python benchmarks/adapt_modules.py --save

Each draw takes five examples and that many modules by its seed; the sweep is kept in --out, so a killed run goes on.
"""

from __future__ import annotations

import json
import random
import statistics

import common

from lorahub_edu import results
from lorahub_edu.hub import zoo
from lorahub_studies import adapting, adapting_tables, engine
from lorahub_studies.adapting import Trial

TARGETS = ("second_word", "count_words", "less")
COUNTS = (5, 10, 20)


def main() -> None:
    options = common.arguments(__doc__, draws=5, test_items=100, out="runs/adapt_modules")
    rows = []
    for count in COUNTS:
        grid = [
            Trial(
                target,
                draw,
                "cma_40",
                tuple(sorted(random.Random(f"{count}/{draw}").sample(zoo.names(), count))),
                test_items=options.test_items,
            )
            for draw in range(options.draws)
            for target in TARGETS
        ]
        rows += engine.run(grid, adapting.run, f"{options.out}/{count}")
    settings = {"draws": options.draws, "counts": COUNTS, "test_items": options.test_items}
    adapting_tables.write(rows, "adapt_modules", settings, results.committed_folder() if options.save else None)
    for count in COUNTS:
        found = [row["strict"] for row in rows if row["modules"] == count]
        line = {
            "modules": count,
            "mean": statistics.fmean(found),
            "spread": statistics.stdev(found),
            "best": max(found),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
