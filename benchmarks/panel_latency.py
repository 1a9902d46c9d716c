"""How long after a key a panel shows its change, in JupyterLab in Chromium: panel_latency.py --lessons 01,07 --save

Every panel with sliders gets `keys` arrow keys. Time runs from the key's event to the loaded new picture, or to the new
loss where the panel has no picture. A panel is left alone until nothing of it changes any more before each key.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import common
import nbformat

from lorahub_edu import results
from lorahub_edu.models import profiles
from lorahub_edu.show import lessons, progress

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
)
TOKEN = "lorahub-edu-test"  # noqa: S105 - of a server that lives for one run
# Every cell stays in the page, so that a panel is found wherever the page is scrolled to.
SETTINGS = {"@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"}}
# With a picture, or a desk's loss: a mere chat shows nothing before it is asked.
PANELS = ".jp-OutputArea-output > .widget-vbox:has(.noUi-handle):has(img.widget-image, button:text('search play'))"
READY = """() => {
  const session = window.jupyterapp?.shell?.currentWidget?.sessionContext?.session;
  return session?.kernel?.status === 'idle' && session.kernel.connectionStatus === 'connected';
}"""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
  .flatMap(cell => (cell.getOutputs?.() ?? []).filter(output => output.output_type === 'error'))"""
# Notes when the panel changed last, and how long after the last key its picture or its first text changed.
WATCH = """panel => {
  const note = () => { panel.took ??= performance.now() - panel.pressed; };
  panel.addEventListener('keydown', () => { panel.pressed = performance.now(); panel.took = undefined; }, true);
  for (const image of panel.querySelectorAll('img')) image.addEventListener('load', note);
  const watcher = new MutationObserver(() => {
    panel.changed = performance.now();
    if (!panel.querySelector('img')) note();
  });
  for (const seen of panel.querySelectorAll('img, .widget-html'))
    watcher.observe(seen, {subtree: true, childList: true, characterData: true, attributes: true});
  const {kernel} = window.jupyterapp.shell.currentWidget.sessionContext.session;
  kernel.statusChanged.connect(() => { panel.changed = performance.now(); });
  panel.changed = performance.now();
}"""
REST = """panel => performance.now() - panel.changed > 700
  && window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"""


@contextmanager
def lab(scratch: Path, profile: str) -> Iterator[str]:
    """JupyterLab's address on a free port of this machine, with folders of its own and the lessons unrun."""
    notebooks, settings = scratch / "notebooks", scratch / "settings"
    notebooks.mkdir(parents=True)
    for name in lessons.names():
        nbformat.write(lessons.build(name), notebooks / f"{name}.ipynb")
    for name, content in SETTINGS.items():
        (settings / name).parent.mkdir(parents=True)
        (settings / name).write_text(json.dumps(content), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folders = {f"JUPYTER_{kind}_DIR": str(scratch / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own = {"IPYTHONDIR": str(scratch / "ipython"), profiles.ENVIRONMENT_VARIABLE: profile}
    own |= {results.FOLDER_VARIABLE: str(scratch / "results"), progress.VARIABLE: progress.OFF}
    own["JUPYTER_CONFIG_PATH"] = str(lessons.LESSONS.parent / "jupyter")  # as an installed course has it
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
        f"--ServerApp.root_dir={notebooks}", f"--LabApp.user_settings_dir={settings}",
    ]  # fmt: skip
    with (scratch / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | folders | own, stdout=log, stderr=log)
    try:
        for _ in range(240):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.25)
        else:
            raise SystemExit("JupyterLab did not start:\n" + (scratch / "log").read_text()[-2000:])
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


@contextmanager
def opened(address: str, name: str, scratch: Path) -> Iterator:
    """A page of Chromium with a lesson in JupyterLab, its kernel idle."""
    from playwright.sync_api import sync_playwright

    size = {"width": 1300, "height": 1000}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            scratch, executable_path=CHROMIUM, args=FLAGS.split(), viewport=size
        )
        page = browser.pages[0]
        page.set_default_timeout(60_000)
        page.goto(f"{address}/lab/tree/{name}.ipynb?token={TOKEN}&reset")
        page.wait_for_function(READY, timeout=90_000)
        yield page
        browser.close()


def command(page, name: str) -> list[dict]:
    """Do what a button of the notebook does, wait until it is done, and return the errors in the notebook's outputs."""
    page.evaluate("name => window.jupyterapp.commands.execute(name)", f"notebook:{name}")
    return page.evaluate(ERRORS)


def watched(panel) -> None:
    panel.evaluate(WATCH)


def at_rest(panel) -> None:
    """Wait until a watched panel changes no more and its kernel is idle."""
    panel.page.wait_for_function(REST, arg=panel.element_handle())


def press(panel, handle, key: str) -> float:
    """Milliseconds from a key on a slider to the panel's change, once the panel has come to rest before."""
    element, page = panel.element_handle(), panel.page
    at_rest(panel)
    handle.focus()
    page.keyboard.press(key)
    page.wait_for_function("panel => panel.took !== undefined", arg=element)
    return panel.evaluate("panel => panel.took")


def label_of(panel) -> str:
    """The names of a panel's sliders; a desk's are too many."""
    labels = panel.locator(".widget-label").all_text_contents()
    return ", ".join(filter(None, labels)) if panel.locator("img").count() else "mixing desk"


def measure(page, keys: int) -> dict[str, list[float]]:
    """Milliseconds of each key, by panel."""
    found: dict[str, list[float]] = {}
    for panel in page.locator(PANELS).all():
        panel.scroll_into_view_if_needed()
        watched(panel)
        handle = panel.locator(".noUi-handle").first
        label = f"{label_of(panel)} ({len(found) + 1})" if label_of(panel) in found else label_of(panel)
        last = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        there_and_back = ("ArrowLeft", "ArrowRight") if last else ("ArrowRight", "ArrowLeft")
        found[label] = [press(panel, handle, there_and_back[i % 2]) for i in range(keys)]
        print(f"{label}: median {statistics.median(found[label]):.0f} ms, worst {max(found[label]):.0f} ms", flush=True)
    return found


def main() -> None:
    options = common.arguments(__doc__, profile="cpu", lessons="all", keys=20)
    wanted = lessons.names()[1:] if options.lessons == "all" else map(lessons.resolve, options.lessons.split(","))
    path = results.committed_folder() / "panels.json"
    panels = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in wanted:
        with (
            tempfile.TemporaryDirectory() as scratch,
            lab(Path(scratch) / "lab", options.profile) as address,
            opened(address, name, Path(scratch) / "browser") as page,
        ):
            if errors := command(page, "run-all-cells"):
                raise SystemExit(f"{name}: {errors[0]['ename']}: {errors[0]['evalue']}")
            for label, times in measure(page, options.keys).items():
                milliseconds = [round(took, 1) for took in times]
                panels[f"{name[:2]} {label}"] = {
                    "profile": options.profile,
                    "milliseconds": milliseconds,
                    "load": round(os.getloadavg()[1] / os.cpu_count(), 1),  # of five minutes, for each core
                    "device": results.describe_device(),
                    "date": date.today().isoformat(),
                }
        if options.save:
            results.write_json(path, dict(sorted(panels.items())))


if __name__ == "__main__":
    main()
