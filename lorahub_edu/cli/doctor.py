"""Is this machine ready for the course? One line a question, each with what to do."""

from __future__ import annotations

import io
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lorahub_edu.errors import CourseError
from lorahub_edu.files import assets
from lorahub_edu.files.assets import size_text
from lorahub_edu.files.sources import describe, find_index, hub_address, why_unreachable, without_password
from lorahub_edu.models.profiles import Profile, get_profile

NETWORK_SECONDS = 3.0
SANDBOX_SECONDS = 10.0
OLDEST_PYTHON = (3, 11)
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


Answer = tuple[bool, str, str]


def diagnose(profile: Profile | str | None = None) -> list[Check]:
    """Look at everything the course needs; nothing is changed and nothing is raised.

    Args:
        profile: a profile, its name, or None for the environment's.

    Returns:
        The answers in the order to read them. A look that fails is an answer that isn't ok.
    """
    try:
        profile = profile if isinstance(profile, Profile) else get_profile(profile)
    except CourseError as error:
        return [Check("Profile", False, True, str(error), "lorahub-edu doctor --profile cpu")]
    tiny = profile.name == TINY
    questions: list[tuple[str, bool, Callable[[Profile], Answer]]] = [
        ("Python", True, _python),
        ("torch", True, _torch),
        ("Device", True, _device),
        ("Free memory", True, _memory),
        ("Free disk", True, _disk),
        ("Model", not tiny, _model),
        ("Data", not tiny, _data),
        ("Hugging Face hub", False, _hub),
        ("Package index", False, _index),
        ("Sandbox", False, _sandbox),
    ]
    # The slow ones (two servers, the sandbox) wait beside each other.
    with ThreadPoolExecutor(max_workers=3) as pool:
        waiting = {name: pool.submit(_ask, name, required, probe, profile) for name, required, probe in questions[-3:]}
        checks = [_ask(name, required, probe, profile) for name, required, probe in questions[:-3]]
        return checks + [waiting[name].result() for name, _, _ in questions[-3:]]


def all_required_ok(checks: Iterable[Check]) -> bool:
    """Whether the course can start.

    Args:
        checks: from `diagnose`.

    Returns:
        False as soon as one required check isn't ok.
    """
    return all(check.ok for check in checks if check.required)


def render(checks: Iterable[Check]) -> str:
    """The checks as text, one line each.

    Args:
        checks: from `diagnose`.

    Returns:
        Lines of: "ok", "MISSING" (required) or "note" (not required), the name, what was seen, what to do.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for check in checks:
        state = "ok" if check.ok else "MISSING" if check.required else "note"
        advice = "" if check.ok or not check.advice else f" -> {check.advice}"
        # Nothing a server or a path says may read as markup or start a second line.
        table.add_row(state, check.name, " ".join(f"{check.detail}{advice}".split()))
    text = io.StringIO()
    Console(file=text, width=2000, markup=False, highlight=False, no_color=True, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _ask(name: str, required: bool, probe: Callable[[Profile], Answer], profile: Profile) -> Check:
    try:
        ok, detail, advice = probe(profile)
    except Exception as error:  # a doctor who faints helps nobody
        ok, detail = False, f"can't be looked at: {type(error).__name__}: {describe(error)}"
        advice = "make setup" if isinstance(error, ImportError) else "report this line to the course's authors"
    return Check(name, ok, required, detail, advice)


def _python(_: Profile) -> Answer:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    advice = f"install Python {oldest} or newer and run `make setup` again"
    where = "in a virtual environment" if sys.prefix != sys.base_prefix else "the system's own"
    return sys.version_info[:2] >= OLDEST_PYTHON, f"{platform.python_version()}, {where}", advice


def _torch(_: Profile) -> Answer:
    import torch

    return True, f"{torch.__version__}, {torch.get_num_threads()} threads", ""


def _device(profile: Profile) -> Answer:
    import torch

    gpu_needed = NEEDS.get(profile.name, NEEDS["cpu"])[2]
    advice = "use --profile cpu, or a machine with an NVIDIA GPU of 24 GB"
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        return memory / 1e9 >= gpu_needed, f"cuda: {torch.cuda.get_device_name(0)}, {size_text(memory)}", advice
    backend = getattr(torch.backends, "mps", None)
    metal = ", with mps" if backend is not None and backend.is_available() else ""
    return profile.device != "cuda", f"cpu: {_processor()}, {os.cpu_count()} cores{metal}", advice


def _processor() -> str:
    try:  # Linux leaves platform.processor() empty
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine() or "unknown"


def _memory(profile: Profile) -> Answer:
    import psutil

    needed = NEEDS.get(profile.name, NEEDS["cpu"])[0]
    free = min(psutil.virtual_memory().available, _container_memory())
    return free / 1e9 >= needed, f"{size_text(free)} (about {needed} GB needed)", "close other programs and notebooks"


def _container_memory(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes left under a container's limit, which the machine's own figures don't show."""
    try:
        limit = int((folder / "memory.max").read_text(encoding="utf-8"))
        used = int((folder / "memory.current").read_text(encoding="utf-8"))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):  # no container, or no limit ("max")
        return UNLIMITED
    # Pages of files that were read count as used, yet are given back when asked for.
    return max(0, limit - used + int(statistics.get("inactive_file", 0)))


