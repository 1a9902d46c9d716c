"""The same rows from this process and from workers; bad clusters are refused in one line before any job runs."""

from __future__ import annotations

import json
import pickle
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import hub_modules
import pytest
from plain_jobs import Job, fails_often, has_no_sandbox, times_ten
from typer.testing import CliRunner

from lorahub_edu.cli.app import app
from lorahub_edu.data import tasks
from lorahub_edu.errors import CourseError
from lorahub_edu.models import pretrained, tiny
from lorahub_studies import (
    adapting,
    big_bench,
    cluster,
    comparison,
    engine,
    forgetting_sweep,
    tail_runs,
    zoo_training,
)
from lorahub_studies.adapting import Trial
from lorahub_studies.jobs import alone

pytest.importorskip("distributed")

TARGET = tasks.names("target")[0]
SEARCHED = ("zero_shot", "cma_40", "auto", "lora")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("zoo")
    for file in hub_modules.random_modules(tiny.model()):
        hub_modules.write(file, where)
    return where


def without_times(row: dict) -> dict:
    return {key: value for key, value in row.items() if "seconds" not in key}


@pytest.fixture(scope="module")
def studies(zoo: Path) -> dict[str, tuple[list, Callable[[object], dict]]]:
    """Small jobs of two studies, with what does them."""
    trials = [
        Trial(TARGET, draw, method, folder=str(zoo), profile="tiny", test_items=4)
        for draw in range(2)
        for method in SEARCHED
    ]
    tails = [replace(job, steps=2, profile="tiny", layers=1) for job in forgetting_sweep.settling_jobs()[:2]]
    return {"adapt": (trials, adapting.run), "tails": (tails, tail_runs.run_tail)}


@pytest.fixture(scope="module")
def here(studies, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    rows = {name: engine.run(*study, tmp_path_factory.mktemp("here")) for name, study in studies.items()}
    adapting.bench.cache_clear()
    return {name: list(map(without_times, found)) for name, found in rows.items()}


@pytest.mark.parametrize("counts", [(1,), (4, 2)])
def test_workers_give_the_rows_of_one_process(studies, here, tmp_path: Path, monkeypatch, counts: tuple) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # one worker has all threads, beside other tests' processes
    with cluster.workers(f"local:{counts[0]}", bases=[tiny.NAME]) as executor:
        for count in counts:  # the later counts are fewer: a worker that has gone saves a new one's imports
            executor._client.cluster.scale(count)
            deadline = time.monotonic() + 120
            while (there := len(executor._client.scheduler_info()["workers"])) > count and time.monotonic() < deadline:
                time.sleep(0.05)
            assert there == count
            for name, study in studies.items():
                rows = engine.run(*study, tmp_path / f"{name} {count}", executor=executor)
                assert list(map(without_times, rows)) == here[name]


@pytest.mark.parametrize("on_workers", [False, True])
def test_a_job_that_fails_three_times_has_its_reason_in_the_store(tmp_path: Path, on_workers: bool) -> None:
    jobs = [Job(number, str(tmp_path)) for number in range(3 + on_workers)]
    failed = {}
    with cluster.workers("local:1" if on_workers else "") as executor:
        rows = engine.run(
            jobs, fails_often, tmp_path, executor=executor, failed=lambda job, why: failed.setdefault(job.number, why)
        )
        assert rows == [{"square": 0}, {"square": 4}]
        assert failed[1] == "RuntimeError: try 2 of job 1" and engine.missing(jobs, tmp_path) == jobs[1::2]
        assert not on_workers or failed[3].startswith("KilledWorker")
        store = [json.loads(line) for line in (tmp_path / engine.STORE).read_text().splitlines()]
        assert {line["job"]["number"]: line.get("failed") for line in store} == {0: None, 2: None} | failed
        fixed = engine.run(jobs, times_ten, tmp_path, executor=executor)  # the same call tries the failed ones again
    assert fixed[::2] == rows and fixed[1::2] == [{"square": 10 * job.number} for job in jobs[1::2]]


def test_a_job_that_waits_beside_one_that_kills_its_workers_is_not_blamed(tmp_path: Path) -> None:
    import dask

    jobs = [Job(3, str(tmp_path), seconds=1), Job(0, str(tmp_path)), Job(2, str(tmp_path))]  # the first kills
    failed = {}
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), cluster.workers("local:1") as executor:
        rows = engine.run(
            jobs, fails_often, tmp_path, executor=executor, failed=lambda job, why: failed.setdefault(job.number, why)
        )
    assert rows == [{"square": 0}, {"square": 4}] and failed.keys() == {3}


def test_what_is_wrong_with_the_input_is_said_before_anything_is_done(tmp_path: Path) -> None:
    def refuses(job: Job) -> dict:
        raise CourseError("there is no such module")

    with pytest.raises(CourseError, match="no such module"):
        engine.run([Job(0), Job(1)], refuses, tmp_path)
    assert not engine.count(tmp_path)


def test_a_store_without_its_end_and_one_of_another_study(tmp_path: Path) -> None:
    jobs = [Job(number) for number in range(3)]
    engine.run(jobs[:2], times_ten, tmp_path)
    store = tmp_path / engine.STORE
    store.write_bytes(store.read_bytes()[:-7])  # killed within a line
    assert engine.missing(jobs, tmp_path) == jobs[1:]
    done = []
    rows = engine.run([*jobs, jobs[2]], times_ten, tmp_path, report=lambda job, row: done.append(job.number))
    assert [row["square"] for row in rows] == [0, 10, 20, 20] and done == [1, 2]
    assert len(store.read_text().splitlines()) == engine.count(tmp_path) == 3


