"""What the studies of forgetting and of interventions show, from their rows alone.

Losses and forgetting are in nats a token; forgetting is the pretraining loss minus that of the base. A measured value
of an arm (a way to train) is given as the mean over its seeds with the lowest and the highest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.results import Table, spread
from lorahub_edu.spectra.interventions import KINDS
from lorahub_studies.correlation import MEASURES, correlate

LABELS = {
    "loss": "task loss",
    "forgetting": "forgetting",
    "intruders": "intruders (ε = 0.5)",
    "spike_ratio": "mean σ₁(ΔW)/σ₁₀(W₀)",
    "relative_size": "‖ΔW‖/‖W₀‖",
    "nuclear_norm": "nuclear norm of ΔW",
    "largest_spike_ratio": "largest σ₁(ΔW)/σ₁₀(W₀)",
    "effective_rank": "effective rank of ΔW",
}
QUANTITIES = tuple(LABELS)
Rows = Sequence[Mapping]
EPSILON = "0.5"  # of which intruders are counted here
Arm = tuple[int, str]  # rank (0 is full fine-tuning) and rule of scaling


def in_words(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and lowest to highest where they differ."""
    mean, low, high = (f"{value:.{digits}f}" for value in spread(values).values())
    return mean if low == high else f"{mean} ({low} to {high})"


def learned(rows: Rows) -> list[Mapping]:
    """Runs that did not diverge and ended with a lower task loss than the base's."""
    return [row for row in rows if row["points"] and row["points"][-1]["loss"] < row["base"]["loss"]]


def arm(run: Mapping) -> Arm:
    """The way to train of a run: rank and rule of scaling."""
    return run["rank"], run["rule"]


def label(rank: int, rule: str) -> str:
    """An arm's name on a page."""
    return f"LoRA, r = {rank}, {rule}" if rank else "full fine-tuning"


def trajectory(row: Mapping) -> list[dict[str, float]]:
    """A run's recorded steps, the base (step 0, all quantities but its loss 0) first: `step` and all of `QUANTITIES`.

    The row is one of `run_tail` with spectra.
    """
    base = row["base"]
    steps = [{"step": 0} | dict.fromkeys(QUANTITIES, 0.0) | {"loss": base["loss"]}]
    for point in row["points"]:
        forgotten = point["pretraining_loss"] - base["pretraining_loss"]
        measured = point | {"forgetting": forgotten, "intruders": float(point["intruders"][EPSILON])}
        steps.append({name: measured[name] for name in steps[0]})
    return steps


def last(row: Mapping) -> dict[str, float]:
    """A run's quantities after its last step."""
    return trajectory(row)[-1]


def at_loss(row: Mapping, loss: float) -> dict[str, float] | None:
    """A run's quantities where its task loss first falls to `loss`, between two recorded steps by a straight line.

    Returns: `step` and `QUANTITIES`; None if the run never gets there. A count between two steps need not be whole.
    """
    steps = trajectory(row)
    for before, after in zip(steps, steps[1:], strict=False):
        if before["loss"] >= loss >= after["loss"]:
            fallen = before["loss"] - after["loss"]
            share = (before["loss"] - loss) / fallen if fallen else 0.0
            return {name: before[name] + share * (after[name] - before[name]) for name in before}
    return None


def matched_loss(rows: Rows) -> float:
    """The lowest task loss that every run reaches."""
    if not rows:
        raise CourseError("There is no run to match: run the study first.")
    return max(min(step["loss"] for step in trajectory(row)) for row in rows)


def by_arm(rows: Rows, quantity: str, loss: float | None = None) -> dict[Arm, list[float]]:
    """A quantity of every run, by arm in the rows' order and within it by seed.

    The quantity is one of `QUANTITIES`, or "step". It is taken at the task loss `loss`, or after the last step. Runs
    that don't reach the loss are left out.
    """
    if quantity not in (*QUANTITIES, "step"):
        raise CourseError(f"A run has no quantity {quantity!r}. {near_matches(quantity, (*QUANTITIES, 'step'))}")
    values: dict[Arm, list[float]] = {arm(row["run"]): [] for row in rows}
    for row in sorted(rows, key=lambda row: row["run"]["seed"]):
        values[arm(row["run"])] += [reached[quantity] for reached in quantities([row], loss)]
    return {key: of_arm for key, of_arm in values.items() if of_arm}


