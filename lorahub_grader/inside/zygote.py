"""A process that has the large libraries in memory and forks a clean child for each submission.

It is started inside the sandbox, before any test or secret is in memory, and runs no learner's code itself. For each
job it is handed two sockets: one for the answer process, one for the keeper, a process that stands over it, takes its
measure and ends it. `python -m lorahub_grader.inside.zygote SETTINGS DESCRIPTOR` starts it on the control socket's
descriptor.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass

import numpy as np

from lorahub_grader.inside import answers, namespaces, seccomp

CHANNEL = 3  # an answer process's only descriptor beside the standard ones
GLANCE_SECONDS = 0.05  # between two looks at memory and processes


@dataclass(frozen=True)
class Limits:
    """What one answer process may use, with all processes that it starts.

    `memory` comes on top of what the preloaded libraries take; seconds are wall-clock but for `cpu_seconds`.
    """

    memory: int = 3 << 30
    cpu_seconds: int = 300
    seconds: int = 300
    processes: int = 64
    open_files: int = 256
    file_bytes: int = 64 << 20
    scratch_bytes: int = 256 << 20


@dataclass(frozen=True)
class Settings:
    """How a zygote works: what it preloads, whether it makes namespaces, which users answers become.

    `uid` is the first of a range from which each submission gets one of its own; None keeps the zygote's user.
    `may_import` are the rooms of the package that answers may import; None is all.
    """

    preload: tuple[str, ...] = ()
    namespaces: bool = True
    uid: int | None = None
    scratch: str = "/tmp"
    limits: Limits = Limits()
    may_import: tuple[str, ...] | None = None


def main() -> None:
    """Prepare once, then fork for every pair of sockets that arrives, until the control socket closes."""
    told = json.loads(sys.argv[1])
    settings = Settings(**told | {"limits": Limits(**told["limits"])})
    namespaces.die_with_parent()
    answers.prepare(settings.preload)
    control = socket.socket(fileno=int(sys.argv[2]))
    control.sendall(b"r")  # ready
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        with contextlib.suppress(ChildProcessError):  # what ended keepers and theirs took is counted as this process's
            while os.waitpid(-1, os.WNOHANG if message else 0)[0]:
                pass
        if not message:
            return
        answer, life = descriptors
        if os.fork() == 0:
            control.close()
            try:
                keep(settings, answer, life)
            except BaseException:
                traceback.print_exc()  # to the file that the sandbox's starter reads
            finally:
                os._exit(0)
        os.close(answer)
        os.close(life)


def keep(settings: Settings, answer: int, life: int) -> None:
    """Start an answer process, watch it, end it when asked or when it takes too much, and say how it ended.

    `life`: the keeper's own: "i" interrupts the answer process, end of file ends it; how it ended is written to it.
    """
    namespaces.die_with_parent()
    zygote, shared = os.getppid(), namespaces.resident_bytes(os.getpid())
    if settings.namespaces:
        namespaces.unshare(namespaces.CLONE_NEWPID)  # the first in there ends all in there
    child = os.fork()
    if child == 0:
        os.close(life)
        run(settings, answer)
    os.close(answer)
    known = {1, os.getpid(), zygote} if settings.namespaces else None
    started, reason = time.monotonic(), ""
    while not reason:
        ready = select.select([life], [], [], GLANCE_SECONDS)[0]
        if ready:
            word = os.read(life, 1)
            if word == b"i":
                os.kill(child, signal.SIGINT)
                continue
            reason = "asked"
        elif os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            reason = "died"
        elif time.monotonic() - started > settings.limits.seconds:
            reason = "time"
        elif known is not None:
            count, memory = namespaces.memory_of_others(known, child, shared, settings.limits.memory)
            if memory > settings.limits.memory:
                reason = "memory"
            elif count > 2 * settings.limits.processes:
                reason = "processes"
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if not settings.namespaces:  # else the child is the first of its namespace, whose end is the end of all in it
            os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.write(life, reason.encode())


def run(settings: Settings, answer: int) -> None:
    """Turn this fresh fork into an answer process: nothing of the others in sight, no rights, limits, then serve."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if answer != CHANNEL:
            os.dup2(answer, CHANNEL)
        os.closerange(CHANNEL + 1, os.sysconf("SC_OPEN_MAX"))
        limits = settings.limits
        if settings.namespaces:
            namespaces.unshare(namespaces.CLONE_NEWNS | namespaces.CLONE_NEWIPC | namespaces.CLONE_NEWNET)
            namespaces.mount_private(settings.scratch, limits.scratch_bytes)
            if settings.uid is None:
                namespaces.count_apart()
        if settings.namespaces or settings.uid is not None:
            namespaces.forget_keys()
            # A user of its own, so that its processes are counted apart from those of other submissions.
            namespaces.drop_privileges(None if settings.uid is None else settings.uid + secrets.randbelow(1 << 24))
            seccomp.install()
        namespaces.die_with_parent()  # not before: a change of user takes it back
        os.environ["HOME"] = tempfile.mkdtemp(prefix="home-", dir=settings.scratch)
        os.chdir(os.environ["HOME"])
        processes = {"NPROC": limits.processes} if settings.namespaces or settings.uid is not None else {}
        files = {"NOFILE": limits.open_files, "FSIZE": limits.file_bytes}
        namespaces.limit(limits.memory, CPU=limits.cpu_seconds, **files, **processes)
        random.seed()  # as a fresh process would have them
        np.random.seed()
        answers.serve(CHANNEL, CHANNEL)
        code = 0
    except BaseException:
        traceback.print_exc()  # seen by the sandbox's starter as long as nothing of the learner's has run
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
