"""The house in numbers and in words.

    python tools/house.py             lines, files, public names, lessons: read from the sources
    python tools/house.py --write     writes the table of floors in docs/house.md from the tests and docstrings
    python tools/house.py --trace     files in which a function runs during `train`, `adapt` and `intruders`

--root FOLDER measures another checkout.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lorahub_edu", "lorahub_checks", "lorahub_grader", "lorahub_studies")
COMMANDS = {
    "train": "train --profile tiny --steps 2 --out out",
    "adapt": "adapt --profile cpu --task last_word_upper --budget 24 --test-items 4 --out out",
    "intruders": "intruders adapter --base base",
}
BEGIN, END = "<!-- floors: python tools/house.py --write -->\n", "<!-- end of floors -->\n"


def sizes(root: Path) -> dict[str, dict[str, int]]:
    """Lines, files, public functions and classes, and lines of docstrings, of each package."""
    table = {}
    for package in PACKAGES:
        row = {"lines": 0, "files": 0, "public names": 0, "docstring lines": 0}
        for path in (root / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
            public = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
            row["lines"] += len(text.splitlines())
            row["files"] += 1
            row["public names"] += sum(not node.name.startswith("_") for node in public)
            row["docstring lines"] += sum(map(_docstring_lines, ast.walk(tree)))
        if row["files"]:
            table[package] = row
    return table


def _docstring_lines(node: ast.AST) -> int:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
        return node.body[0].end_lineno - node.body[0].lineno + 1
    return 0


def lessons(root: Path) -> dict[str, dict[str, int]]:
    """For each lesson: modules of the packages that it imports, and the lines of its longest visible code cell."""
    table = {}
    for path in sorted((root / "lessons" / "src").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
        names = {(node.module, alias.name) for node in imports for alias in node.names}
        modules = {
            f"{module}.{name}" if _is_module(root, f"{module}.{name}") else module
            for module, name in names
            if module.partition(".")[0] in PACKAGES
        }
        _, *cells = re.split(r"^# %%", text, flags=re.MULTILINE)
        heads = [cell.partition("\n")[0] for cell in cells]
        shown = [c for h, c in zip(heads, cells, strict=True) if "[markdown]" not in h and "hide-input" not in h]
        longest = max(len(cell.partition("\n")[2].strip("\n").splitlines()) for cell in shown)
        table[path.stem] = {"modules": len(modules), "longest cell": longest}
    return table


def _is_module(root: Path, dotted: str) -> bool:
    path = root.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def floors(root: Path) -> str:
    """The table of floors and rooms, the face first, as Markdown."""
    tree = ast.parse((root / "tests" / "test_house.py").read_text(encoding="utf-8"))
    (table,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "FLOORS")
    lines = ["| floor | rooms |", "|---|---|"]
    for floor, rooms in reversed(ast.literal_eval(table).items()):
        lines.append(f"| {floor} | " + " · ".join(f"`{room}` {_sentence(root, room)}" for room in rooms) + " |")
    return "\n".join(lines) + "\n"


def _sentence(root: Path, room: str) -> str:
    path = root / "lorahub_edu" / room / "__init__.py"
    path = path if path.is_file() else root / "lorahub_edu" / f"{room}.py"
    sentence = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0].rstrip(".")
    sentence = re.sub(rf"^{room}: ", "", sentence, flags=re.IGNORECASE).removeprefix("LoRAHub: ")
    return re.sub(r"^[A-Z](?=[a-z ])", lambda first: first.group().lower(), sentence)


def with_floors(page: str, table: str) -> str:
    """A page with the table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table + END + rest.partition(END)[2]


def trace(root: Path, command: str) -> list[str]:
    """The packages' files in which a function runs while a command does: those that its reader opens."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(root)}
        words = [sys.executable, __file__, "--root", str(root), "--run", command]
        subprocess.run(words, check=True, env=environment, cwd=folder, stdout=subprocess.DEVNULL)
        return json.loads((Path(folder) / "files.json").read_text())


def _run(root: Path, command: str) -> None:
    files: set[str] = set()

    def watch(frame, event, _argument) -> None:  # noqa: ANN001 - what sys.setprofile calls
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(root)) and name not in files and not _while_importing(frame, root):
            files.add(name)

    if command == "intruders":
        _make_adapter()
    sys.argv = ["lorahub-edu", *COMMANDS[command].split()]
    sys.path.insert(0, str(root))
    start = "lorahub_edu" if (root / "lorahub_edu" / "__main__.py").is_file() else "lorahub_edu.cli"
    sys.setprofile(watch)
    try:
        runpy.run_module(start, run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise
    finally:
        sys.setprofile(None)
    ours = (Path(name).relative_to(root).as_posix() for name in files if Path(name).is_relative_to(root))
    Path("files.json").write_text(json.dumps(sorted(name for name in ours if name.startswith(PACKAGES))))


def _while_importing(frame, root: Path) -> bool:  # noqa: ANN001
    """Whether a module's or class's body runs, or was what called the function."""
    while frame is not None:
        if not frame.f_code.co_flags & inspect.CO_OPTIMIZED and frame.f_globals.get("__name__") != "__main__":
            return frame.f_code.co_filename.startswith(str(root))
        frame = frame.f_back
    return False


def _make_adapter() -> None:
    """A small LLaMA in the folder base, and an adapter on it in the folder adapter."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 288, "intermediate_size": 300, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4))
    model.save_pretrained("base")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained("adapter")


def main() -> None:
    """Print what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = options.root.resolve()
    if options.run:
        _run(root, options.run)
    elif options.write:
        page = root / "docs" / "house.md"
        page.write_text(with_floors(page.read_text(encoding="utf-8"), floors(root)), encoding="utf-8")
    elif options.trace:
        for command in COMMANDS:
            files = trace(root, command)
            print(f"{command}: {len(files)} files: {', '.join(files)}")
    else:
        for name, row in (sizes(root) | lessons(root)).items():
            print(f"{name:22s} " + ", ".join(f"{value:,} {key}" for key, value in row.items()))


if __name__ == "__main__":
    main()
