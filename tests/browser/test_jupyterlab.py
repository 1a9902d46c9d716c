"""A lesson in JupyterLab as a learner opens it: every cell runs, and the panel answers the keyboard."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorahub_edu.show import lessons

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]
FLAGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
)
TOKEN = "lorahub-edu-test"  # noqa: S105 - of a server that lives for one test


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab on a free port of this machine, with folders of its own and copies of the lessons."""
    scratch = tmp_path_factory.mktemp("lab")
    (scratch / "notebooks").mkdir()
    for path in lessons.LESSONS.glob("*.ipynb"):
        shutil.copy(path, scratch / "notebooks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folders = {f"JUPYTER_{kind}_DIR": str(scratch / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment = os.environ | folders | {"IPYTHONDIR": str(scratch / "ipython"), "LORAHUB_EDU_PROFILE": "tiny"}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
        f"--ServerApp.root_dir={scratch / 'notebooks'}",
    ]  # fmt: skip
    log = (scratch / "log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(240):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.25)
        else:
            pytest.fail("JupyterLab did not start:\n" + (scratch / "log").read_text()[-2000:])
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.parametrize("name", ["01_lora_from_scratch"])
def test_every_cell_runs_and_the_slider_moves_the_picture(lab: str, name: str, tmp_path: Path) -> None:
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, args=FLAGS.split(), viewport={"width": 1300, "height": 1000}
        )
        page = browser.pages[0]
        page.goto(f"{lab}/lab/tree/{name}.ipynb?token={TOKEN}&reset")
        page.wait_for_function(
            """() => {
                const session = window.jupyterapp?.shell?.currentWidget?.sessionContext?.session;
                return session?.kernel?.status === 'idle' && session.kernel.connectionStatus === 'connected';
            }""",
            timeout=90_000,
        )
        assert "Error" not in page.title()
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        errors = page.evaluate(
            """() => {
                const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells;
                return cells.flatMap(cell => (cell.getOutputs?.() ?? []).filter(o => o.output_type === 'error'));
            }"""
        )
        assert errors == []
        panel = page.locator(".widget-vbox:has(img)").first  # a prediction's panel has a slider and no picture
        slider = panel.locator(".noUi-handle").first
        slider.scroll_into_view_if_needed(timeout=30_000)
        picture = panel.locator("img").first
        before = picture.get_attribute("src")
        slider.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "([img, old]) => img.src !== old", arg=[picture.element_handle(), before], timeout=15_000
        )
        assert picture.get_attribute("src") != before
        browser.close()
