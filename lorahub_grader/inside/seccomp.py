"""Calls to the kernel that no answer needs: memory that no limit counts, keys that outlive a process, doors to outside.

A filter as in seccomp(2), written for the two processors that the course runs on. It can't be taken back, and every
process that an answer starts has it too.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
KILL, FAIL, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000  # what a filter returns; FAIL carries an error's number
LOAD, EQUAL, AT_LEAST, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06  # of the kernel's filter language
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, (16, 24, 32, 40)  # offsets in what a filter is given
X32_BIT = 0x40000000  # of the second set of numbers on x86-64
NAMESPACES = 0x7E020000  # CLONE_NEWUSER, CLONE_NEWNS and the others
FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK; the network they lead to is empty
SHARED, NOBODYS = 0x2F, 0x21  # the bits of mmap's flags that say whose memory it is; MAP_SHARED and MAP_ANONYMOUS
SOL_SOCKET, SO_SNDBUF, SO_RCVBUF = 1, 7, 8

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
# Numbers on x86-64 and on 64-bit ARM.
CLONE, SOCKET, CLONE3, MMAP, SETSOCKOPT = (56, 220), (41, 198), (435, 435), (9, 222), (54, 208)
REFUSED = {
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "vmsplice": (278, 75),
    "io_setup": (206, 0),
    "syslog": (103, 116),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def program(machine: str) -> bytes:
    """The filter in the kernel's form. `machine`: "x86_64" or "aarch64"."""
    column = list(MACHINES).index(machine)

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    def refuse(number: int, error: int) -> bytes:
        return step(EQUAL, number, 0, 1) + step(RETURN, FAIL | error)

    steps = step(LOAD, ARCHITECTURE) + step(EQUAL, MACHINES[machine], 1, 0) + step(RETURN, KILL)
    steps += step(LOAD, NUMBER)
    if machine == "x86_64":
        steps += step(AT_LEAST, X32_BIT, 0, 1) + step(RETURN, FAIL | errno.ENOSYS)
    for numbers in REFUSED.values():
        steps += refuse(numbers[column], errno.EPERM)
    steps += refuse(CLONE3[column], errno.ENOSYS)  # the C library then calls clone, whose flags can be looked at
    # Shared memory that no file backs stays when no process shows it; larger buffers are granted in word only.
    steps += step(EQUAL, MMAP[column], 0, 5) + step(LOAD, ARGUMENTS[3]) + step(AND, SHARED)
    steps += step(EQUAL, NOBODYS, 0, 1) + step(RETURN, FAIL | errno.EPERM) + step(RETURN, ALLOW)
    steps += step(EQUAL, SETSOCKOPT[column], 0, 7) + step(LOAD, ARGUMENTS[1]) + step(EQUAL, SOL_SOCKET, 0, 4)
    steps += step(LOAD, ARGUMENTS[2]) + step(EQUAL, SO_SNDBUF, 1, 0) + step(EQUAL, SO_RCVBUF, 0, 1)
    steps += step(RETURN, FAIL) + step(RETURN, ALLOW)
    steps += step(EQUAL, CLONE[column], 0, 4) + step(LOAD, ARGUMENTS[0])
    steps += step(ANY_BIT, NAMESPACES, 0, 1) + step(RETURN, FAIL | errno.EPERM) + step(RETURN, ALLOW)
    steps += step(EQUAL, SOCKET[column], 0, 2 + len(FAMILIES)) + step(LOAD, ARGUMENTS[0])
    for left, family in enumerate(reversed(FAMILIES)):
        steps += step(EQUAL, family, len(FAMILIES) - left, 0)
    return steps + step(RETURN, FAIL | errno.EAFNOSUPPORT) + step(RETURN, ALLOW)


def install() -> None:
    """Filter this process's calls, for good; on a processor of another kind nothing is done.

    Raises OSError: the kernel has no filters.
    """
    if platform.machine() not in MACHINES:
        return
    steps = program(platform.machine())
    kept = ctypes.create_string_buffer(steps, len(steps))
    filled = _Program(len(steps) // 8, ctypes.addressof(kept))
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filled), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel takes no filter of system calls")
