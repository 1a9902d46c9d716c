"""The most memory that this process has had resident; a room of its own, so that importing it costs nothing."""

from __future__ import annotations

import resource
from pathlib import Path

STATUS = Path("/proc/self/status")
FORGET = Path("/proc/self/clear_refs")  # Linux: writing 5 starts the peak anew at what is resident now


def forget() -> None:
    """Leave what this process has needed so far out of its peak; where the system can't, it stays in."""
    if FORGET.exists():
        FORGET.write_text("5", encoding="ascii")


def gigabytes() -> float:
    """The most memory that this process has had resident since `forget`."""
    if STATUS.exists():  # getrusage would not fall below what the parent had when it started this process
        line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) * 1024 / 1e9, 4)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 4)
