"""Linux namespaces, limits and capabilities for one answer process, inside the sandbox that was made around all of
them.

Python 3.11 has no call for them, so the C library is called. Nothing here knows what is run afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x08000000, 0x20000000, 0x40000000
CLONE_NEWUSER = 0x10000000
KEYCTL, KEYCTL_JOIN_SESSION_KEYRING = {"x86_64": 250, "aarch64": 219}, 1
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SOCKET_BYTES, DATAGRAMS = 288 << 10, 11  # of a socket's usual buffer with its surplus; in a queue: see unix(7)
CAPABILITY_VERSION_3 = 0x20080522


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(kinds: int) -> None:
    """Give this process namespaces of its own, see unshare(2); those of processes begin with its next child.

    Raises OSError: the kernel or the sandbox around does not allow it.
    """
    _checked(_libc().unshare(kinds), "unshare")


def mount_private(scratch: str, scratch_bytes: int) -> None:
    """Fresh and empty /proc, scratch folder and shared memory, seen by this process and its children only."""
    libc = _libc()

    def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
        arguments = (text.encode() if text is not None else None for text in (source, target, kind))
        data = options.encode() if options else None
        _checked(libc.mount(*arguments, flags, data), f"mount {target}")

    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("none", "/dev", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    for target in (scratch, "/dev/shm"):
        mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, f"size={scratch_bytes},nr_inodes=20000,mode=1777")
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def forget_keys() -> None:
    """Leave the teacher's keyring for an empty one: see keyctl(2)."""
    if platform.machine() in KEYCTL:
        _libc().syscall(KEYCTL[platform.machine()], KEYCTL_JOIN_SESSION_KEYRING, None)


def count_apart() -> None:
    """Have this process and its children counted by themselves where all answers have one user (see `limit`).

    A user namespace of its own gives it a count of its own (Linux 5.14 and newer); elsewhere the count is shared.
    """
    user, group = os.geteuid(), os.getegid()
    if _libc().unshare(CLONE_NEWUSER) == 0:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")


def limit(memory: int, **limits: int) -> None:
    """Limit this process and each of its children for good, by the names of setrlimit(2).

    `memory` is bytes of address space beyond what is mapped now.
    """
    if sys.platform == "linux":
        limits["AS"] = mapped_bytes() + memory
    for name, value in (limits | {"CORE": 0}).items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def drop_privileges(uid: int | None) -> None:
    """Become an ordinary user without any capability, for good.

    `uid`: the user and group to become; None keeps the present one.
    """
    libc = _libc()
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # refused where it may not be done or there is none such
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _checked(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    _checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    if sys.platform == "linux":
        _libc().prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)


def memory_of_others(known: set[int], first: int, shared_bytes: int, limit: int) -> tuple[int, int]:
    """How many processes there are beside the known ones, and the bytes that are theirs alone, with their sockets'.

    The `first` started the others; their network is its own. `shared_bytes` are shared with the process that it was
    forked from. Only a sum above `limit` is worth the time to count shared pages once.
    """
    others = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) not in known]
    beside = socket_bytes(first) - shared_bytes
    found = beside + sum(map(resident_bytes, others))
    if found > limit:
        found = beside + sum(map(proportional_bytes, others))
    return len(others), max(0, found)


def mapped_bytes() -> int:
    """The address space of this process in bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()


def resident_bytes(pid: int) -> int:
    """Anonymous and shared memory of a process in bytes, be it swapped out or not; 0 when it is gone."""
    return _sum(f"/proc/{pid}/status", ("RssAnon:", "RssShmem:", "VmSwap:", "VmPTE:"))


def proportional_bytes(pid: int) -> int:
    """The same, where each page counts by the share that this process has in it; a little slower to find."""
    return _sum(f"/proc/{pid}/smaps_rollup", ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")) or resident_bytes(pid)


def socket_bytes(pid: int) -> int:
    """The most that the local sockets of a process's network hold, also those that wait for a listener."""
    lines = []
    for name in ("unix", "netlink"):
        with contextlib.suppress(OSError):
            lines += Path(f"/proc/{pid}/net/{name}").read_text(encoding="ascii", errors="replace").splitlines()[1:]
    return SOCKET_BYTES * sum(DATAGRAMS if line.split()[4] == "0002" else 1 for line in lines)


def _sum(path: str, names: tuple[str, ...]) -> int:
    try:
        lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(names))
