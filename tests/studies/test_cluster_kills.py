"""Driver, scheduler and workers are killed at random moments; whoever starts them again gets the same table."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from plain_jobs import Job

from lorahub_studies import engine

pytest.importorskip("distributed")

JOBS, SECONDS, KILLS = 300, 0.05, 24
GUARD = 900.0  # seconds: only against a hang


class Cast:
    """Scheduler, two workers and a driver: each is started again when it has ended, as a service would do."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        address = f"tcp://127.0.0.1:{port}"
        dask = [sys.executable, "-m"]
        worker = [*dask, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
        drive = f"from plain_jobs import drive; drive({address!r}, {str(folder)!r}, {JOBS}, {SECONDS})"
        listen = ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
        self.commands = {
            "scheduler": [*dask, "distributed.cli.dask_scheduler", *listen],
            "worker 1": [*worker, "--death-timeout", "60"],
            "worker 2": [*worker, "--death-timeout", "60"],
            "driver": [sys.executable, "-c", drive],
        }
        self.folder = folder
        self.running: dict[str, subprocess.Popen] = {}
        path = os.pathsep.join([str(Path(__file__).parent.parent / "helpers"), *filter(None, sys.path)])
        self.environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.log = (folder / "log").open("w")

    def keep_up(self) -> None:
        """Start whatever does not run."""
        for name, command in self.commands.items():
            if name not in self.running or self.running[name].poll() is not None:
                self.running[name] = subprocess.Popen(
                    command, cwd=self.folder, env=self.environment, stdout=self.log, stderr=self.log
                )

    def kill(self, name: str, draw: random.Random) -> None:
        """End one of them, or the process that a worker's nanny looks after, without a word."""
        process = psutil.Process(self.running[name].pid)
        with_children = [process, *(process.children() if name.startswith("worker") else [])]
        draw.choice(with_children).send_signal(signal.SIGKILL)

    def close(self) -> None:
        for process in self.running.values():
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
                child.kill()
            process.kill()
            process.wait()
        self.log.close()


def test_whatever_is_killed_the_table_is_the_same(tmp_path: Path) -> None:
    draw, killed, started = random.Random(17), Counter(), time.monotonic()
    cast = Cast(tmp_path)
    order = draw.sample(sorted(cast.commands) * (KILLS // 4), KILLS)
    jobs = [Job(number, seconds=SECONDS) for number in range(JOBS)]
    try:
        while True:
            assert time.monotonic() - started < GUARD, (killed, (tmp_path / "log").read_text()[-3000:])
            done = engine.count(tmp_path)
            if done == JOBS and cast.running["driver"].poll() == 0:
                break
            cast.keep_up()
            # A kill comes after at least so many further rows: the run gets somewhere between two of them.
            if killed.total() < KILLS and done >= killed.total() * JOBS // (KILLS + 2):
                time.sleep(draw.uniform(0.0, 0.5))
                name = order[killed.total()]
                cast.kill(name, draw)
                killed[name] += 1
            time.sleep(0.1)
    finally:
        cast.close()
    store = [json.loads(line) for line in (tmp_path / engine.STORE).read_text().splitlines()]
    print(f"killed: {dict(killed)}; {len(store)} rows of {JOBS} jobs in {time.monotonic() - started:.0f} s")
    assert killed.total() == KILLS
    assert Counter(line["key"] for line in store) == Counter(map(engine._key, jobs))  # none lost, none counted twice
    assert engine.stored(jobs, tmp_path) == [{"square": 10 * number} for number in range(JOBS)]
