"""Starting zygotes and getting answer processes from them, whatever stands around them, also nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

from lorahub_edu.errors import CourseError
from lorahub_grader.inside.protocol import Channel
from lorahub_grader.inside.zygote import Settings

START_SECONDS = 180.0  # importing torch, transformers and peft on a slow disk
STOP_SECONDS = 20.0
FIRST_USER = 1 << 30  # far above the users of any machine


class SandboxError(CourseError):
    """A sandbox can't be made, or broke."""


def explain(reason: str) -> str:
    """Why points are missing, in words for learner and teacher; a reason without words of its own says it itself."""
    words = {
        "time": "it took too long, or did not stop when it was interrupted",
        "memory": "it took more memory than a submission may have",
        "processes": "it started more processes than a submission may have",
        "died": "its process ended early (os._exit, a crash, or too much memory at once)",
        "broken": "the sandbox broke twice under it",
    }
    return words.get(reason, reason)


@dataclass
class AnswerProcess:
    """One submission's process: a channel to talk to it, and the keeper's socket to interrupt and end it.

    `ending`: "asked" when it was there to the end; else "died", "time", "memory", "processes" or "lost"; "" before it.
    """

    channel: Channel
    sockets: tuple[socket.socket, socket.socket]
    ending: str = ""

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        with suppress(OSError):
            self.sockets[1].send(b"i")

    def stop(self) -> str:
        """End the process and all it started, if it has not ended yet: how it ended."""
        if not self.ending:
            answer, life = self.sockets
            answer.close()
            life.settimeout(STOP_SECONDS)
            with suppress(OSError):
                life.shutdown(socket.SHUT_WR)
                self.ending = life.recv(100).decode()
            self.ending = self.ending or "lost"
            life.close()
        return self.ending


@dataclass
class Zygote:
    """A running zygote and the socket on which it takes jobs."""

    process: subprocess.Popen
    control: socket.socket
    errors: IO[bytes] = field(repr=False)
    scratch: Path | None = None

    def open(self) -> AnswerProcess:
        """A fresh answer process. Raises SandboxError: the zygote is gone."""
        answer, answer_there = socket.socketpair()
        life, life_there = socket.socketpair()
        with answer_there, life_there:
            try:
                socket.send_fds(self.control, [b"j"], [answer_there.fileno(), life_there.fileno()])
            except OSError:
                raise SandboxError(f"The sandbox broke. {self._said()}") from None
        answer.setblocking(False)
        return AnswerProcess(Channel(answer.fileno(), answer.fileno()), (answer, life))

    def close(self) -> None:
        """End the zygote with everything in it."""
        self.control.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.errors.close()
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _said(self) -> str:
        text = " ".join(os.pread(self.errors.fileno(), 1 << 20, 0).decode(errors="replace").split())
        return f"It said: {text[-400:]}" if text else "It said nothing."


def start(command: Sequence[str], environment: dict[str, str], scratch: Path | None = None) -> Zygote:
    """Start a zygote and wait until it has its libraries.

    Args:
        command: what to run; the control socket's descriptor is added to it.
        scratch: a folder of its own that goes when it ends.
    Raises SandboxError: it ended before it was ready, or takes longer than three minutes.
    """
    control, there = socket.socketpair()
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the zygote
    with there:
        process = subprocess.Popen(
            [*command, str(there.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[there.fileno()],
            env=environment,
            cwd="/",
        )
    zygote = Zygote(process, control, errors, scratch)
    control.settimeout(START_SECONDS)
    try:
        ready = control.recv(1) == b"r"
    except TimeoutError:
        process.kill()
        ready = False
    if not ready:
        said = zygote._said()
        zygote.close()
        raise SandboxError(f"The sandbox could not be started. {said}")
    control.settimeout(None)
    return zygote


def start_bare(settings: Settings, as_nobody: bool = False) -> Zygote:
    """A zygote with nothing around it, for `--unsafe` and inside a container that is itself the sandbox.

    Answers can read and reach what their user can. `as_nobody` makes that a user without rights, for which this process
    must be root.
    Raises SandboxError: this process is not root and should be.
    """
    if as_nobody and os.geteuid() != 0:
        raise SandboxError("Only root can run answers as another user: run this inside a container, as root.")
    scratch = Path(tempfile.mkdtemp(prefix="lorahub-edu-answers-"))
    scratch.chmod(0o1777)
    settings = replace(settings, namespaces=False, uid=FIRST_USER if as_nobody else None, scratch=str(scratch))
    return start(program(settings), clean_environment(str(scratch)), scratch)


def program(settings: Settings) -> list[str]:
    """The command that is a zygote, without anything around it."""
    told = json.dumps(asdict(settings))
    return [sys.executable, "-I", "-X", "faulthandler=0", "-m", "lorahub_grader.inside.zygote", told]


def clean_environment(scratch: str) -> dict[str, str]:
    """The variables that an answer process sees: none of this process's but what Python and torch need."""
    return {
        "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), "/usr/bin", "/bin"]),
        "HOME": scratch,
        "TMPDIR": scratch,
        "USER": "learner",
        "LOGNAME": "learner",
        "LANG": "C.UTF-8",
        "IPYTHONDIR": f"{scratch}/ipython",
        "MPLCONFIGDIR": f"{scratch}/matplotlib",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # Jupyter's kernel loads a debugger, which warns about Python itself
    }
