"""Classification tasks in a row on a whole model: train, merge, start anew, and test with a fresh head. Claim I8.

After each task the update is merged into the weights, and a new adapter starts. Before each test a fresh linear head is
trained on the model's last hidden states, so that only what the model holds is tested. What differs from the source:
five tasks, a smaller model, and label words in place of a head while a task is trained.

What the study decides was written here before its first run. A task's "drop" is its accuracy just after it was trained
minus that after the last task; the last task has none. Intervals are `adapting_tables.over_targets`: over tasks, and
seeds within them, in points.

- "Low ranks lose more accuracy on the earlier tasks": shown if all of these intervals lie above zero: rank 1's drop
  minus rank 64's at each one's own learning rate, the same at one rate, and rank 1's minus full fine-tuning's. Refuted
  here if one of the three lies below zero, else not shown here.
- "r = 1 ends below the pretrained baseline on the first three": shown if the interval over the first three tasks, of
  rank 1's last accuracy minus the base model's, lies below zero. Refuted here if it lies above, else not shown here.

Source: Shuttleworth et al. 2024, arXiv 2410.21228, figure 8.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorahub_edu.data import fewshot
from lorahub_edu.data.batching import make_batches, step_rows
from lorahub_edu.data.tasks import Item, Task
from lorahub_edu.lora import adapters
from lorahub_edu.lora.layer import LoRAConfig
from lorahub_edu.models import pretrained
from lorahub_edu.results import Table, spread
from lorahub_edu.scoring import label_states, score
from lorahub_edu.show.findings import verdict
from lorahub_edu.training.descent import Descent, DivergedError, schedule
from lorahub_edu.training.losses import batch_loss
from lorahub_studies import adapting_tables as tables
from lorahub_studies import engine, text_tasks

TASKS = ("reply", "order", "film_sentiment", "is_a", "source")
SETTLING = "greater"  # the task that rates are chosen on; it is in no sequence
RANKS = (1, 8, 64, 0)  # 0 is full fine-tuning
LORA_RATES = (1e-3, 4e-3)
FULL_RATES = (1e-4, 4e-4)
SHARED = 8  # the rank whose rate all ranks have in the arm of one rate
SEEDS = 3
ITEMS, HEAD_ITEMS, TEST_ITEMS = 256, 128, 128
BATCH, STEPS = 16, 8
HEAD_PENALTY = 1.0


@dataclass(frozen=True)
class SequenceRun:
    """Tasks in a row by one method; it can be sent to a worker as it is."""

    tasks: tuple[str, ...]
    rank: int
    learning_rate: float
    seed: int
    rule: str = "alpha = 2r"
    scaling: float = 2.0
    steps: int = STEPS
    profile: str = "cpu"


def settling_jobs() -> list[SequenceRun]:
    """Every method at every learning rate of its grid on one task."""
    return [
        SequenceRun((SETTLING,), rank, rate, seed=0) for rank in RANKS for rate in (LORA_RATES if rank else FULL_RATES)
    ]


def chosen(settled: Sequence[Mapping]) -> dict[int, float]:
    """By rank the learning rate with the lowest held-out loss on the settling task; a run that diverged is left out."""
    runs = pd.DataFrame([row["run"] | {"loss": row["loss"]} for row in settled if row["stages"]])
    return engine.best_rates(runs, "rank")


def jobs(settled: Sequence[Mapping]) -> list[SequenceRun]:
    """Sequences of every rank at its own learning rate and at the shared one, and of full fine-tuning."""
    rates = chosen(settled)
    arms = dict.fromkeys([*rates.items(), *((rank, rates[SHARED]) for rank in rates if rank)])
    return [SequenceRun(TASKS, rank, rate, seed) for seed in range(SEEDS) for rank, rate in arms]


def run(job: SequenceRun) -> dict:
    """Train one task after the other in a model of its own, and test after each.

    Returns: `run` (its settings), `diverged`: a message in place of the stages, and `stages`: the base and one a task.
        A stage has the `task` trained last, `accuracies` (0 to 1) of that task, and of all for the base and after the
        last task, and the `cpu_seconds` of its training. `loss` is that of the last task's test items (nats a token).
    """
    model, tokenizer, weights = _loaded(job.profile)
    held = {name: _Held(text_tasks.get(name), job.seed, tokenizer) for name in job.tasks}
    row = {"run": asdict(job), "diverged": ""}
    base = {name: base_accuracy(job.profile, name, job.seed) for name in job.tasks}
    stages = [{"task": "", "accuracies": base, "cpu_seconds": 0.0}]
    try:
        for number, name in enumerate(job.tasks, start=1):
            started = time.process_time()
            _train(model, weights, held[name].training, job, number)
            seconds = time.process_time() - started
            tested = job.tasks if number == len(job.tasks) else (name,)
            accuracies = {task: held[task].accuracy(model) for task in tested}
            stages.append({"task": name, "accuracies": accuracies, "cpu_seconds": round(seconds, 1)})
    except DivergedError as problem:
        return row | {"diverged": str(problem), "stages": []}
    return row | {"stages": stages, "loss": float(score(model, held[name].test).losses[0])}


def _loaded(profile: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Tensor]]:
    """A model in what this machine computes fast in, its tokenizer, and its weights by name in float32."""
    model, tokenizer = pretrained.load(profile, dtype=torch.float32, attention="eager")
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return model.to(pretrained.quick_dtype()).requires_grad_(False), tokenizer, weights


@cache
def base_accuracy(profile: str, task: str, seed: int) -> float:
    """The accuracy of a fresh head on the base model, the same for every method."""
    model, tokenizer, _ = _loaded(profile)
    return _Held(text_tasks.get(task), seed, tokenizer).accuracy(model)


def _train(
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    rows: Sequence[fewshot.PromptedRow],
    run: SequenceRun,
    number: int,
) -> None:
    """One task: a new adapter that is merged in the end, or all weights. Each task has another seed.

    `weights` are changed in place, in float32; a small update is lost between two numbers of the model's dtype.
    """
    seed, encoded = run.seed * 1000 + number, [row.encoded() for row in rows]
    if run.rank:
        config = LoRAConfig(run.rank, run.scaling * run.rank, target_modules=adapters.ALL_LINEAR, dtype=torch.float32)
        layers = adapters.inject(model, config, seed=seed)
    else:
        model.requires_grad_(True)
    rates = schedule("cosine", run.learning_rate, max(1, run.steps // 6), run.steps)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    masters = None if run.rank else [*weights.values()]
    descent = Descent(trained, rates, clip_norm=1.0, masters=masters, fused=True)
    for step in range(run.steps):
        picked = [encoded[i] for i in step_rows(len(encoded), BATCH, step, seed)]
        batches = make_batches(picked, "packed", BATCH, 0)
        labels = sum(batch.num_labels for batch in batches)
        descent.step(batch_loss(model, batch) / labels for batch in batches)
    if run.rank:
        for name, layer in layers:
            weights[f"{name}.weight"] += layer.delta_weight("default").detach()
        adapters.remove(model, "default")
    else:
        weights |= zip(weights, descent.values, strict=True)
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])


class _Held:
    """A task's rows: drawn by the seed to train on, the first of them for the head, and the same ones to test on."""

    def __init__(self, task: Task, seed: int, tokenizer: PreTrainedTokenizerBase) -> None:
        drawn = random.Random(f"{task.name}/{seed}").sample(task.train, min(ITEMS, len(task.train)))
        tested = task.test[:TEST_ITEMS]
        self.classes = sorted({item.output for item in task.train})
        self.training, self.test = (_rows(task, items, tokenizer) for items in (drawn, tested))
        labels = [torch.tensor([self.classes.index(item.output) for item in items]) for items in (drawn, tested)]
        self.head_labels, self.labels = labels[0][:HEAD_ITEMS], labels[1]

    def accuracy(self, model: PreTrainedModel) -> float:
        """The share of test items that a fresh head on this model's states gets right."""
        states, tested = states_of(model, self.training[:HEAD_ITEMS]), states_of(model, self.test)
        weights = fit_head(states, self.head_labels, len(self.classes))
        return float((predict(weights, tested) == self.labels).float().mean())