def _disk(profile: Profile) -> Answer:
    needed = NEEDS.get(profile.name, NEEDS["cpu"])[1]
    folder = assets.home()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{size_text(free)} for {assets.home()} (about {needed} GB needed)"
    if not os.access(folder, os.W_OK):
        return False, f"{folder} can't be written", "set LORAHUB_EDU_HOME to a folder that you may write to"
    return free / 1e9 >= needed, detail, "free some space, or set LORAHUB_EDU_HOME to a folder on another disk"


def _model(profile: Profile) -> Answer:
    if profile.name == TINY:
        return True, "a small random one, made on the spot", ""
    advice = f"lorahub-edu fetch --profile {profile.name}"
    if profile.base_model not in assets.ASSETS:
        return _model_on_hub(profile, advice)
    if _is_prepared(profile.base_model):
        return True, f"{profile.base_model}: converted, ready to load", ""
    return _asset(profile.base_model, advice)


def _is_prepared(name: str) -> bool:
    try:
        from lorahub_edu.models import pretrained
    except ImportError:  # then the file it is converted from is what counts
        return False
    return pretrained.is_prepared(name)


def _model_on_hub(profile: Profile, advice: str) -> Answer:
    """A large model is kept by the hub's own library."""
    from huggingface_hub import try_to_load_from_cache

    from lorahub_edu.models import pretrained

    repo = pretrained.get_base(profile.base_model).repo
    found = isinstance(try_to_load_from_cache(repo, "config.json"), str)
    return found, f"{repo}: {'in' if found else 'not in'} the hub's cache on this machine", advice


def _data(profile: Profile) -> Answer:
    if profile.name == TINY:
        return True, "the rows that come with the course", ""
    return _asset("alpaca", f"lorahub-edu fetch --profile {profile.name}")


def _asset(name: str, advice: str) -> Answer:
    """Hashes the file, so that "ok" means right to the last byte."""
    if assets.is_intact(name):
        path = assets.locate(name)
        return True, f"{path.name}: here and intact", ""
    folders = [folder for folder in (assets.local_folder(), assets.files_folder()) if folder is not None]
    names = [edition.filename for edition in assets.ASSETS[name].editions]
    damaged = [folder / file for folder in folders for file in names if (folder / file).is_file()]
    detail = f"{damaged[0]}: damaged" if damaged else f"{name}: not on this machine"
    return False, detail, advice


def _hub(_: Profile) -> Answer:
    address = hub_address()
    reason = why_unreachable(address, NETWORK_SECONDS)
    advice = "nothing to do if the package index answers; else set HF_ENDPOINT to a mirror"
    return reason is None, f"{without_password(address)}: {reason or 'answers'}", advice


def _index(_: Profile) -> Answer:
    index = find_index()
    reason = why_unreachable(index.urls[0], NETWORK_SECONDS, index)
    advice = "nothing to do if the hub answers; else set LORAHUB_EDU_INDEX to a mirror's simple pages"
    return reason is None, f"{without_password(index.urls[0])}: {reason or 'answers'}", advice


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
        return False, f"bubblewrap hangs; {until}", f"{' '.join(command)}"
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[:200]
        advice = "allow unprivileged user namespaces: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        return False, f"bubblewrap can't make a sandbox ({said}); {until}", advice
    return True, f"bubblewrap works ({program})", ""
