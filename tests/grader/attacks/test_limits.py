"""Attacks on what the machine has: processes, memory, disk, time and output; and the rights of an answer's process."""

from __future__ import annotations

import os

import pytest
from grading_arena import TIMES, only, printed, run
from grading_course import sandbox_or_skip

from lorahub_grader import remote, worker
from lorahub_grader.split import Times
from lorahub_grader.worker import Job


@pytest.fixture(scope="module")
def tight():
    """A sandbox with little memory and few processes."""
    started = sandbox_or_skip(memory=300 << 20, processes=12, scratch_bytes=8 << 20, file_bytes=4 << 20)
    yield started
    started.close()


@pytest.fixture(scope="module")
def loose():
    """The control: the same without these limits."""
    started = sandbox_or_skip(memory=3 << 30, processes=200, scratch_bytes=256 << 20, file_bytes=64 << 20)
    yield started
    started.close()


FORKS = """
import os, time
made = []
for _ in range(60):
    try:
        pid = os.fork()
    except OSError:
        break
    if pid == 0:
        time.sleep(20)
        os._exit(0)
    made.append(pid)
print(len(made))
for pid in made:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
"""
ALLOCATE = "block = bytearray(600 << 20)\nprint(len(block) >> 20)"
FAMILY = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        block = bytearray(b"x") * (150 << 20)
        time.sleep(1.5)
        os._exit(0)
for _ in range(4):
    os.wait()
print("grown")
"""
STRANGERS = """
import subprocess, sys, time
code = "x = bytearray(b'x') * (40 << 20); print(1, flush=True); import sys; sys.stdin.read()"
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
made = [subprocess.Popen([sys.executable, "-S", "-c", code], **pipes) for _ in range(10)]
print(len([process.stdout.readline() for process in made]))
time.sleep(1)
for process in made:
    process.communicate()
"""
WAITING = """
import socket, time
host = socket.socket(socket.AF_UNIX)
host.bind("\\0arena")
host.listen(4096)
for _ in range(2000):
    with socket.socket(socket.AF_UNIX) as guest:
        guest.setblocking(False)
        guest.connect("\\0arena")
        guest.send(bytes(100_000))
time.sleep(1)
print("waiting")
"""
BUFFERS = """
import socket
one, _ = socket.socketpair()
before = one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * before)
print(one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) / before)
"""
DISK = """
import os
written = 0
try:
    for name in range(10):
        with open(os.path.expanduser(f"~/{name}"), "wb") as f:
            f.write(bytes(3 << 20))
        written += 3
except OSError:
    pass
print(written)
"""


def test_a_fork_bomb_stays_small(arena, tight, loose) -> None:
    assert int(printed(arena, FORKS, tight)) < 12
    assert int(printed(arena, FORKS, loose)) == 60


def test_memory_is_limited_in_one_process(arena, tight, loose) -> None:
    assert "MemoryError" in printed(arena, ALLOCATE, tight)
    assert printed(arena, ALLOCATE, loose) == "600"


def test_memory_is_limited_over_all_processes(arena, tight, loose) -> None:
    _, outcome = run(arena, FAMILY, tight)
    assert outcome.reason == "memory" and outcome.earned == 0
    assert "more memory" in outcome.tests[0].message
    text, outcome = run(arena, FAMILY, loose)
    assert text == "grown" and outcome.reason == ""


@pytest.mark.parametrize("code", [STRANGERS, WAITING], ids=["processes that share nothing", "sockets that wait"])
def test_memory_is_counted_wherever_it_is(code: str, arena, tight, loose) -> None:
    assert run(arena, code, tight)[1].reason == "memory"
    assert run(arena, code, loose)[1].reason == ""


def test_a_sockets_buffer_stays_as_it_is(arena, walls, no_walls) -> None:
    assert printed(arena, BUFFERS, walls) == "1.0"
    assert float(printed(arena, BUFFERS, no_walls)) > 1


def test_the_scratch_folder_is_limited(arena, tight, loose) -> None:
    assert int(printed(arena, DISK, tight)) <= 8
    assert printed(arena, DISK, loose) == "30"


ENDLESS = {
    "a loop": ("while True:\n    pass", ""),
    "a loop that is deaf to interrupts": (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True:\n    pass",
        "time",
    ),
    "a loop that swallows interrupts": (
        "while True:\n    try:\n        while True:\n            pass\n    except KeyboardInterrupt:\n        pass",
        "time",
    ),
    "endless output": ("while True:\n    print('x' * 1000)", ""),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_things_end_and_the_next_submission_is_graded(name: str, arena, tight, monkeypatch) -> None:
    monkeypatch.setattr(remote, "GRACE_SECONDS", 0.5)
    code, reason = ENDLESS[name]
    text, outcome = run(arena, code, tight, Times(cell=1, call=1, total=8))
    assert outcome.reason == reason and outcome.earned == 0
    assert len(text) < 50_000
    assert run(arena, "", tight)[1].earned == 1


def test_much_output_is_cut(arena, walls) -> None:
    text, outcome = run(arena, "for _ in range(3000):\n    print('x' * 1000)", walls)
    assert outcome.earned == 1 and len(text) < 21_000 and text.endswith("the rest of the output was dropped")


def test_the_process_that_tests_has_limits_of_its_own(arena, walls) -> None:
    code = "easy = lambda x: 10 ** 4000"
    job = Job(only(arena, {"easy"}), "mallory", "", {"easy": code}, seed="s", times=TIMES)
    outcome = worker.outcome_of(job, *worker.tested(job, walls))
    assert outcome.earned == 0 and outcome.reason == ""


def test_an_answer_process_is_an_ordinary_user_without_rights(arena, walls) -> None:
    text = printed(
        arena,
        "import os\nstatus = dict(line.split(':', 1) for line in open('/proc/self/status') if ':' in line)\n"
        "print(os.getuid() != 0, int(status['CapEff'], 16), int(status['CapPrm'], 16), status['NoNewPrivs'].strip(), "
        "sorted(p for p in os.listdir('/proc') if p.isdigit()), sorted(os.listdir('/proc/self/fd'))[:4])",
        walls,
    )
    assert text.startswith("True 0 0 1 ['1'] ['0', '1', '2', '3']")
    assert os.getpid() != 1
