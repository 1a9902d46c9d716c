"""Intruder dimensions of modules, of what LoRAHub composes of them, and of the controls. Claim X1.

    python benchmarks/composed_intruders.py --save

A search for each target, draw and method; the runs are kept in --out, so a killed study goes on.
"""

from __future__ import annotations

import json

import common
import torch

from lorahub_edu import results
from lorahub_studies import composed_spectra, engine
from lorahub_studies.composed_spectra import EPSILONS, VARIANTS, Composition

TARGETS = ("second_word", "last_word_upper", "gerund_upper", "count_words", "less")
SEARCHES = ("auto", "cma_120")


def main() -> None:
    options = common.arguments(__doc__, threads=2, draws=3, out="runs/composed_intruders")
    torch.set_num_threads(options.threads)
    compositions = [
        Composition(t, draw, search) for draw in range(options.draws) for t in TARGETS for search in SEARCHES
    ]
    studied = engine.run(
        compositions,
        composed_spectra.run,
        options.out,
        report=lambda job, row: print(json.dumps(row["rows"][0]), flush=True),
    )
    rows = [row for study in studied for row in study["rows"]]
    alone = composed_spectra.parts()
    settings = {"targets": TARGETS, "draws": options.draws, "epsilons": EPSILONS, "k": 10, "variants": VARIANTS}
    summary = composed_spectra.summarise(rows)
    where = results.committed_folder() if options.save else None
    rows = [{key: value for key, value in row.items() if key != "folder"} for row in rows]  # a path of this machine
    engine.write(rows, "composed_intruders", settings | {"parts": alone}, summary, where)
    for entry in summary:
        print(json.dumps(entry))


if __name__ == "__main__":
    main()
