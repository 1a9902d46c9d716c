"""A small study through Slurm, as one_node.sh starts it: eight Slurm jobs, with the rows of one process.

python tests/slurm/study.py FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from lorahub_edu.models import tiny
from lorahub_studies import cluster, engine, forgetting_sweep
from lorahub_studies.tail_runs import run_tail

QUEUE = """
jobs: 2
slurm:
  queue: debug
  cores: 1
  memory: 2GB
  walltime: "00:10:00"
  interface: lo
  log_directory: {folder}/log
"""


def main() -> None:
    folder = Path(sys.argv[1])
    queue = folder / "slurm.yaml"
    queue.write_text(QUEUE.format(folder=folder), encoding="utf-8")
    fitting = [job for job in forgetting_sweep.settling_jobs() if job.rank <= 64][:24]  # the tiny model admits 128
    jobs = [replace(job, steps=2, profile="tiny", layers=1) for job in fitting]
    here = engine.run(jobs, run_tail, folder / "here")
    rows = []
    for number in range(4):  # two Slurm jobs each
        with cluster.workers(str(queue), bases=[tiny.NAME], folders=[folder]) as executor:
            executor._client.wait_for_workers(2)  # both Slurm jobs get some
            part = jobs[6 * number :][:6]
            rows += engine.run(part, run_tail, folder / "there", executor=executor, report=said)
    rows, here = ([{k: v for k, v in row.items() if "seconds" not in k} for row in found] for found in (rows, here))
    assert rows == here, "rows through Slurm differ from those of one process"
    print(f"{len(rows)} rows through Slurm, equal to those of one process")


def said(job: object, row: dict) -> None:
    print(forgetting_sweep.line(row), flush=True)


if __name__ == "__main__":
    main()
