"""Instruction rows for tests, and files that hold them."""

from __future__ import annotations

from pathlib import Path

GOOD = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
WITHOUT = {"instruction": "Say hello.", "output": "Hello!"}


def write(folder: Path, name: str, content: bytes | str) -> Path:
    """A file of that content."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path
