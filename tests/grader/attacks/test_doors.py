"""Attacks through calls to the kernel: memory that no limit counts, keys, doors to outside, processes of others."""

from __future__ import annotations

import platform
import time

import pytest
from grading_arena import printed
from grading_course import sandbox_or_skip

from lorahub_grader.inside import seccomp

CALL = f"""
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
column = {list(seccomp.MACHINES).index(platform.machine()) if platform.machine() in seccomp.MACHINES else 0}
def call(name_or_numbers, *arguments):
    numbers = {seccomp.REFUSED | {"clone": seccomp.CLONE, "clone3": seccomp.CLONE3}!r}
    result = libc.syscall(numbers[name_or_numbers][column], *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def attempt(deed):
    try:
        print("GOT", deed())
    except OSError as error:
        print("REFUSED", error.errno)
"""
MEMORY = {
    "a memfd": "attempt(lambda: os.write(os.memfd_create('x'), b'x' * (8 << 20)))",
    "a memfd by its number": "attempt(lambda: call('memfd_create', b'x', 0))",
    "shared memory of System V": "attempt(lambda: call('shmget', 0, 8 << 20, 0o1600))",
    "a queue of messages": "attempt(lambda: call('msgget', 0, 0o1600))",
    "a user namespace to mount in": "attempt(lambda: call('unshare', 0x10000000))",
    "a user namespace by clone": "attempt(lambda: call('clone', 0x10000011, None, None, None, None) or os._exit(0))",
    "a user namespace by clone3": "flags = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17)\n"
    "attempt(lambda: call('clone3', flags, 64) or os._exit(0))",
    "a file under /dev": "attempt(lambda: open('/dev/arena-plant', 'wb').write(b'x' * (8 << 20)))",
    "a folder under /dev": "attempt(lambda: os.mkdir('/dev/arena-folder'))",
    "shared memory of nobody": "import mmap\nattempt(lambda: len(mmap.mmap(-1, 8 << 20)))",
    "shared memory of /dev/zero": "import mmap\nzero = os.open('/dev/zero', os.O_RDWR)\n"
    "attempt(lambda: len(mmap.mmap(zero, 8 << 20)))",
    "pages left in a pipe": "attempt(lambda: call('vmsplice', os.pipe()[1], None, 0, 0))",
    "a queue of reads": "attempt(lambda: call('io_setup', 8, ctypes.byref(ctypes.c_ulong(0))))",
    "memory of a ring": "attempt(lambda: call('io_uring_setup', 64, (ctypes.c_uint32 * 30)()))",
}
KEYS = {
    "a key is left": "attempt(lambda: call('add_key', b'user', b'arena', b'2718', 4, -3))",
    "the keyring is read": "attempt(lambda: call('keyctl', 11, -3, ctypes.create_string_buffer(64), 64))",
    "a keyring is joined": "attempt(lambda: call('keyctl', 1, b'arena'))",
    "a key is asked for": "attempt(lambda: call('request_key', b'user', b'arena', None, -3))",
}
OUTSIDE = {
    "the host of a virtual machine": "attempt(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))",
    "packets of others": "attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))",
    "the kernel's ciphers": "attempt(lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET))",
    "another's memory": "attempt(lambda: call('process_vm_readv', 1, None, 0, None, 0, 0))",
    "another's steps": "attempt(lambda: call('ptrace', 0, 0, 0, 0))",
    "the kernel's log": "attempt(lambda: call('syslog', 10, None, 0))",
    "an event counter": "attempt(lambda: call('perf_event_open', None, 0, -1, -1, 0))",
}
HARMLESS = """
import socket, subprocess, threading
from concurrent.futures import ThreadPoolExecutor
import multiprocessing
with socket.socketpair()[0], socket.socket() as ours:
    ours.bind(("127.0.0.1", 0))
subprocess.run(["true"], check=True)
with ThreadPoolExecutor(2) as threads:
    threads.submit(abs, -1).result()
lock = multiprocessing.get_context("fork").Lock()
with lock:
    print("FINE")
"""


@pytest.mark.skipif(platform.machine() not in seccomp.MACHINES, reason="no filter for this processor")
@pytest.mark.parametrize("name", [*MEMORY, *KEYS, *OUTSIDE])
def test_no_answer_gets_through(name: str, arena, walls, no_walls) -> None:
    code = CALL + {**MEMORY, **KEYS, **OUTSIDE}[name]
    assert printed(arena, code, walls).startswith("REFUSED")
    if not printed(arena, code, no_walls).startswith("GOT"):
        pytest.skip("this machine refuses it even without the walls")


def test_what_answers_need_still_works(arena, walls) -> None:
    assert printed(arena, HARMLESS, walls) == "FINE"


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_the_filter_ends_on_every_path(machine: str) -> None:
    steps = [seccomp.program(machine)[at : at + 8] for at in range(0, len(seccomp.program(machine)), 8)]
    for index, step in enumerate(steps):
        code, if_true, if_false = int.from_bytes(step[:2], "little"), step[2], step[3]
        if code != seccomp.RETURN:
            assert index + 1 + max(if_true, if_false) < len(steps)
    assert int.from_bytes(steps[-1][:2], "little") == seccomp.RETURN


def test_one_submissions_processes_do_not_count_against_another() -> None:
    sandbox = sandbox_or_skip(processes=12)
    try:
        first, second = sandbox.open(), sandbox.open()
        fork = (
            "import os, time\nfor _ in range(9):\n    if os.fork() == 0:\n        time.sleep(60)\n        os._exit(0)"
        )
        for process in (first, second):
            process.channel.send({"do": "cell", "source": fork, "number": 1}, deadline=time.monotonic() + 60)
            assert process.channel.receive(time.monotonic() + 60)[0]["error"] is None
    finally:
        for process in (first, second):
            process.stop()
        sandbox.close()
