"""What every lesson shows with, in one import: figures and panels, checks, findings, and the lesson's opening."""

from lorahub_edu import results
from lorahub_edu.models.profiles import PROFILES, get_profile
from lorahub_edu.results import Finding, Table
from lorahub_edu.show import figures, panels, predictions
from lorahub_edu.show.check import check_in_lesson as check
from lorahub_edu.show.findings import Row, costs_table, publish, verdict
from lorahub_edu.show.predictions import compare, predict, recall

__all__ = [
    "PROFILES",
    "Finding",
    "Row",
    "Table",
    "check",
    "compare",
    "figures",
    "get_profile",
    "open_lesson",
    "panels",
    "predict",
    "predictions",
    "publish",
    "recall",
    "results",
    "verdict",
]


def open_lesson(name: str) -> Table:
    """Set the course's style of figures; the table of what the lesson ("01_lora_from_scratch") takes, by profile."""
    figures.use_style()
    return costs_table(name)
