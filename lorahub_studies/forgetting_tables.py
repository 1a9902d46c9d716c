"""What the studies of forgetting show, from their rows alone.

Losses and forgetting are in nats a token; forgetting is the pretraining loss minus that of the base. A measured value
of an arm (a way to train) is given as the mean over its seeds with the lowest and the highest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.results import Table
from lorahub_studies.correlation import MEASURES, correlate
from lorahub_studies.spreads import in_words

QUANTITIES = ("loss", "forgetting", *MEASURES, "largest_spike_ratio", "effective_rank")
LABELS = {
    "loss": "task loss",
    "forgetting": "forgetting",
    "intruders": "intruders (ε = 0.5)",
    "spike_ratio": "mean σ₁(ΔW)/σ₁₀(W₀)",
    "largest_spike_ratio": "largest σ₁(ΔW)/σ₁₀(W₀)",
    "relative_size": "‖ΔW‖/‖W₀‖",
    "nuclear_norm": "nuclear norm of ΔW",
    "effective_rank": "effective rank of ΔW",
}
Rows = Sequence[Mapping]
Arm = tuple[int, str]  # rank (0 is full fine-tuning) and rule of scaling


def learned(rows: Rows) -> list[Mapping]:
    """Runs that did not diverge and ended with a lower task loss than the base's."""
    return [row for row in rows if row["points"] and row["points"][-1]["loss"] < row["base"]["loss"]]


def arm(run: Mapping) -> Arm:
    """The way to train of a run: rank and rule of scaling."""
    return run["rank"], run["rule"]


def label(rank: int, rule: str) -> str:
    """An arm's name on a page."""
    return f"LoRA, r = {rank}, {rule}" if rank else "full fine-tuning"


def trajectory(row: Mapping, epsilon: float = 0.5) -> list[dict[str, float]]:
    """A run's recorded steps, the base (step 0) first, each with `step` and all of `QUANTITIES`.

    The row is one of `lab.run_tail` with spectra. The base has no change, so every quantity but its loss is 0.
    """
    base = dict.fromkeys(QUANTITIES, 0.0) | {"step": 0, "loss": row["base"]["loss"]}
    return [base, *(_quantities(row, point, epsilon) for point in row["points"])]


def _quantities(row: Mapping, point: Mapping, epsilon: float) -> dict[str, float]:
    values = {name: point[name] for name in QUANTITIES if name in point and name != "intruders"}
    forgotten = point["pretraining_loss"] - row["base"]["pretraining_loss"]
    counts = point["intruders"]
    if str(epsilon) not in counts:
        raise CourseError(f"The rows hold no counts for ε = {epsilon}. {near_matches(str(epsilon), counts)}")
    return values | {"step": point["step"], "forgetting": forgotten, "intruders": float(counts[str(epsilon)])}


def last(row: Mapping, epsilon: float = 0.5) -> dict[str, float]:
    """A run's quantities after its last step."""
    return trajectory(row, epsilon)[-1]


def at_loss(row: Mapping, loss: float, epsilon: float = 0.5) -> dict[str, float] | None:
    """A run's quantities where its task loss first falls to `loss`, between two recorded steps by a straight line.

    Returns:
        `step` and `QUANTITIES`; None if the run never gets there. A count between two steps need not be whole.
    """
    steps = trajectory(row, epsilon)
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


def by_arm(rows: Rows, quantity: str, loss: float | None = None, epsilon: float = 0.5) -> dict[Arm, list[float]]:
    """A quantity of every run, by arm in the rows' order and within it by seed.

    The quantity is one of `QUANTITIES`, or "step". It is taken at the task loss `loss`, or after the last step. Runs
    that don't reach the loss are left out.
    """
    if quantity not in (*QUANTITIES, "step"):
        raise CourseError(f"A run has no quantity {quantity!r}. {near_matches(quantity, (*QUANTITIES, 'step'))}")
    values: dict[Arm, list[float]] = {arm(row["run"]): [] for row in rows}
    for row in sorted(learned(rows), key=lambda row: row["run"]["seed"]):
        reached = last(row, epsilon) if loss is None else at_loss(row, loss, epsilon)
        if reached is not None:
            values[arm(row["run"])].append(reached[quantity])
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
    """For each seed the rank that forgets least under a rule; a U-shape puts it between the lowest and the highest.

    Source: claim I9.
    """
    curve = {rank: v for rank, v in rank_curve(rows, "forgetting", rule, loss).items() if rank}
    seeds = min(map(len, curve.values()))
    return [min(curve, key=lambda rank: curve[rank][seed]) for seed in range(seeds)]


def arms_table(rows: Rows, loss: float | None = None, caption: str = "") -> Table:
    """Arms down, the mean of each quantity with its spread over the seeds across.

    Taken at the task loss `loss`; None is after the last step.
    """
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
    forgotten = [run["forgetting"] for run in runs]
    lines = []
    for name in MEASURES:
        mine = [run[name] for run in runs]
        cells = [str(correlate(mine, forgotten))]
        for other in ("relative_size", *(() if loss is not None else ("loss",))):
            same = other == name
            cells.append("–" if same else str(correlate(mine, forgotten, [[run[other] for run in runs]])))
        lines.append((LABELS[name], *cells))
    header = ("measure", "rho with forgetting", "given ‖ΔW‖/‖W₀‖", *(() if loss is not None else ("given task loss",)))
    return Table(header, tuple(lines), caption or f"{len(runs)} runs")


def quantities(rows: Rows, loss: float | None = None) -> list[dict[str, float]]:
    """Every run that learned, as `QUANTITIES` at a task loss (those that get there) or after its last step."""
    runs = [last(row) if loss is None else at_loss(row, loss) for row in learned(rows)]
    return [run for run in runs if run is not None]
