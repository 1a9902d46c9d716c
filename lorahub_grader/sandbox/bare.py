"""A zygote with nothing around it: for `--unsafe`, and inside a container that is itself the sandbox."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from lorahub_grader.inside.zygote import Settings
from lorahub_grader.sandbox.process import SandboxError, Zygote, clean_environment, program, start

FIRST_USER = 1 << 30  # far above the users of any machine


def start_zygote(settings: Settings, as_nobody: bool = False) -> Zygote:
    """A zygote on this machine as it is: answers can read and reach what their user can.

    `as_nobody`: answers run as an ordinary user without rights, for which this process must be root.
    Raises SandboxError: this process is not root and should be.
    """
    if as_nobody and os.geteuid() != 0:
        raise SandboxError("Only root can run answers as another user: run this inside a container, as root.")
    scratch = Path(tempfile.mkdtemp(prefix="lorahub-edu-answers-"))
    scratch.chmod(0o1777)
    settings = replace(settings, namespaces=False, uid=FIRST_USER if as_nobody else None, scratch=str(scratch))
    return start(program(settings), clean_environment(str(scratch)), scratch)
