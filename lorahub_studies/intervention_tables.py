"""What interventions and sequences of tasks show, from the studies' rows alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import pandas as pd

from lorahub_edu.results import Table
from lorahub_edu.spectra.interventions import KINDS
from lorahub_studies.forgetting_tables import label
from lorahub_studies.spreads import in_words

Rows = Sequence[Mapping]


def intervention_effects(rows: Rows) -> list[dict]:
    """What each intervention did, run by run.

    Returns:
        One entry a run, `kind` and `scale`: `rank`, `seed`, `intruders` of the run, `removed` (the share of its
        forgetting that is gone: 1 is all of it) and `task` (what the task loss rose by, in nats a token).
    """
    return [
        {
            "rank": row["run"]["rank"],
            "seed": row["run"]["seed"],
            "intruders": row["intruders"],
            "kind": entry["kind"],
            "scale": entry["scale"],
            "removed": (row["tuned"]["pretraining_loss"] - entry["pretraining_loss"])
            / (row["tuned"]["pretraining_loss"] - row["base"]["pretraining_loss"]),
            "task": entry["loss"] - row["tuned"]["loss"],
        }
        for row in rows
        if not row["diverged"]
        for entry in row["scaled"]
    ]


def removed_at_cost(rows: Rows, kind: str, cost: float) -> list[float]:
    """The largest share of the forgetting, run by run, that an intervention removes at a price.

    The task loss rises by at most `cost`, in nats a token. The share is 0 where no scale is that cheap.

    Source: claim I12, judged at one price for the intervention and its controls.
    """
    effects = pd.DataFrame(intervention_effects(rows))
    cheap = (effects["kind"] == kind) & (effects["task"] <= cost)
    shares = effects["removed"].where(cheap, 0.0).clip(lower=0.0)
    return shares.groupby([effects["rank"], effects["seed"]], sort=False).max().to_list()


def interventions_table(rows: Rows, caption: str = "") -> Table:
    """Ranks and scales down, interventions across: share of forgetting removed, and what the task loss rose by."""
    effects = pd.DataFrame(intervention_effects(rows)).sort_values(["rank", "scale"], ascending=[True, False])
    names = {"intruders": "intruders", "others": "as many others", "update": "the whole update"}
    lines = [
        (label(rank, "").rstrip(", "), f"{scale:g}", *(_effect(group[group["kind"] == kind]) for kind in KINDS))
        for (rank, scale), group in effects.groupby(["rank", "scale"], sort=False)
    ]
    return Table(("run", "scaled by", *(names[kind] for kind in KINDS)), tuple(lines), caption)


def _effect(entries: pd.DataFrame) -> str:
    return f"{in_words(list(100 * entries['removed']), 0)} % at {in_words(list(entries['task']))}"


def continual_curves(rows: Rows) -> dict[int, list[list[float]]]:
    """Forgetting of the text after each task of a sequence: by rank, one list a seed; it begins with the base's 0."""
    curves: dict[int, list[list[float]]] = {}
    for row in sorted(rows, key=lambda row: row["run"]["seed"]):
        if row["stages"]:
            first = row["stages"][0]["pretraining_loss"]
            curve = [stage["pretraining_loss"] - first for stage in row["stages"]]
            curves.setdefault(row["run"]["rank"], []).append(curve)
    return curves


def task_forgetting(row: Mapping) -> dict[str, float]:
    """For every task but the last: its loss at the end of the sequence minus that just after it was trained."""
    stages = row["stages"]
    return {
        stage["task"]: stages[-1]["losses"][stage["task"]] - stage["losses"][stage["task"]] for stage in stages[1:-1]
    }


def continual_table(rows: Rows, caption: str = "") -> Table:
    """Methods down; forgetting of the text after each task, of the earlier tasks at the end, and intruders, across."""
    lines = []
    curves = continual_curves(rows)
    tasks = next(row["run"]["tasks"] for row in rows if row["stages"])
    for rank, seeds in curves.items():
        mine = [row for row in rows if row["run"]["rank"] == rank and row["stages"]]
        learned = [statistics.fmean(s["losses"][s["task"]] for s in row["stages"][1:]) for row in mine]
        lost = [statistics.fmean(task_forgetting(row).values()) for row in mine] if len(tasks) > 1 else [0.0]
        lines.append(
            (
                label(rank, mine[0]["run"]["rule"]),
                *(in_words([curve[place] for curve in seeds], 3) for place in range(1, len(tasks) + 1)),
                in_words(learned),
                in_words(lost),
                in_words([row["stages"][-1]["spectrum"]["intruders"]["0.5"] for row in mine], 1),
            )
        )
    header = (
        "method",
        *(f"text forgotten after {task}" for task in tasks),
        "loss of a task just trained",
        "earlier tasks forgotten",
        "intruders at the end (ε = 0.5)",
    )
    return Table(header, tuple(lines), caption)