def rank_curve(rows: Rows, quantity: str, rule: str, loss: float | None = None) -> dict[int, list[float]]:
    """A quantity over the rank under one rule of scaling: values by rank, lowest first, full fine-tuning last as 0.

    At rank 16 all rules are one, so its runs belong to every rule's curve.
    """
    values = by_arm(rows, quantity, loss)
    known = {name for _, name in values if name}
    if rule not in known:
        raise CourseError(f"The rows hold no rule {rule!r}. {near_matches(rule, known)}")
    curve = {rank: v for (rank, name), v in values.items() if name == rule or rank == 16}
    return dict(sorted(curve.items())) | {rank: v for (rank, _), v in values.items() if rank == 0}


def least_forgetting(rows: Rows, rule: str, loss: float | None = None) -> list[int]:
    """For each seed the rank that forgets least under a rule; a U-shape puts it between the ends. Source: claim I9."""
    curve = {rank: v for rank, v in rank_curve(rows, "forgetting", rule, loss).items() if rank}
    seeds = min(map(len, curve.values()))
    return [min(curve, key=lambda rank: curve[rank][seed]) for seed in range(seeds)]


def arms_table(rows: Rows, loss: float | None = None, caption: str = "") -> Table:
    """Arms down, the mean of each quantity with its seeds' spread across, at a task loss or (None) the last step."""
    columns = {"loss": 2, "forgetting": 3, "intruders": 1, "relative_size": 3, "nuclear_norm": 0, "effective_rank": 1}
    if loss is not None:
        columns = {"step": 0} | {name: digits for name, digits in columns.items() if name != "loss"}
    values = {name: by_arm(rows, name, loss) for name in columns}
    rates = {arm(row["run"]): row["run"]["learning_rate"] for row in rows}
    scales = {arm(row["run"]): row["run"]["scaling"] for row in rows}
    first = next(iter(values.values()))
    lines = [
        (
            label(*one),
            f"{scales[one]:.3g}" if one[0] else "–",
            f"{rates[one]:g}",
            str(len(first[one])),
            *(in_words(values[name][one], digits) for name, digits in columns.items()),
        )
        for one in first
    ]
    heads = ("step" if name == "step" else LABELS[name] for name in columns)
    return Table(("method", "scaling", "learning rate", "seeds", *heads), tuple(lines), caption)


def correlations_table(rows: Rows, loss: float | None = None, caption: str = "") -> Table:
    """How well each measure goes with forgetting: Spearman's rho over runs, and with one thing more held fixed.

    Measures down; rho, rho given ‖ΔW‖/‖W₀‖ and rho given the task loss across, with 95 % bootstrap intervals. Taken
    at the task loss `loss`; None is after the last step.
    """
    runs = quantities(rows, loss)
    columns = {name: [run[name] for run in runs] for name in (*MEASURES, "forgetting", "loss")}
    held = {"given ‖ΔW‖/‖W₀‖": "relative_size"} | ({"given task loss": "loss"} if loss is None else {})

    def rho(name: str, *given: str) -> str:
        known = [columns[other] for other in given]
        return "–" if name in given else str(correlate(columns[name], columns["forgetting"], known))

    lines = [(LABELS[name], rho(name), *(rho(name, other) for other in held.values())) for name in MEASURES]
    return Table(("measure", "rho with forgetting", *held), tuple(lines), caption or f"{len(runs)} runs")


def quantities(rows: Rows, loss: float | None = None) -> list[dict[str, float]]:
    """Every run that learned, as `QUANTITIES` at a task loss (those that get there) or after its last step."""
    runs = [last(row) if loss is None else at_loss(row, loss) for row in learned(rows)]
    return [run for run in runs if run is not None]


