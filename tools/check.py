"""Lint the files that are named, or that git says have changed, and run the tests that import what they touch.

A test file is run when it is named, when it imports one of the files itself, or when it stands at a file's own place:
tests/edu/hub/test_compose.py for lorahub_edu/hub/compose.py.

    python tools/check.py [FILE …]
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = {"lorahub_edu": "edu", "lorahub_checks": "checks", "lorahub_grader": "grader", "lorahub_studies": "studies"}


def changed() -> list[str]:
    """Files that differ from the last commit, and new ones that git does not ignore."""
    words = ["git", "ls-files", "--modified", "--others", "--exclude-standard", "--deduplicate"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def imports(path: Path) -> set[str]:
    """The dotted names that a file imports: modules, and what is taken out of them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def tests_of(files: list[str]) -> list[str]:
    """The test files that a change of these files concerns, in alphabetical order."""
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files}
    places = set()
    for file in map(Path, files):
        folder = TESTS.get(file.parts[0])
        if folder:
            places.add(Path("tests", folder, *file.parts[1:-1], f"test_{file.name}").as_posix())
    every = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    return [name for name, path in every.items() if name in files or name in places or imports(path) & modules]


def main() -> int:
    """Lint, test, and give the exit code."""
    files = [str(Path(file)) for file in sys.argv[1:]] or changed()
    python = [file for file in files if file.endswith(".py") and (ROOT / file).is_file()]
    commands = [["ruff", "check", *python], ["ruff", "format", "--check", *python]] if python else []
    tests = tests_of(files)
    commands += [["pytest", *tests]] if tests else []
    print(f"{len(files)} files, {len(tests)} test files")
    codes = [subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode for command in commands]
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
