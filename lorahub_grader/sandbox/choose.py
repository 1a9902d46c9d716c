"""Which sandbox there is on this machine, and whether it holds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence

from lorahub_edu.errors import CourseError, near_matches
from lorahub_grader.inside.protocol import ProtocolError
from lorahub_grader.inside.zygote import Settings
from lorahub_grader.sandbox import bubblewrap, containers
from lorahub_grader.sandbox.process import SandboxError, Zygote, start_bare

UNSAFE, CONTAINER = "none", "container"
PROBE_SECONDS = 60.0
# What an answer must not be able to do; each line prints a word when it can.
PROBE = """
import os, socket
if os.geteuid() == 0:
    print("is-root")
for place in ("/", "/usr", "/etc", {package!r}):
    try:
        probe = os.path.join(place, "lorahub-edu-probe")
        open(probe, "w").close()
        os.remove(probe)
        print("writes:" + place)
    except OSError:
        pass
for secret in {secrets!r}:
    if os.access(secret, os.R_OK):
        print("sees:" + secret)
if os.path.exists("/proc/self") and len([p for p in os.listdir("/proc") if p.isdigit()]) > 3:
    print("sees-processes")
if [name for _, name in socket.if_nameindex() if name != "lo"]:
    print("has-network")
try:
    os.setuid(0)
    print("becomes-root")
except OSError:
    pass
"""


Sandbox = Zygote | containers.Containers  # each gives an answer process for each submission
STARTERS: Mapping[str, Callable[[Settings], Sandbox]] = {
    "bubblewrap": bubblewrap.start_zygote,
    "podman": lambda settings: containers.start("podman", settings),
    "docker": lambda settings: containers.start("docker", settings),
    CONTAINER: lambda settings: start_bare(settings, as_nobody=True),
    UNSAFE: start_bare,
}


def start(kind: str, settings: Settings) -> Sandbox:
    """A sandbox of that kind, ready to give answer processes. Raises CourseError: it is unknown or can't be started."""
    if kind not in STARTERS:
        raise CourseError(f"There is no sandbox {kind!r}. {near_matches(kind, STARTERS)}")
    return STARTERS[kind](settings)


def choose(
    wanted: str | None = None,
    unsafe: bool = False,
    secrets: tuple[str, ...] = (),
    kinds: Sequence[str] = ("bubblewrap", "podman", "docker"),
) -> str:
    """The first kind of sandbox that works here and holds, or the wanted one; "none" only where that was allowed.

    Raises CourseError: there is none; what each said, and what to do.
    """
    said = []
    for kind in (wanted,) if wanted else kinds:
        said.append(problem(kind, secrets))
        if not said[-1]:
            return kind
    if unsafe:
        return UNSAFE
    advice = "sudo apt install bubblewrap" if sys.platform == "linux" else "install docker or podman, or grade on Linux"
    raise CourseError(
        "No submission was run, for there is no sandbox. "
        + "; ".join(said)
        + f". What helps: {advice}; on Ubuntu 23.10 and "
        "newer an administrator must allow bwrap to make user namespaces (see docs/teaching.md). Only if you trust "
        "every submission as your own code: --unsafe."
    )


def problem(kind: str, secrets: tuple[str, ...]) -> str:
    """Why a sandbox of this kind does not hold on this machine; "" where it does, or none was asked for."""
    try:
        holes = probe(kind, secrets)
    except SandboxError as error:
        return f"{kind}: {error}"
    return f"{kind}: it has holes ({', '.join(holes)})" if holes and kind != UNSAFE else ""


def probe(kind: str, secrets: tuple[str, ...] = ()) -> list[str]:
    """What an answer in this kind of sandbox can do that it must not be able to; empty when it holds.

    Raises SandboxError: it can't be started, or doesn't answer.
    """
    sandbox = start(kind, Settings())
    source = PROBE.format(package=str(bubblewrap.PACKAGE), secrets=secrets)
    try:
        process = sandbox.open()
        deadline = time.monotonic() + PROBE_SECONDS
        process.channel.send({"do": "cell", "source": source, "number": 0}, deadline=deadline)
        reply, _ = process.channel.receive(deadline)
        process.stop()
    except ProtocolError as error:
        raise SandboxError(f"it does not answer ({error})") from None
    finally:
        sandbox.close()
    if reply.get("error") is not None:
        raise SandboxError(f"the probe failed in it ({reply['error']})")
    holes = [word for output in reply["outputs"] for word in output["text"].split()]
    return [hole for hole in holes if kind != CONTAINER or hole not in ("has-network", "sees-processes")]