def _rows(task: Task, items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> list[fewshot.PromptedRow]:
    prompts = [f"{task.instructions[0]} {item.input}:" for item in items]
    return fewshot.encode(tokenizer, prompts, [item.output for item in items])


@torch.no_grad()
def states_of(model: PreTrainedModel, rows: Sequence[fewshot.PromptedRow]) -> Tensor:
    """(rows, d) float32: the last hidden state of each prompt's last token."""
    parts = []
    for batch in fewshot.batches(model.config, rows):
        firsts = torch.cat([batch.rows.new_ones(1), batch.rows.diff()]).bool()  # the first label of each row
        parts.append(label_states(model, batch, 1)[0][firsts].float().cpu())
    return torch.cat(parts)


def fit_head(states: Tensor, labels: Tensor, classes: int, penalty: float = HEAD_PENALTY) -> tuple[Tensor, ...]:
    """A linear head on states (N, d): mean and scale (d,) of the states, weights (classes, d), biases (classes,).

    It has the least mean cross-entropy plus penalty / 2 times the squares of the weights, on standardised states.
    """
    mean, scale = states.mean(0), states.std(0).clamp_min(1e-6)
    inputs = (states - mean) / scale
    weight, bias = inputs.new_zeros(classes, inputs.shape[1]), inputs.new_zeros(classes)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return mean, scale, weight.detach(), bias.detach()


def predict(head: tuple[Tensor, ...], states: Tensor) -> Tensor:
    """(N,) the class that a head gives each state (N, d)."""
    mean, scale, weight, bias = head
    return (((states - mean) / scale).double() @ weight.double().T + bias.double()).argmax(1)


def arm(run: Mapping) -> str:
    """A run's method and learning rate, as a table names it."""
    method = f"r = {run['rank']}" if run["rank"] else "full"
    return f"{method}, rate {run['learning_rate']:g}"


def flat(rows: Sequence[Mapping], what: str) -> list[dict]:
    """One entry a task and run, as `adapting_tables` reads them: "drop", "last" or "base" accuracy as "strict"."""
    entries = []
    for row in (row for row in rows if row["stages"]):
        base, last = row["stages"][0]["accuracies"], row["stages"][-1]["accuracies"]
        trained = {stage["task"]: stage["accuracies"][stage["task"]] for stage in row["stages"][1:-1]}
        drops = {task: accuracy - last[task] for task, accuracy in trained.items()}
        run = {"draw": row["run"]["seed"], "method": arm(row["run"])}
        shares = {"drop": drops, "last": last, "base": base}[what]
        entries += [{"target": task, **run, "strict": share} for task, share in shares.items()]
    return entries


def summary(rows: Sequence[Mapping]) -> dict:
    """The intervals that the two rules ask for; the names of the arms in the first one."""
    rates = {}
    for row in rows:
        rates.setdefault(row["run"]["rank"], row["run"]["learning_rate"])
    own = {rank: arm({"rank": rank, "learning_rate": rate}) for rank, rate in rates.items()}
    shared = {rank: arm({"rank": rank, "learning_rate": rates[SHARED]}) for rank in rates if rank}
    drops, low, high = flat(rows, "drop"), min(shared), max(shared)
    pairs = {"own rates": (own[low], own[high]), "one rate": (shared[low], shared[high]), "full": (own[low], own[0])}
    first = [entry for entry in flat(rows, "last") if entry["target"] in TASKS[:3] and entry["method"] == own[low]]
    base = [entry | {"method": "base"} for entry in flat(rows, "base") if entry["method"] == own[low]]
    return {
        "own": own,
        "drops": {name: {"pair": pair} | tables.over_targets(drops, *pair) for name, pair in pairs.items()},
        "below_base": tables.over_targets([*first, *base], own[low], "base"),
    }


def verdicts(of: Mapping) -> tuple[str, str]:
    """By a summary the verdicts on "low ranks lose more" and "rank 1 ends below the base", by the rules above."""
    each = [tables.verdict_over_targets(interval) for interval in of["drops"].values()]
    more = verdict(set(each) == {"shown"}, "refuted here" in each)
    above = tables.verdict_over_targets(of["below_base"])
    return more, verdict(above == "refuted here", above == "shown")


def table(rows: Sequence[Mapping], caption: str = "") -> Table:
    """Methods down; tasks across, the accuracy just after training and at the end; last, the drop over the seeds."""
    tasks = next(row["run"]["tasks"] for row in rows if row["stages"])
    base, last, drops = (
        100 * pd.DataFrame(flat(rows, what)).groupby(["method", "target"], sort=False)["strict"].mean()
        for what in ("base", "last", "drop")
    )
    methods, of_drops = last.index.unique("method"), flat(rows, "drop")
    lines = [("the base", *(f"{base[methods[0], task]:.0f}" for task in tasks), "–")]
    for method in methods:
        ends = {task: last[method, task] for task in tasks}
        cells = [f"{ends[task] + drops[method, task]:.0f} → {ends[task]:.0f}" for task in tasks[:-1]]
        cells.append(f"{ends[tasks[-1]]:.0f}")
        dropped = spread(list(tables.per_draw(of_drops, method).values()))
        lines.append((method, *cells, f"{dropped['mean']:.1f} ({dropped['low']:.1f} to {dropped['high']:.1f})"))
    return Table(("method", *tasks, "mean drop, points"), tuple(lines), caption)
