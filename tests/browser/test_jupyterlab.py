"""Lessons in JupyterLab as a learner meets them: panels by mouse and keyboard, answers, the stop button, a restart."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorahub_edu.show import lessons

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import panel_latency as browser  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium")]
NAMES = ("01_lora_from_scratch", "06_composing", "07_adapting", "08_spectra")
# Runs the first code cell that holds a text, after its source was changed; returns its outputs.
RUN = """async ([text, source]) => {
  const {content} = window.jupyterapp.shell.currentWidget, {cells} = content.model.sharedModel;
  const index = cells.findIndex(cell => cell.cell_type === 'code' && cell.source.includes(text));
  content.activeCellIndex = index;
  if (source !== null) cells[index].setSource(source);
  await window.jupyterapp.commands.execute('notebook:run-cell');
  return cells[index].getOutputs();
}"""
NAMELESS = ".jp-Notebook .noUi-handle:not([aria-label]), .jp-Notebook img.widget-image:not([alt])"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with browser.lab(tmp_path_factory.mktemp("lab"), "tiny") as address:
        yield address


@pytest.fixture(scope="module", params=NAMES)
def page(lab: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A lesson in which every cell was run."""
    with browser.opened(lab, request.param, tmp_path_factory.mktemp("browser")) as page:
        assert browser.command(page, "run-all-cells") == []
        page.lesson = request.param
        yield page


def sentence(panel) -> str:
    """What the panel says, without a speed, which is another each time."""
    return re.sub(r"[\d.]+ tokens/s", "", panel.locator(".widget-html-content").first.inner_text())


def test_every_panel_answers_keys_and_a_fast_drag_ends_at_its_last_place(page) -> None:
    panels = page.locator(browser.PANELS).all()
    assert panels
    for panel in panels:
        panel.scroll_into_view_if_needed()
        browser.watched(panel)
        handle = panel.locator(".noUi-handle").first
        assert browser.press(panel, handle, "ArrowRight") > 0
        box = handle.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        before = handle.get_attribute("aria-valuenow")
        page.mouse.move(x, y)
        page.mouse.down()
        for step in range(1, 31):
            page.mouse.move(x + (3 * step if step < 25 else 75), y)
        page.mouse.up()
        browser.at_rest(panel)
        assert handle.get_attribute("aria-valuenow") != before
        dragged = sentence(panel)
        for key in ("ArrowLeft", "ArrowRight"):
            browser.press(panel, handle, key)
        browser.at_rest(panel)
        assert sentence(panel) == dragged, "what a drag left is what keys find at the same place"


def test_panels_have_words_for_a_screen_reader(page) -> None:
    assert page.locator(".jp-Notebook .noUi-handle").count() and not page.locator(NAMELESS).count()
    for panel in page.locator(browser.PANELS).all():
        label = panel.locator(".widget-label").filter(visible=True).last.inner_text()
        assert panel.get_by_role("slider", name=label, exact=True).count()


def test_a_prediction_is_kept_by_mouse_and_by_keyboard(page) -> None:
    rows = page.locator(".jp-OutputArea-output > .widget-vbox:has(button:text-is('Keep'))").all()
    assert rows
    for number, row in enumerate(rows):
        row.scroll_into_view_if_needed()
        keep, choice = row.get_by_role("button", name="Keep"), row.locator("input[type=radio]")
        if number % 2:
            choice.first.click() if choice.count() else None
            keep.click()
        else:
            (choice if choice.count() else row.locator(".noUi-handle")).first.focus()
            page.keyboard.press("Space" if choice.count() else "ArrowRight")
            keep.focus()
            page.keyboard.press("Enter")
        kept = row.get_by_text("Kept: ")
        kept.wait_for()
        assert kept.inner_text().removeprefix("Kept: ").strip()


def test_a_wrong_answer_fails_and_the_right_one_passes(page) -> None:
    cells = lessons.build(page.lesson).cells
    solutions = "\n".join(
        block for cell in cells for block in re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)
    )
    tried = 0
    for cell in cells:
        asked = re.search(r'check\("([\d.]+)", (\w+)\)', cell.source)
        if cell.cell_type != "code" or not asked:
            continue
        tried += 1
        wrong = cell.source.replace("raise NotImplementedError", "return None")
        right = f"{cell.source.partition(asked.group())[0]}\n{solutions}\n{asked.group()}"
        for source, good in ((wrong, False), (right, True)):
            outputs = page.evaluate(RUN, [asked.group(), source])
            said = "".join(output.get("data", {}).get("text/plain", "") for output in outputs)
            assert ("FAILED" not in said and "public checks passed" in said) == good, f"{asked.group(1)}: {said}"
    assert tried >= 2


def test_a_stopped_cell_runs_again_and_the_lesson_goes_on(page) -> None:
    source = next(
        c.source for c in lessons.build(page.lesson).cells if "predict(" in c.source and "import" not in c.source
    )
    page.evaluate(f"() => {{ window.stopped = ({RUN})([{source!r}, {'import time; time.sleep(99)'!r}]); }}")
    page.wait_for_function("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'busy'")
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
    assert [output["ename"] for output in page.evaluate("() => window.stopped")] == ["KeyboardInterrupt"]
    page.evaluate(RUN, ["time.sleep(99)", source])
    assert browser.command(page, "run-all-below") == []


def reloaded(page):
    """The first panel once the page was loaded again, with its picture and its words."""
    page.goto(page.url.replace("&reset", ""))
    page.wait_for_function(browser.READY, timeout=90_000)
    panel = page.locator(browser.PANELS).first
    panel.scroll_into_view_if_needed()
    shown = "panel => [...panel.querySelectorAll('img')].every(image => image.naturalWidth > 300)"
    page.wait_for_function(shown, arg=panel.element_handle())
    page.wait_for_function("selector => !document.querySelector(selector)", arg=NAMELESS)
    return panel


def test_a_reloaded_panel_answers_and_without_its_kernel_it_still_shows_its_picture(page) -> None:
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    panel = reloaded(page)
    browser.watched(panel)
    assert browser.press(panel, panel.locator(".noUi-handle").first, "ArrowRight") > 0
    said = sentence(panel)
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    assert sentence(reloaded(page)) == said


def test_a_restart_runs_all_and_the_panel_lives_again(page) -> None:
    page.evaluate(
        """() => {
          window.over = false;
          window.jupyterapp.commands.execute('notebook:restart-run-all').then(() => { window.over = true; });
        }"""
    )
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    page.wait_for_function("window.over", timeout=300_000)
    assert page.evaluate(browser.ERRORS) == []
    panel = page.locator(browser.PANELS).first
    panel.scroll_into_view_if_needed()
    browser.watched(panel)
    assert browser.press(panel, panel.locator(".noUi-handle").first, "ArrowRight") > 0
