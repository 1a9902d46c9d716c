"""Does the modules' rank matter? LoRAHub over modules that were trained at rank 1, 4, 8 and 16. Claim H15, by rank.

    python benchmarks/adapt_ranks.py --save

The study and its rule: `lorahub_studies/trained_ranks.py`. It is kept in --out, so a killed run goes on.
"""

from __future__ import annotations

from pathlib import Path

import common

from lorahub_edu import results
from lorahub_studies import trained_ranks


def main() -> None:
    options = common.arguments(__doc__, draws=3, test_items=40, out="runs/adapt_ranks")
    rows, cards = trained_ranks.run(Path(options.out), options.draws, options.test_items)
    print(trained_ranks.write(rows, cards, results.committed_folder() if options.save else None))


if __name__ == "__main__":
    main()