def intervention_effects(rows: Rows) -> list[dict]:
    """What each intervention did, run by run.

    Returns: One entry a run, `kind` and `scale`: `rank`, `seed`, `intruders` of the run, `removed` (the share of its
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


def best_rates(rows: Rows) -> dict[int, list[float]]:
    """By rank (0 is full fine-tuning) the learning rate with the lowest loss after the last step, one a seed.

    A run that diverged has no loss. Source: Schulman et al. 2025, "LoRA Without Regret"; claim X6.
    """
    runs = ended(row for row in rows if row["points"])
    best = runs.loc[runs.groupby(["rank", "seed"], sort=False)["loss"].idxmin()]
    return best.groupby("rank", sort=False)["learning_rate"].agg(list).to_dict()


def ended(rows: Iterable[Mapping]) -> pd.DataFrame:
    """A line a run: its settings and the `loss` after its last step, infinite where it diverged."""
    losses = [row["run"] | {"loss": row["points"][-1]["loss"] if row["points"] else math.inf} for row in rows]
    return pd.DataFrame(losses)


def rates_table(rows: Rows, caption: str = "") -> Table:
    """Methods down, learning rates across: the loss after the last step, mean and range over the seeds."""
    finished = ended(row for row in rows if row["points"])
    losses = finished.groupby(["rank", "rule", "learning_rate"], sort=False)["loss"].agg(list)
    rates = sorted({row["run"]["learning_rate"] for row in rows})
    lines = [
        (label(*key), *(in_words(losses[*key, rate]) if (*key, rate) in losses else "–" for rate in rates))
        for key in dict.fromkeys(arm(row["run"]) for row in rows)
    ]
    return Table(("method", *(f"{rate:g}" for rate in rates)), tuple(lines), caption)


def at_best_rate(rows: Sequence[Mapping]) -> dict[tuple, pd.Series]:
    """By batch size, steps, matrices and rank the loss of each seed at the best rate, which is its name."""
    settings = ["batch_size", "steps", "matrices", "rank"]
    frame = ended(row for row in rows if not row["run"]["at"])
    losses = frame.pivot(index=[*settings, "learning_rate"], columns="seed", values="loss")
    chosen = losses.mean(axis=1).groupby(settings, sort=False).idxmin()
    return {arm: losses.loc[place].rename(place[-1]) for arm, place in chosen.items()}


def behind(rows: Sequence[Mapping]) -> dict[int, dict[int, float]]:
    """By seed and recorded step the loss of the low rank minus that of the high one, in nats a token."""
    losses = {
        (row["run"]["rank"], row["run"]["seed"]): {point["step"]: point["loss"] for point in row["points"]}
        for row in rows
        if row["run"]["at"]
    }
    low, high = min(losses)[0], max(losses)[0]
    return {
        seed: {step: loss - losses[high, seed].get(step, math.inf) for step, loss in losses[low, seed].items()}
        for rank, seed in losses
        if rank == low
    }


def regret_table(rows: Sequence[Mapping], caption: str = "") -> Table:
    """Arms down; rows in a step, steps, the best learning rate, and the loss there over the seeds across."""
    lines = [
        (
            f"LoRA, r = {rank}, {'attention' if held else 'all layers'}" if rank else "full fine-tuning",
            *(str(batch), str(steps), f"{losses.name:g}", in_words(list(losses))),
        )
        for (batch, steps, held, rank), losses in at_best_rate(rows).items()
    ]
    return Table(("method", "rows in a step", "steps", "best learning rate", "loss"), tuple(lines), caption)


def capacity_table(rows: Sequence[Mapping], caption: str = "") -> Table:
    """By recorded step how far rank 1 is behind rank 64, in nats a token, over the seeds."""
    gaps = pd.DataFrame(behind(rows)).T
    return Table(
        ("step", *map(str, gaps)), (("rank 1 minus 64", *(in_words(list(gaps[step])) for step in gaps)),), caption
    )
