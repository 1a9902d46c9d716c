"""Is this machine ready for the course? One line for each question, with what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
from requests import Session

from lorahub_edu import results
from lorahub_edu.cli.terminal import nearest
from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets, course
from lorahub_edu.files.assets import size_text
from lorahub_edu.files.sources import describe, find_index, hub_address, why_unreachable, without_password
from lorahub_edu.models.profiles import Profile, get_profile

NETWORK_SECONDS = 3.0
SANDBOX_SECONDS = 10.0
TINY = "tiny"
# What each profile asks of a machine, in GB: memory, disk, GPU memory.
NEEDS = {TINY: (1, 0.1, 0), "cpu": (4, 2, 0), "gpu24": (16, 20, 22)}
UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Check:
    """The answer to one question; `advice` is what to type or do where `ok` is false."""

    name: str
    ok: bool
    required: bool
    detail: str
    advice: str = ""


Answer = tuple[bool, str, str]  # ok, detail, advice


def diagnose(profile: str | None = None) -> list[Check]:
    """The answers to every question, in the order to read them; nothing is raised.

    Nothing is changed, but the machine's speed is kept with the learner's progress, so that it is measured once.
    """
    try:
        chosen = get_profile(profile)
    except CourseError as error:
        return [Check("Profile", False, True, str(error), "lorahub-edu doctor --profile cpu")]
    tiny = chosen.name == TINY
    questions: list[tuple[str, bool, Callable[[Profile], Answer]]] = [
        ("Python", True, _versions),
        ("Device", True, _device),
        ("Speed", False, _speed),
        ("Free memory", True, _memory),
        ("Free disk", True, _disk),
        ("Model", not tiny, _model),
        ("Data", not tiny, _data),
        ("Course", False, _course),
        ("Hugging Face hub", False, _hub),
        ("Package index", False, _index),
        ("Sandbox", False, _sandbox),
    ]
    return [_ask(*question, chosen) for question in questions]


def all_required_ok(checks: Iterable[Check]) -> bool:
    """Whether the course can start."""
    return all(check.ok for check in checks if check.required)


def render(checks: Iterable[Check]) -> str:
    """One line for each check: "ok", "MISSING" (required) or "note", the name, what was seen, what to do."""
    lines = []
    for check in checks:
        state = "ok" if check.ok else "MISSING" if check.required else "note"
        advice = f" -> {check.advice}" if check.advice and not check.ok else ""
        detail = " ".join(f"{check.detail}{advice}".split())  # what a server says starts no second line
        lines.append(f"{state:<9}{check.name:<18}{detail}")
    return "\n".join(lines)


def _ask(name: str, required: bool, probe: Callable[[Profile], Answer], profile: Profile) -> Check:
    try:
        ok, detail, advice = probe(profile)
        return Check(name, ok, required, detail, advice)
    except Exception as error:  # one question that fails leaves the others
        advice = (
            "install the course again" if isinstance(error, ImportError) else "report this line to the course's authors"
        )
        return Check(name, False, required, f"can't be looked at: {type(error).__name__}: {describe(error)}", advice)


def _versions(_: Profile) -> Answer:
    import torch  # noqa: F401 - it is installed, but can it be loaded?

    return True, ", ".join(f"{name} {version}" for name, version in results.library_versions().items()), ""


def _device(profile: Profile) -> Answer:
    import torch

    advice, device = "use --profile cpu, or a machine with an NVIDIA GPU of 24 GB", results.describe_device()
    if not torch.cuda.is_available():
        return profile.device != "cuda", device, advice
    memory = torch.cuda.get_device_properties(0).total_memory
    return memory / 1e9 >= NEEDS[profile.name][2], f"{device}, {size_text(memory)}", advice


def _speed(_: Profile) -> Answer:
    from lorahub_edu.show import findings, progress

    if progress.kept() and findings.slowness() is None:
        progress.note("machine", {results.describe_device(): findings.yardstick_seconds()})
    slower = findings.slowness()
    detail = f"a lesson takes about {slower:.2g} times its published time" if slower else "not measured"
    return True, detail, ""


def _memory(profile: Profile) -> Answer:
    needed = NEEDS[profile.name][0]
    free = min(psutil.virtual_memory().available, _container_memory())
    return free / 1e9 >= needed, f"{size_text(free)} (about {needed} GB needed)", "close other programs and notebooks"


def _container_memory(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes left under a container's limit, which the machine's own figures don't show."""
    try:
        limit, used = (int((folder / f"memory.{name}").read_text(encoding="utf-8")) for name in ("max", "current"))
        entries = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):  # no container, or no limit ("max")
        return UNLIMITED
    # Pages of files that were read count as used, yet the system frees them when a program needs memory.
    return max(0, limit - used + int(entries.get("inactive_file", 0)))


def _disk(profile: Profile) -> Answer:
    needed, folder = NEEDS[profile.name][1], nearest(assets.home().absolute())
    if not os.access(folder, os.W_OK):
        return False, f"{folder} can't be written", "set LORAHUB_EDU_HOME to a folder that you may write to"
    free = shutil.disk_usage(folder).free
    detail = f"{size_text(free)} for {assets.home()} (about {needed} GB needed)"
    return free / 1e9 >= needed, detail, "free some space, or set LORAHUB_EDU_HOME to a folder on another disk"


def _model(profile: Profile) -> Answer:
    if profile.name == TINY:
        return True, "a small random model, made when it is needed", ""
    from lorahub_edu.models import pretrained

    advice, name = f"lorahub-edu fetch --profile {profile.name}", profile.base_model
    if name in assets.ASSETS and not pretrained.is_prepared(name):
        return _asset(name, advice)
    here = pretrained.is_here(name)
    return here, f"{name}: {'ready to load' if here else 'not on this machine'}", advice


def _data(profile: Profile) -> Answer:
    if profile.name == TINY:
        return True, "the rows that come with the course", ""
    return _asset(profile.rows, f"lorahub-edu fetch --profile {profile.name}")


def _course(_: Profile) -> Answer:
    found = course.folder()
    return found is not None, str(found or f"there are no lessons at {Path.cwd()}"), "lorahub-edu init FOLDER"


def _asset(name: str, advice: str) -> Answer:
    """Hashes the file, so that "ok" means right to the last byte."""
    path, reasons = assets.search(assets.ASSETS[name].editions)
    return path is not None, f"{name}: {'here and intact' if path else '; '.join(reasons)}", advice


def _hub(_: Profile) -> Answer:
    return _server(hub_address(), "nothing to do if the package index answers; else set HF_ENDPOINT to a mirror")


def _index(_: Profile) -> Answer:
    urls, session = find_index()
    advice = "nothing to do if the hub answers; else set LORAHUB_EDU_INDEX to a mirror's simple pages"
    return _server(urls[0], advice, session)


def _server(address: str, advice: str, session: Session | None = None) -> Answer:
    reason = why_unreachable(address, NETWORK_SECONDS, session)
    return reason is None, f"{without_password(address)}: {reason or 'answers'}", advice


def _sandbox(_: Profile) -> Answer:
    until = "not needed until submissions are graded"
    program = shutil.which("bwrap")
    if program is None:
        advice = "sudo apt install bubblewrap" if sys.platform == "linux" else "grade on Linux, or in WSL 2"
        return False, f"bubblewrap (bwrap) isn't installed; {until}", advice
    command = [program, "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SANDBOX_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False, f"bubblewrap hangs; {until}", " ".join(command)
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())[:200]
        advice = "allow unprivileged user namespaces: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        return False, f"bubblewrap can't make a sandbox ({reason}); {until}", advice
    return True, f"bubblewrap works ({program})", ""
