"""Workers for the commands' jobs, by dask.distributed: processes here, a scheduler's, or jobs of Slurm or PBS."""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lorahub_edu import __version__
from lorahub_edu.cli.terminal import checking, console, errors
from lorahub_edu.errors import CourseError
from lorahub_studies import jobs

QUEUES = {"slurm": "SLURMCluster", "pbs": "PBSCluster"}  # dask-jobqueue's classes
WORKER_BYTES = 3 << 30  # a model, its modules and a step: `local` starts no more workers than the memory holds
SECONDS = 10  # for a scheduler or its first worker to answer


def _check(where: str) -> None:
    kind, _, count = where.partition(":")
    if "://" in where or where == "local" or (kind == "local" and count.isdigit() and 1 <= int(count) <= 256):
        return
    if not where.endswith((".yaml", ".yml")):
        raise CourseError(f"There is no cluster {where!r}: give local, local:2, tcp://HOST:PORT, or a file slurm.yaml.")
    read_queue(Path(where))


ClusterOption = Annotated[
    str,
    typer.Option(
        callback=checking(_check), help="local, local:N, tcp://HOST:PORT or slurm.yaml; default this process alone."
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only show the job script that slurm.yaml makes.")]


def read_queue(file: Path) -> tuple[str, dict[str, Any], int]:
    """The kind of queue that a file describes, the arguments of dask-jobqueue's class, and the number of jobs.

    Raises CourseError: no such file, no YAML, or not one queue with cores and memory.
    """
    import yaml

    content = None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        count = content.get("jobs", 1)
        ((kind, arguments),) = ((key, value) for key, value in content.items() if key != "jobs")
        if (
            kind not in QUEUES
            or not arguments["memory"]
            or min(count, arguments["cores"]) < 1
            or type(count) is not int
        ):
            raise ValueError
    except (OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        seen = error if isinstance(error, OSError | UnicodeError | yaml.YAMLError) else content
        raise CourseError(
            f"{file} describes no queue ({' '.join(str(seen).split())[:100]}). It names slurm or pbs, with cores and "
            f"memory of one job, and a number of jobs from 1: docs/scale.md has an example."
        ) from None
    return kind, arguments, count


@contextmanager
def workers(
    where: str,
    *,
    bases: Sequence[str] = (),
    folders: Sequence[Path] = (),
    able: Callable[[], str] | None = None,
    dry_run: bool = False,
) -> Iterator[Executor | None]:
    """Workers that each do one job at a time; None where there is no cluster.

    `where` is what `ClusterOption` takes. Every worker must have the base models and see the folders, where it reads or
    writes. `able`, an importable function, is asked on every worker; one that answers with a reason gets no job.
    `dry_run` shows the job script and ends.
    Raises CourseError: Dask is not installed, the scheduler can't be reached or has no worker, or a worker lacks a
        thing.
    """
    if dry_run and not where.endswith((".yaml", ".yml")):
        raise CourseError("--dry-run shows the job script of a queue: give --cluster slurm.yaml.")
    if not where:
        yield None
        return
    try:
        from distributed import Client
    except ImportError:
        raise CourseError("A cluster needs Dask: pip install 'lorahub-edu[cluster]'") from None
    with ExitStack() as stack:
        cluster = where
        if "://" not in where:
            cluster = stack.enter_context(_local(where) if where.startswith("local") else _queue(Path(where), dry_run))
        try:
            client = stack.enter_context(Client(cluster, timeout=SECONDS, set_as_default=False))
        except (OSError, ValueError, TimeoutError) as error:
            raise CourseError(
                f"Can't reach the scheduler {where} ({type(error).__name__}). Start it with dask scheduler, and check "
                f"address and firewall."
            ) from None
        errors.print(f"dashboard: {client.dashboard_link}", markup=False)
        _await_worker(client, where)
        question = partial(problem, expected=facts(), bases=tuple(bases), folders=tuple(map(str, folders)))
        for address, answer in client.run(question, on_error="return").items():
            if answer:
                raise CourseError(f"The worker {address} {_words(answer)}")
        hosts = _hosts(client, able) if able else None
        if not where.startswith("local"):  # those that come later are asked too
            client.register_plugin(_gatekeeper(question), name="lorahub-edu")
            stack.callback(_forget, client)
        yield stack.enter_context(client.get_executor(pure=False, **({"workers": hosts} if hosts else {})))


def facts() -> dict[str, str]:
    """What must be the same on every worker, for rows to be the same: this code and its libraries."""
    from lorahub_edu import results

    digest, root = hashlib.sha256(), Path(__file__).resolve().parents[1]
    for path in sorted(root.glob("lorahub_*/**/*.py")):
        digest.update(path.read_bytes())
    course = f"{__version__} ({digest.hexdigest()[:8]})"
    return {"lorahub-edu": course, "python": platform.python_version(), **results.library_versions()}


def problem(expected: dict[str, str], bases: tuple[str, ...], folders: tuple[str, ...]) -> str:
    """On a worker: what it lacks, in words; "" for nothing."""
    own = facts()
    for name, version in expected.items():
        if own.get(name) != version:
            return f"has {name} {own.get(name, '(none)')}, this machine has {version}: install the same there."
    for base in bases:
        from lorahub_edu.models import pretrained

        if not pretrained.is_here(base):
            return f"does not have the model {base}: run lorahub-edu fetch there, or share LORAHUB_EDU_HOME."
    for folder in folders:
        if not Path(folder).exists():
            return f"does not see {folder}: choose a folder that all machines share."
    return ""


def _words(answer: str | BaseException) -> str:
    if isinstance(answer, ImportError):
        return f"can't import the course ({answer}): install lorahub-edu {__version__} there."
    return answer if isinstance(answer, str) else f"does not answer: {type(answer).__name__}: {answer}"


@contextmanager
def _local(where: str) -> Iterator[Any]:
    import psutil
    from distributed import LocalCluster

    cores = psutil.cpu_count() or 1
    count = int(where.partition(":")[2] or max(1, min(cores, psutil.virtual_memory().total // WORKER_BYTES)))
    threads = str(max(1, cores // count))
    with LocalCluster(
        n_workers=count,
        threads_per_worker=1,
        memory_limit=None,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
        env={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
    ) as cluster:
        yield cluster


@contextmanager
def _queue(file: Path, dry_run: bool) -> Iterator[Any]:
    import dask_jobqueue

    kind, arguments, count = read_queue(file)
    arguments = {"processes": 1} | arguments
    threads = max(1, arguments["cores"] // arguments["processes"])
    prologue = [f"export {name}={threads}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]
    arguments["job_script_prologue"] = prologue + arguments.get("job_script_prologue", [])
    arguments["worker_extra_args"] = [*arguments.get("worker_extra_args", []), "--nthreads", "1"]
    try:
        cluster = getattr(dask_jobqueue, QUEUES[kind])(**arguments)
    except (TypeError, ValueError) as error:
        raise CourseError(f"{file} does not describe a {kind} cluster: {str(error).splitlines()[0]}") from None
    with cluster:
        if dry_run:
            console.print(cluster.job_script(), markup=False)
            raise typer.Exit
        cluster.scale(jobs=count)
        yield cluster


def _await_worker(client: Any, where: str) -> None:
    """Wait for the first worker: shortly at a scheduler, as long as it takes in a queue."""
    while not client.scheduler_info()["workers"]:
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=SECONDS)
            return
        if "://" in where:
            raise CourseError(f"The scheduler {where} has no worker: start some with dask worker {where} --nthreads 1.")
        errors.print("waiting for the first worker …")


def _hosts(client: Any, able: Callable[[], str]) -> list[str]:
    """The machines whose workers can do the jobs; a worker that is started again gets them too."""
    answers = {address: _words(answer) for address, answer in client.run(able, on_error="return").items()}
    bad = {address.rpartition("/")[2].rpartition(":")[0]: answer for address, answer in answers.items() if answer}
    good = {address.rpartition("/")[2].rpartition(":")[0] for address in answers} - set(bad)
    for host, answer in bad.items():
        errors.print(f"{host} gets no job: {answer}", markup=False)
    if not good:
        raise CourseError(f"No worker can do this: {next(iter(bad.values()))}")
    return sorted(good)


def _gatekeeper(question: Callable[[], str]) -> Any:
    """A plugin that sends a worker away which lacks something."""
    from distributed import WorkerPlugin

    class Gatekeeper(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            if lacking := question():
                jobs.REFUSED.set()
                # Once it has started: before, it would wait for its own start.
                worker.loop.call_later(0.5, worker.close, nanny=True, reason=f"it {lacking}")

    return Gatekeeper()


def _forget(client: Any) -> None:
    with suppress(OSError, TimeoutError, ValueError):
        client.unregister_worker_plugin("lorahub-edu")
