"""What a cluster costs: time a job beyond the job on 2 workers, and one study on 2 workers x 1 thread against 1 x 2.

python benchmarks/sweep.py [--jobs 300] [--trials 12] [--save]

The job is one that sleeps; the study is the comparison of lesson 07 with the real model. A worker has loaded the
model before its trials are timed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import common

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from plain_jobs import Job, times_ten  # noqa: E402

from lorahub_studies import (  # noqa: E402
    adapting,
    cluster,  # noqa: E402
    engine,
)

SECONDS, MOST = 0.1, 0.030  # of a job that sleeps; the most that a job may cost besides


def timed(jobs: list, work, executor, folder: Path) -> tuple[float, list[dict]]:
    """Seconds that some jobs take, and their rows."""
    started = time.perf_counter()
    rows = engine.run(jobs, work, folder, executor=executor)
    return time.perf_counter() - started, rows


def main() -> None:
    options = common.arguments(__doc__, jobs=300, trials=12, target="last_word_upper")
    seconds, rows = {}, {}
    with tempfile.TemporaryDirectory(prefix="lorahub-edu-") as scratch:
        folder = Path(scratch)
        for where in ("local:2", "local:1"):
            with cluster.workers(where) as executor:
                count = int(where[-1])
                timed([Job(-n, seconds=SECONDS) for n in range(1, 5)], times_ten, executor, folder / f"warm {where}")
                jobs = [Job(n, seconds=SECONDS) for n in range(options.jobs)]
                spent, _ = timed(jobs, times_ten, executor, folder / f"sleep {where}")
                seconds[f"beyond a job, {where}"] = spent * count / options.jobs - SECONDS
                trials = adapting.plan([options.target], ["cma_40"], options.trials + 4, test_items=20)
                timed(trials[: 2 * count], adapting.run, executor, folder / f"load {where}")
                measured = trials[4 : 4 + options.trials]
                seconds[f"study, {where}"], found = timed(measured, adapting.run, executor, folder / f"study {where}")
                rows[where] = [{k: v for k, v in row.items() if "seconds" not in k} for row in found]
    two, one = (seconds[f"study, {where}"] for where in ("local:2", "local:1"))
    beyond = seconds["beyond a job, local:2"]
    common.report(
        "sweep",
        ratios={"study": one / two, "beyond_under_30_ms": MOST / max(beyond, 1e-4)},
        ours={"beyond_ms": round(beyond * 1000, 2), "seconds": round(two, 1), "workers": 2, "threads": 1},
        peer={"seconds": round(one, 1), "workers": 1, "threads": 2, "trials": options.trials},
        equal={"rows": rows["local:2"] == rows["local:1"], "tolerance": 0},
        save=options.save,
        jobs=options.jobs,
    )


if __name__ == "__main__":
    main()
