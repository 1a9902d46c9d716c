"""What matrices, interventions and sequences of tasks show, from the studies' rows alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from lorahub_edu.errors import CourseError
from lorahub_edu.results import Table
from lorahub_edu.spectra.interventions import KINDS
from lorahub_studies.forgetting_tables import label
from lorahub_studies.spreads import in_words

BINS = (0.0, 0.25, 0.5, 0.7, 0.85, 1.0, 1.5, 2.0, float("inf"))

Rows = Sequence[Mapping]


def spike_points(rows: Rows, epsilon: float = 0.5) -> list[tuple[float, int]]:
    """Every trained matrix of every run after its last step: its σ₁(ΔW)/σ₁₀(W₀) and its number of intruders."""
    return [
        point
        for row in rows
        if row.get("matrices")
        for point in zip(row["matrices"]["spike_ratio"], row["matrices"]["intruders"][str(epsilon)], strict=True)
    ]


def spike_shares(rows: Rows, epsilon: float = 0.5, edges: Sequence[float] = BINS) -> list[tuple[float, float, int]]:
    """The share of matrices with at least one intruder, by spike ratio.

    Returns:
        For each bin its lower edge, which belongs to it, the share (0 to 1, NaN where there is no matrix), and the
        number of matrices.

    Raises:
        CourseError: no row has matrices.
    """
    points = spike_points(rows, epsilon)
    if not points:
        raise CourseError("No row holds its matrices: give runs that were measured with spectra.")
    found = []
    for low, high in zip(edges, edges[1:], strict=False):
        counts = [count for ratio, count in points if low <= ratio < high]
        share = sum(count > 0 for count in counts) / len(counts) if counts else float("nan")
        found.append((low, share, len(counts)))
    return found


def spike_table(rows: Rows, caption: str = "", edges: Sequence[float] = BINS) -> Table:
    """Spike ratios down, the share of matrices with an intruder across, for each ε."""
    epsilons = list(next(row["matrices"]["intruders"] for row in rows if row.get("matrices")))
    shares = {epsilon: spike_shares(rows, float(epsilon), edges) for epsilon in epsilons}
    lines = []
    for place, (low, _, count) in enumerate(shares[epsilons[0]]):
        high = edges[place + 1]
        name = f"{low:g} to {high:g}" if high != float("inf") else f"{low:g} and more"
        cells = (f"{100 * shares[e][place][1]:.0f} %" if count else "–" for e in epsilons)
        lines.append((name, str(count), *cells))
    header = ("σ₁(ΔW)/σ₁₀(W₀)", "matrices", *(f"with an intruder, ε = {epsilon}" for epsilon in epsilons))
    return Table(header, tuple(lines), caption)


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
    """The largest share of the forgetting that an intervention removes while the task loss rises by at most `cost`.

    Args:
        rows: of `intervene`.
        kind: of `spectra.interventions.KINDS`.
        cost: in nats a token.

    Returns:
        One share a run; 0 where no scale is that cheap.

    Source: claim I12, judged at one price for the intervention and its controls.
    """
    by_run: dict[tuple[int, int], float] = {}
    for entry in intervention_effects(rows):
        key = entry["rank"], entry["seed"]
        by_run.setdefault(key, 0.0)
        if entry["kind"] == kind and entry["task"] <= cost:
            by_run[key] = max(by_run[key], entry["removed"])
    return list(by_run.values())


def interventions_table(rows: Rows, caption: str = "") -> Table:
    """Ranks and scales down, interventions across: share of forgetting removed, and what the task loss rose by."""
    effects = intervention_effects(rows)
    groups: dict[tuple[int, float], dict[str, list[dict]]] = {}
    for entry in effects:
        groups.setdefault((entry["rank"], entry["scale"]), {}).setdefault(entry["kind"], []).append(entry)
    names = {"intruders": "intruders", "others": "as many others", "update": "the whole update"}
    lines = [
        (
            label(rank, "").rstrip(", "),
            f"{scale:g}",
            *(_effect(group[kind]) for kind in KINDS),
        )
        for (rank, scale), group in sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1]))
    ]
    return Table(("run", "scaled by", *(names[kind] for kind in KINDS)), tuple(lines), caption)


def _effect(entries: Sequence[Mapping]) -> str:
    return f"{in_words([100 * e['removed'] for e in entries], 0)} % at {in_words([e['task'] for e in entries])}"


def continual_curves(rows: Rows) -> dict[int, list[list[float]]]:
    """Forgetting of the text after each task of a sequence: by rank, one list a seed; it begins with the base's 0."""
    found: dict[int, list[list[float]]] = {}
    for row in sorted(rows, key=lambda row: row["run"]["seed"]):
        if row["stages"]:
            first = row["stages"][0]["pretraining_loss"]
            curve = [stage["pretraining_loss"] - first for stage in row["stages"]]
            found.setdefault(row["run"]["rank"], []).append(curve)
    return found


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
