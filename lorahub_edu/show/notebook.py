"""What every lesson shows with, in one import: figures and panels, checks, findings, and the lesson's opening."""

import gc

from IPython.display import display

from lorahub_edu import results
from lorahub_edu.models.profiles import PROFILES, get_profile
from lorahub_edu.results import Finding, Table
from lorahub_edu.show import chat, clouds, figures, mixing, panels, predictions
from lorahub_edu.show.check import check_in_lesson as check
from lorahub_edu.show.findings import Row, costs_table, publish, verdict
from lorahub_edu.show.predictions import compare, predict, recall

# What a screen reader says of a slider's handle and of a panel's picture: ipywidgets gives them no words, or an index.
NAMED = """\
window.lorahubNamed ??= new MutationObserver(() => {
  for (const handle of document.querySelectorAll(".noUi-handle")) {
    const slider = handle.closest(".widget-slider"), label = slider?.querySelector("label");
    handle.setAttribute("aria-label", label?.textContent || label?.title || "value");
    handle.setAttribute("aria-valuetext", slider?.querySelector(".widget-readout")?.textContent);
  }
  for (const picture of document.querySelectorAll("img.widget-image:not([alt])"))
    picture.alt = "The panel's picture: the text below reads it.";
});
window.lorahubNamed.observe(document.body, {childList: true, subtree: true});"""


def open_lesson(name: str) -> Table:
    """Set the course's style of figures; the table of what the lesson ("01_lora_from_scratch") takes, by profile."""
    figures.use_style()
    if not gc.get_freeze_count():
        gc.freeze()  # torch's objects stay anyway; to look through them took a panel a fifth of a second now and then
    display({"application/javascript": NAMED}, raw=True)
    return costs_table(name)
