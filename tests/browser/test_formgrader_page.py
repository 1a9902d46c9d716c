"""What a learner wrote, in the page on which a teacher grades: nothing of it runs, wherever it stands."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from grading_course import NAME, make_course

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("nbgrader", reason="nbgrader is not installed: pip install lorahub-edu[teach]")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

from lorahub_grader import assignments, feedback, gradebook  # noqa: E402
from lorahub_grader.gradebook import Course, Recorded, fenced, filled  # noqa: E402
from lorahub_grader.journal import Journal, Outcome  # noqa: E402
from lorahub_grader.split import Result, checked_outputs  # noqa: E402

STRIKE = "window.struck=1"
PAYLOADS = {
    "a script": f"<script>{STRIKE}</script>",
    "a script in capitals": f"<SCRIPT >{STRIKE}</SCRIPT >",
    "a script after a closed block": f"</code></pre><script>{STRIKE}</script>",
    "a script after a closed cell": f"</div></div></div><script>{STRIKE}</script>",
    "a broken picture": f"<img src=x onerror={STRIKE}>",
    "a picture in Markdown": f'![x](x" onerror="{STRIKE})',
    "a picture of other data": f'![x](data:text/html,"onerror={STRIKE})',
    "an SVG": f"<svg onload={STRIKE}>",
    "a script in an SVG": f"<svg><script>{STRIKE}</script></svg>",
    "an animation": f"<svg><animate onbegin={STRIKE} attributeName=x dur=1s>",
    "a link": f"[x](javascript:{STRIKE})",
    "a link in capitals": f"[x](JaVaScRiPt:{STRIKE})",
    "a link with a tab": f"<a href='java\tscript:{STRIKE}'>x</a>",
    "a link by reference": f"[x][y]\n\n[y]: javascript:{STRIKE}",
    "an automatic link": f"<javascript:{STRIKE}>",
    "a frame": f"<iframe srcdoc='<script>parent.{STRIKE[7:]}</script>'></iframe>",
    "a frame of script": f"<iframe src='javascript:parent.{STRIKE[7:]}'></iframe>",
    "an object": f"<object data='javascript:{STRIKE}'></object>",
    "an embedded page": f"<embed src='javascript:{STRIKE}'>",
    "a form": f"<form action='javascript:{STRIKE}'><button autofocus onfocus={STRIKE}>x</button></form>",
    "an input": f"<input autofocus onfocus={STRIKE}>",
    "details": f"<details open ontoggle={STRIKE}>x</details>",
    "a video": f"<video src=x onerror={STRIKE}></video>",
    "a style": f"<style>@import 'javascript:{STRIKE}';</style><p style=\"x:expression({STRIKE})\">",
    "a new base": "<base href='https://nowhere.invalid/'>",
    "a refresh": f"<meta http-equiv=refresh content='0;url=javascript:{STRIKE}'>",
    "a template": f"<template><script>{STRIKE}</script></template><math><mtext><img src=x onerror={STRIKE}>",
    "mathematics": rf"$\href{{javascript:{STRIKE}}}{{x}}$",
    "a script of MathJax": f'<script type="text/x-mathjax-config">{STRIKE}</script>',
    "a fence that is closed": f"```\n<script>{STRIKE}</script>\n```",
    "a longer fence": f"``````\n<script>{STRIKE}</script>",
    "a fence after another end of line": f"x\u2028````\x0b```\x85<script>{STRIKE}</script>",
    "a fence of tildes": f"~~~\n<script>{STRIKE}</script>",
    "colours of a terminal": f"\x1b[31m<script>{STRIKE}</script>\x1b[0m",
}
FOUND = """() => {
    const place = document.querySelector("#notebook-container") || document.body;
    const all = [...place.querySelectorAll("*")];
    const bad = all.filter(e => ["SCRIPT", "IFRAME", "OBJECT", "EMBED", "FORM", "BASE", "META", "SVG", "STYLE", "VIDEO"]
        .includes(e.tagName.toUpperCase()) && !e.dataset.ours
        || [...e.attributes].some(a => a.name.startsWith("on") || /^\\s*j\\s*a\\s*v\\s*a\\s*s/i.test(a.value)));
    return [...bad.map(e => e.outerHTML.slice(0, 100)), ...(window.struck ? ["it ran"] : [])];
}"""


@pytest.fixture(scope="module")
def page():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page()
        browser.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> assignments.Assignment:
    return assignments.load(NAME, make_course(tmp_path_factory.mktemp("course")))


def everywhere(payload: str) -> Outcome:
    """An outcome with the payload in every field that a learner has a say in."""
    outputs = checked_outputs(
        [
            {"text": payload},
            {"data": {"text/plain": payload}},
            {"data": {"image/png": f'"{payload}'}},
            {"data": {"text/html": payload, "image/svg+xml": payload, "application/javascript": payload}},
        ]
    )
    tests = tuple(
        Result(name, 1.0, 0.0, payload, properties=((payload, False, payload, payload),))
        for name in ("test_double", "test_root", "test_guess")
    )
    answers = dict.fromkeys(("double", "root", "guess", "essay"), payload)
    return Outcome(
        NAME, "ada", "", 10.0, tests, notes=(payload,), outputs={2: outputs, 4: outputs}, answers=answers, name=payload
    )


def shown(notebook: nbformat.NotebookNode, page) -> list[str]:
    """What of a page that formgrader makes can run or lead away."""
    from nbconvert.exporters import HTMLExporter
    from nbgrader.server_extensions.formgrader import handlers
    from traitlets.config import Config

    config = Config()
    config.HTMLExporter.template_name = "formgrade"
    config.HTMLExporter.extra_template_basedirs = [handlers.template_path]
    words = {"assignment_id": NAME, "notebook_id": NAME, "submission_id": "1", "index": 0, "total": 1, "base_url": ""}
    words |= {"student": "ada", "last_name": "", "first_name": "", "notebook_path": ""}
    html, _ = HTMLExporter(config=config).from_notebook_node(notebook, resources=words)
    page.set_content(html, wait_until="domcontentloaded")
    page.wait_for_timeout(50)
    return page.evaluate(FOUND)


def recorded(small: assignments.Assignment, outcome: Outcome, folder: Path) -> nbformat.NotebookNode:
    journal = Journal(folder)
    journal.keep(outcome)
    said = {"nbgrader": {"assignment": NAME, "student": "ada"}}
    return Recorded(journal=str(folder)).preprocess(filled(small, outcome), said)[0]


@pytest.mark.parametrize("name", PAYLOADS)
def test_nothing_runs_in_formgrader(name: str, small, page, tmp_path: Path) -> None:
    assert shown(recorded(small, everywhere(PAYLOADS[name]), tmp_path), page) == []


@pytest.mark.parametrize("name", PAYLOADS)
def test_nothing_runs_in_the_feedback(name: str, small, page) -> None:
    html = feedback.render(small, everywhere(PAYLOADS[name]), feedback.Grades())
    page.set_content(html.replace("<style>", "<style data-ours=1>").replace("<meta", "<meta data-ours=1"))
    page.wait_for_timeout(50)
    assert page.evaluate(FOUND) == []


def test_most_of_them_do_run_in_plain_markdown(small, page) -> None:
    dangerous = []
    for name, payload in PAYLOADS.items():
        notebook = nbformat.from_dict(small.notebook)
        essay = next(cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == "essay")
        essay.source = payload
        dangerous += [name] if shown(notebook, page) else []
    assert len(dangerous) >= 20


def test_a_text_is_shown_as_it_was_written(small, page) -> None:
    text = "Because $x < y$ and `a` **b**:\n\n```\ncode\n```\n<b>x</b>"
    notebook = nbformat.from_dict(small.notebook)
    next(cell for cell in notebook.cells if cell.cell_type == "markdown").source = fenced(text)
    shown(notebook, page)
    assert text in page.inner_text("#notebook-container")


TOKEN = "lorahub-edu-test"  # noqa: S105 - of a server that lives for one test
MISSED = ["a script", "a link", "a frame", "details"]
WATCH = "window.refused = []; addEventListener('securitypolicyviolation', e => window.refused.push(e.blockedURI))"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a hand-in in formgrader, which cleans nothing here, and the file of its notebook."""
    root = make_course(tmp_path_factory.mktemp("served"))
    settings = (assignments.ROOT / "nbgrader_config.py").read_text(encoding="utf-8")
    (root / "nbgrader_config.py").write_text(settings + "c.HTMLExporter.sanitize_html = False\n", encoding="utf-8")
    course, small = Course(root), assignments.load(NAME, root)
    with gradebook.writing(course):
        gradebook.prepare(course, small)
        gradebook.record(course, small, course.journal.keep(everywhere("x")))
    with course.open() as book:
        number = book.find_submission_notebook(NAME, NAME, "ada").id
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folders = {f"JUPYTER_{kind}_DIR": str(root / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    command = [sys.executable, "-m", "jupyter_server", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={root}", "--no-browser"]
    with (root / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | folders, cwd=root, stdout=log, stderr=log)
    try:
        for _ in range(480):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.25)
        else:
            pytest.fail("formgrader did not start:\n" + (root / "log").read_text()[-2000:])
        address = f"http://127.0.0.1:{port}/formgrader/submissions/{number}/?token={TOKEN}"
        yield address, root / "autograded" / "ada" / NAME / f"{NAME}.ipynb"
    finally:
        server.terminate()
        server.wait(20)


def visit(served: tuple[str, Path], essay: str, page) -> None:
    """Open the hand-in with this essay in it, as if it had never been made into a block of code."""
    address, path = served
    made = nbformat.read(path, as_version=4)
    next(cell for cell in made.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == "essay").source = essay
    path.chmod(0o644)
    nbformat.write(made, path)
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_timeout(200)


@pytest.fixture(scope="module")
def pages(page):
    """A page that heeds a policy and notes what it refuses, and one that heeds none; neither reaches the world."""
    made = []
    for careless in (False, True):
        made.append(page.context.browser.new_context(bypass_csp=careless).new_page())
        made[-1].add_init_script(WATCH)
        made[-1].route(lambda url: "127.0.0.1" not in url, lambda route: route.abort())
    yield made
    for one in made:
        one.context.close()


def test_formgraders_own_scripts_run_under_its_policy(served, pages) -> None:
    visit(served, "in words", pages[0])
    pages[0].click("span.name-hidden.glyphicon")
    assert pages[0].is_visible("a.name-shown") and pages[0].evaluate("typeof Backbone") == "object"
    assert pages[0].evaluate("window.refused") == []


@pytest.mark.parametrize("name", MISSED)
def test_the_policy_stops_what_nothing_has_cleaned(name: str, served, pages) -> None:
    for one in reversed(pages):  # without the policy it strikes, in less time than is waited with it
        visit(served, PAYLOADS[name], one)
        for link in one.query_selector_all(".rendered_html a[href^=javascript]"):
            link.click(no_wait_after=True)
        if one is pages[1]:
            one.wait_for_function("window.struck == 1", timeout=20_000)
    pages[0].wait_for_timeout(500)
    assert pages[0].evaluate("window.struck") is None
