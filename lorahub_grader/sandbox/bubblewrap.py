"""A zygote inside bubblewrap: no network, own processes, a read-only system, nothing of the course but the package."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import lorahub_checks
import lorahub_edu
from lorahub_grader import inside
from lorahub_grader.inside.zygote import Settings
from lorahub_grader.sandbox.process import FIRST_USER, SandboxError, Zygote, clean_environment, program, start

SYSTEM = ("/usr", "/etc/alternatives", "/etc/ld.so.cache", "/etc/fonts")
LINKED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
NEEDED = ("CAP_SYS_ADMIN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_SYS_PTRACE")
NO_ZERO = ("--dev-bind", "/dev/null", "/dev/zero")  # mapped, it is shared memory that no process shows
PACKAGE = Path(lorahub_edu.__file__).resolve().parent
CHECKS = Path(lorahub_checks.__file__).resolve().parent
WITHHELD = Path(__file__).with_name("withheld.txt")
ALWAYS = ("show", "files", "results", "errors")  # rooms that checks need where answers live; none of them is an answer
INSIDE = Path(inside.__file__).resolve().parent


def start_zygote(settings: Settings, readable: tuple[Path, ...] = ()) -> Zygote:
    """A zygote in bubblewrap; as root the answers become an ordinary user, who may read the `readable` folders too.

    Raises SandboxError: bubblewrap is missing or may not make namespaces here.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError("bubblewrap (bwrap) is not installed: sudo apt install bubblewrap")
    uid = FIRST_USER if os.geteuid() == 0 else None
    folders = read_in_there(readable)
    scratch = _scratch(folders)
    settings = replace(settings, namespaces=True, uid=uid, scratch=scratch)
    told = arguments(folders, scratch, settings.may_import)
    return start([found, *told, "--", *program(settings)], clean_environment(scratch))


def withheld(may_import: tuple[str, ...] | None) -> list[str]:
    """What bubblewrap is told so that answers can't import what they should write: such a room raises ImportError."""
    told = []
    for path in sorted(PACKAGE.iterdir()) if may_import is not None else ():
        if path.name == "__pycache__":  # what was compiled can be loaded without its source
            told += ["--tmpfs", str(path), "--remount-ro", str(path)]
        if path.name.startswith("_") or path.stem in (*ALWAYS, *may_import):
            continue
        if path.suffix == ".py":
            told += ["--ro-bind", str(WITHHELD), str(path)]
        elif (path / "__init__.py").is_file():
            told += ["--tmpfs", str(path), "--ro-bind", str(WITHHELD), str(path / "__init__.py")]
            told += ["--remount-ro", str(path)]
    return told


def read_in_there(readable: tuple[Path, ...] = ()) -> tuple[Path, ...]:
    """Folders that are shown inside besides the system: Python's, the package's, and those asked for."""
    folders = (sys.base_prefix, sys.prefix, PACKAGE, INSIDE, *readable)
    found = dict.fromkeys(Path(os.path.abspath(folder)) for folder in folders)
    return tuple(folder for folder in found if not folder.is_relative_to("/usr"))


def _scratch(folders: tuple[Path, ...]) -> str:
    """Where answers may write: /tmp, unless the course itself lies there, which an empty /tmp would hide."""
    return "/scratch" if any(folder.is_relative_to("/tmp") for folder in folders) else "/tmp"


def arguments(folders: tuple[Path, ...], scratch: str, may_import: tuple[str, ...] | None = None) -> list[str]:
    """What bubblewrap is told; see bwrap(1).

    The zygote keeps the capabilities with which it makes namespaces for each submission; the answer processes have
    none.
    `folders`: what can be read in there besides the system.
    """
    as_root = os.geteuid() == 0
    shared = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    told = [*shared, *([] if as_root else ["--unshare-user"]), "--cap-drop", "ALL"]
    for capability in NEEDED:
        told += ["--cap-add", capability]
    told += ["--hostname", "grader", "--die-with-parent", "--new-session"]
    for folder in SYSTEM:
        told += ["--ro-bind-try", folder, folder]
    for folder in LINKED:
        if os.path.islink(folder):
            told += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            told += ["--ro-bind", folder, folder]
    told += ["--proc", "/proc", "--dev", "/dev", *NO_ZERO, "--perms", "1777", "--tmpfs", scratch]
    made = {Path("/"), Path("/usr"), Path(scratch)}
    for folder in folders:
        for parent in reversed(folder.parents):
            if parent not in made:  # bubblewrap would make it unreadable for others
                told += ["--perms", "0755", "--dir", str(parent)]
                made.add(parent)
        told += ["--ro-bind", str(folder), str(folder)]
    package = str(INSIDE.parent / "__init__.py")
    told += ["--ro-bind", package, package]
    if any(CHECKS.is_relative_to(folder) for folder in (*folders, *SYSTEM)):  # the checks hold references
        told += ["--tmpfs", str(CHECKS), "--remount-ro", str(CHECKS)]
    return [*told, *withheld(may_import), "--remount-ro", "/", "--chdir", scratch]
