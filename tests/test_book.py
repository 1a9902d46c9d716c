"""The book holds every lesson and page, and a reader's browser asks no other host for anything."""

from __future__ import annotations

import ast
import functools
import http.server
import json
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import build_book
import pytest
from ink import contrast

from lorahub_edu.show import figures

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LESSONS = sorted((ROOT / "lessons").glob("*.ipynb"))
PAGES = [
    "index",
    "docs/claims",
    "docs/glossary",
    "docs/cheatsheet",
    "docs/teaching",
    "docs/adapters",
    "docs/house",
    "cite",
]
# What a browser loads by itself: not what a reader may click on.
LOADED = re.compile(
    r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=\"(?:https?:)?//[^\"]*\"|url\(\s*['\"]?(?:https?:)?//"
)

# Colours of a figure as the page shows them: the theme filters pictures in the dark.
SHOWN = """colours => {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.filter = getComputedStyle(document.querySelector(".cell_output img")).filter;
  return colours.map(colour => {
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(value => value / 255);
  });
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The website, built without a warning."""
    pytest.importorskip("sphinx", reason="the extra book is not installed")
    try:
        build_book.vendor(build_book.BUILD / "vendor")
    except SystemExit as missing:
        pytest.skip(str(missing))
    out = tmp_path_factory.mktemp("book") / "html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["build_book.py", "--out", str(out)])
        build_book.main()
    return out


def read(site: Path, page: str) -> str:
    return (site / f"{page}.html").read_text(encoding="utf-8")


def test_every_page_is_there_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    assert {*PAGES, *(f"lessons/{lesson.stem}" for lesson in LESSONS), "search"} <= pages
    for path in [*site.glob("*.html"), *site.glob("*/*.html"), *site.glob("_static/*.css")]:
        assert not LOADED.findall(path.read_text(encoding="utf-8")), path.name


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ('<script src="https://cdn.example/x.js">', True),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', True),
        ("@import url('https://fonts.example/x')", True),
        ('<a href="https://arxiv.org/abs/2106.09685">', False),
        ('<script src="../_static/x.js">', False),
    ],
)
def test_a_foreign_script_would_be_found(text: str, loads: bool) -> None:
    assert bool(LOADED.search(text)) == loads


class Server(http.server.BaseHTTPRequestHandler):
    """A stand-in for the outside: one page is there, all else is gone."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/here" else 404)
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def log_message(self, *_: object) -> None: ...


def test_a_dead_link_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    pytest.importorskip("sphinx", reason="the extra book is not installed")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    source = shutil.copytree(ROOT / "book", tmp_path / "source")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        (source / "index.md").write_text(f"# Links\n\n[one]({address}/here)\n", encoding="utf-8")
        assert build_book.sphinx(source, tmp_path / "out", "linkcheck") == 0
        assert address not in capfd.readouterr().err
        (source / "more.md").write_text(f"# More\n\n[one]({address}/here), [two]({address}/gone)\n", encoding="utf-8")
        assert build_book.sphinx(source, tmp_path / "out", "linkcheck") != 0
        server.shutdown()
    said = capfd.readouterr().err
    assert f"{address}/gone" in said and f"{address}/here" not in said


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_a_lesson_is_as_published_with_its_bookkeeping_collapsed(site: Path, lesson: Path) -> None:
    page, cells = read(site, f"lessons/{lesson.stem}"), json.loads(lesson.read_text(encoding="utf-8"))["cells"]
    hidden = [cell for cell in cells if "hide-input" in cell["metadata"].get("tags", [])]
    assert page.count("<details class=") >= len(hidden) > 0 and "<details open" not in page
    assert page.count('class="prev-next') and "btn-download-source-button" in page
    assert (site / "_sources" / "lessons" / lesson.name).is_file()
    pictures = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert page.count("<img") >= len(pictures)


def test_the_reference_holds_what_is_public(site: Path) -> None:
    for file in (ROOT / "lorahub_edu" / "lora").glob("[!_]*.py"):
        (page,) = (site / "reference").glob("*_lora.html")
        text = re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert re.search(rf"(def|class) {node.name}\b", text), node.name
    rooms = [path.stem.partition("_")[2] for path in sorted((site / "reference").glob("*.html"))]
    assert rooms.index("errors") < rooms.index("lora") < rooms.index("hub") < rooms.index("cli")


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    handler.func.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_it_is_whole_and_alone(address: str, scheme: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    said: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (400, 1400):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            own = (address, "data:", "blob:")
            page.on("request", lambda asked: said.append(asked.url) if not asked.url.startswith(own) else None)  # noqa: B023
            page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: said.append(str(error)))
            for name in ("index", "lessons/06_composing", "docs/claims"):
                page.goto(f"{address}/{name}.html")
                if name.startswith("lessons"):
                    page.wait_for_selector("mjx-container")
                    page.wait_for_selector(".noUi-handle")
                    card, black, *inks = page.evaluate(SHOWN, ["white", "black", *figures.COLOURS])
                    assert contrast(black, card) >= 4.5 and min(contrast(ink, card) for ink in inks) >= 3
                page.wait_for_load_state("networkidle")
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate("document.documentElement.dataset.theme") == scheme
                for nameless in ("img:not([alt])", ".noUi-handle:not([aria-label])", "summary[aria-label]"):
                    assert not page.locator(nameless).count(), f"{nameless}: a screen reader has no word for it"
        browser.close()
    assert not said
