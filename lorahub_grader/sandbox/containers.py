"""Docker or podman, where there is no bubblewrap: one container a submission, without network and rights.

The image (see docs/teaching.md) has Python and this package; nothing of the course is mounted into it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from lorahub_grader.inside.protocol import Channel
from lorahub_grader.inside.zygote import Settings
from lorahub_grader.sandbox.process import SandboxError

IMAGE = "lorahub-edu-answers"
LOOK_SECONDS = 30.0
STOP_SECONDS = 20.0


@dataclass
class ContainerProcess:
    """One submission's container: its standard input and output are the channel."""

    program: str
    name: str
    process: subprocess.Popen
    channel: Channel
    errors: IO[bytes] = field(repr=False)
    ending: str = ""

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self._say("kill", "--signal", "INT", self.name)

    def stop(self) -> str:
        """End the container if it has not ended yet: how it ended, as `AnswerProcess.ending`."""
        if not self.ending:
            asked, killed = self.process.poll() is None, False
            self._say("kill", self.name)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
            state = self._say("inspect", "--format", "{{json .State}}", self.name)
            self._say("rm", "--force", self.name)
            self.process.stdin.close()
            self.process.stdout.close()
            self.errors.close()
            with suppress(ValueError, AttributeError):  # nothing was said where the container is gone
                killed = json.loads(state).get("OOMKilled", False)
            self.ending = "memory" if killed else "asked" if asked else "died"
        return self.ending

    def _say(self, *words: str) -> str:
        with suppress(subprocess.TimeoutExpired):
            return subprocess.run([self.program, *words], capture_output=True, text=True, timeout=STOP_SECONDS).stdout
        return ""


@dataclass(frozen=True)
class Containers:
    """Gives a fresh container for each submission."""

    program: str
    settings: Settings

    def open(self) -> ContainerProcess:
        """Start one. Raises SandboxError: the program is gone."""
        name = f"lorahub-edu-{uuid.uuid4().hex[:16]}"
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the container is stopped
        try:
            process = subprocess.Popen(
                [self.program, *arguments(name, self.settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )
        except OSError as error:
            raise SandboxError(f"{self.program} can't be started ({error})") from None
        reader, writer = process.stdout.fileno(), process.stdin.fileno()
        for descriptor in (reader, writer):
            os.set_blocking(descriptor, False)
        return ContainerProcess(self.program, name, process, Channel(reader, writer), errors)

    def close(self) -> None:
        """Nothing is left over: each container ends with its submission."""


def start(program: str, settings: Settings) -> Containers:
    """See that docker or podman is here and has the image. Raises SandboxError: it isn't, or hasn't."""
    found = shutil.which(program)
    if found is None:
        raise SandboxError(f"{program} is not installed")
    try:
        done = subprocess.run([found, "image", "inspect", IMAGE], capture_output=True, text=True, timeout=LOOK_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"{program} does not answer ({type(error).__name__})") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[:200]
        recipe = Path(__file__).with_name("Dockerfile")
        raise SandboxError(f"{said or 'no image'}; build it with: {program} build -t {IMAGE} -f {recipe} .")
    return Containers(found, settings)


def arguments(name: str, settings: Settings) -> list[str]:
    """What docker or podman is told; see docker-run(1)."""
    limits = settings.limits
    told = ["run", "--interactive", "--name", name, "--network", "none", "--ipc", "private", "--hostname", "grader"]
    told += ["--read-only", "--tmpfs", f"/tmp:rw,nosuid,nodev,mode=1777,size={limits.scratch_bytes}"]
    told += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "65534:65534"]
    told += ["--memory", str(limits.memory), "--memory-swap", str(limits.memory), "--cpus", "1"]
    told += ["--pids-limit", str(limits.processes), "--ulimit", f"nofile={limits.open_files}"]
    told += ["--ulimit", f"fsize={limits.file_bytes}", "--ulimit", f"cpu={limits.cpu_seconds}", "--ulimit", "core=0"]
    told += ["--env", "HOME=/tmp", "--env", "OMP_NUM_THREADS=1", "--env", "HF_HUB_OFFLINE=1", "--env", "USER=learner"]
    return [*told, IMAGE, "python", "-I", "-m", "lorahub_grader.inside.answers"]