def test_jobs_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What crosses to a worker is the job and the name of a function; a model would be 538 MB."""
    settling = forgetting_sweep.settling_jobs()
    grid = comparison.plan()
    of_studies = [
        (adapting.run, adapting.plan()),
        (adapting.run, big_bench.plan(["boolean_expressions"], 2)),
        (tail_runs.run_tail, settling + forgetting_sweep.predict_jobs()),
        (tail_runs.run_intervention, forgetting_sweep.intervene_jobs()),
        (comparison.run, grid.searches()),
        (zoo_training.run, [zoo_training.ModuleJob("upper", "/a/folder" * 20)]),
    ]
    for work, jobs in of_studies:
        assert jobs and max(len(pickle.dumps((work, job))) for job in jobs) <= 2048


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("locl", "no cluster 'locl'"),
        ("local:0", "no cluster 'local:0'"),
        ("no.yaml", "no.yaml describes no queue .*No such file"),
        ("tcp://127.0.0.1:9", "Can't reach the scheduler tcp://127.0.0.1:9"),
    ],
)
def test_a_bad_cluster_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, says: str) -> None:
    monkeypatch.setattr(cluster, "SECONDS", 1)
    done = CliRunner().invoke(app, ["intruders", "sweep", "--study", "settling", "--cluster", where])
    assert isinstance(done.exception, CourseError) and re.search(says, str(done.exception))
    assert "\n" not in str(done.exception)


@pytest.fixture(scope="module")
def scheduler() -> Iterator[tuple[str, Callable[[], None]]]:
    """A scheduler without workers, and a function that gives it one."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as started:
        yield started.scheduler_address, lambda: started.scale(1)


def test_workers_that_lack_something_are_named_before_any_job(scheduler, tmp_path: Path, monkeypatch) -> None:
    address, start_worker = scheduler
    monkeypatch.setattr(cluster, "SECONDS", 1)
    with pytest.raises(CourseError, match=f"{address} has no worker"), cluster.workers(address):
        pass
    start_worker()
    monkeypatch.setattr(cluster, "SECONDS", 60)
    with pytest.raises(CourseError, match=f"does not see {tmp_path}/far: .*share"):
        stack_of(address, folders=[tmp_path / "far"])
    monkeypatch.setattr(pretrained, "is_here", lambda base: True)  # here, not on the worker
    with pytest.raises(CourseError, match="does not have the model flan-t5-large: run lorahub-edu fetch there"):
        stack_of(address, bases=["flan-t5-large"])
    monkeypatch.setattr(cluster, "__version__", "0.0")
    with pytest.raises(CourseError, match="worker tcp://.* has lorahub-edu .*, this machine has 0.0"):
        stack_of(address)


def test_a_worker_that_comes_later_and_lacks_something_gets_no_job() -> None:
    from distributed import Client, LocalCluster

    settings = {"threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    with LocalCluster(0, **settings) as started, Client(started, set_as_default=False) as client:
        client.register_plugin(cluster._gatekeeper(has_no_sandbox), name="lorahub-edu")
        done = client.submit(alone, times_ten, Job(1))
        started.scale(1)
        client.wait_for_workers(1, timeout=120)
        deadline = time.monotonic() + 120
        while client.scheduler_info()["workers"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not client.scheduler_info()["workers"] and not done.done()


def stack_of(address: str, **needs: list) -> None:
    with cluster.workers(address, **needs):
        raise AssertionError("a job could run")


QUEUES = {
    "slurm": ["#SBATCH -p general", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=8G", "#SBATCH -t 04:00:00"],
    "pbs": ["#PBS -q general", "#PBS -l select=1:ncpus=4:mem=7630MB", "#PBS -l walltime=04:00:00"],
}


@pytest.mark.parametrize("kind", QUEUES)
def test_a_dry_run_shows_the_job_script_and_runs_nothing(tmp_path: Path, monkeypatch, kind: str) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    text = re.search(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE).group(1).replace("slurm:", f"{kind}:")
    Path("q.yaml").write_text(text.replace("interface: ib0", "interface: lo"), encoding="utf-8")
    command = ["intruders", "sweep", "--study", "settling", "--cluster", "q.yaml", "--dry-run"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.exception
    script = done.output.splitlines()
    wanted = [*QUEUES[kind], "export OMP_NUM_THREADS=4", "export MKL_NUM_THREADS=4"]
    assert all(line in script for line in wanted), done.output
    (worker,) = (line for line in script if "dask_worker tcp://127.0.0.1:" in line)
    assert re.findall(r"--nthreads (\d)", worker)[-1] == "1"  # one job at a time, with four threads
    assert not list((tmp_path / "runs").rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "q.yaml describes no queue"),
        ("slurms:\n  cores: 1", "describes no queue .*slurms.*names slurm or pbs"),
        ("jobs: 1.5\nslurm:\n  cores: 1\n  memory: 1 GB", "describes no queue .*1.5.* a number of jobs from 1"),
        ("slurm:\n  cores: 1", "describes no queue .*'cores': 1}.*It names"),
        ("jobs: 0\nslurm:\n  cores: 1\n  memory: 1GB", "'jobs': 0.*a number of jobs from 1"),
        ("slurm:\n  cores: 1\n  memory: 1GB\n  quue: x", "does not describe a slurm cluster: .*quue"),
    ],
)
def test_a_wrong_queue_is_one_line(tmp_path: Path, monkeypatch, text: str, says: str) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.chdir(tmp_path)
    Path("q.yaml").write_text(text, encoding="utf-8")
    done = CliRunner().invoke(app, ["intruders", "sweep", "--study", "settling", "--cluster", "q.yaml", "--dry-run"])
    assert isinstance(done.exception, CourseError) and re.search(says, str(done.exception)), done.exception
    assert "\n" not in str(done.exception)
