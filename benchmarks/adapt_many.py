"""Do more modules make the search unstable? LoRAHub with 5 to 40 modules on the same targets. Claim H19.

    python benchmarks/adapt_many.py --save

The study and its rule: `lorahub_studies/many_modules.py`. It is kept in --out, so a killed run goes on.
"""

from __future__ import annotations

from pathlib import Path

import common

from lorahub_edu import results
from lorahub_studies import engine, many_modules


def main() -> None:
    options = common.arguments(__doc__, draws=4, test_items=40, out="runs/adapt_many")
    rows = many_modules.run(Path(options.out), options.draws, options.test_items)
    settings = {"draws": options.draws, "test_items": options.test_items, "steps": many_modules.STEPS}
    target = results.committed_folder() if options.save else None
    print(engine.write(rows, "adapt_many", settings, many_modules.summary(rows), target))


if __name__ == "__main__":
    main()
