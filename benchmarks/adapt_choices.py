"""How `optimizer="auto"` was settled, on the settling targets only: what was tried to better it, and what it gave.

    python benchmarks/adapt_choices.py --save

One greedy search of 120 candidates a target and draw is judged by several rules for which candidate to keep, the mean
of its best five among them. Beside it stand: the same number of candidates as two searches of 60 from the best two
modules; a choice between the search's result and the single module by leaving one example out at a time; and gradient
descent on the same composition from the same single module. The verdict targets are never looked at here.
"""

from __future__ import annotations

import json
import statistics
import time

import common
import numpy as np

from lorahub_edu import results
from lorahub_edu.data import tasks
from lorahub_edu.data.fewshot import PromptedRow, rows_for, split
from lorahub_edu.hub import zoo
from lorahub_edu.hub.adapt import History, SearchConfig, adapt
from lorahub_edu.hub.population import Population
from lorahub_edu.results import Finding
from lorahub_studies import adapting

RULES = ("loss", "exact match", "single if as exact", "single")


def kept(rule: str, strict: np.ndarray, objectives: np.ndarray, singles: int) -> int:
    """Which of the scored candidates a rule keeps; the first `singles` are the modules alone."""
    single = int(np.nanargmin(objectives[:singles]))
    if rule == "single":
        return single
    if rule == "loss":
        return int(np.nanargmin(objectives))
    best = int(np.lexsort((objectives, -strict))[0])
    return single if rule == "single if as exact" and strict[single] >= strict[best] else best


def restarted(bench: adapting.Bench, rows: list[PromptedRow], history: History, modules: int) -> np.ndarray:
    """The better end of two greedy searches from the best two modules, 120 candidates in all with the one-hots."""
    ends = []
    for start in np.argsort(history.objectives[:modules])[:2]:
        begin = history.weights[start].tolist()
        budget = (len(history) - modules) // 2
        tried = adapt(
            bench.model,
            bench.stacks["exact"],
            rows,
            SearchConfig("greedy", budget, composition="exact", options={"start": begin}),
        ).history
        best = int(np.nanargmin(tried.objectives))
        ends.append((float(tried.objectives[best]), tried.weights[best]))
    return min(ends, key=lambda end: end[0])[1]


def composing_generalises(bench: adapting.Bench, rows: list[PromptedRow], modules: int) -> bool:
    """Whether searches of 60 on all examples but one do better on that one than the single module, on average."""
    gains = []
    for place in range(len(rows)):
        rest = rows[:place] + rows[place + 1 :]
        history = adapt(
            bench.model, bench.stacks["exact"], rest, SearchConfig("greedy", 60, composition="exact")
        ).history
        two = [kept(rule, history.strict, history.objectives, modules) for rule in ("loss", "single")]
        with Population(bench.model, bench.stacks["exact"], "exact") as population:
            composed, single = population.score(history.weights[two], [rows[place]]).losses
        gains.append(float(single - composed))
    return statistics.fmean(gains) > 0


def measure(target: str, draw: int, test_items: int, steps: int) -> dict[str, float]:
    """Strict exact match on the target's test items, by rule; and processor seconds of both searches."""
    bench = adapting.bench("cpu", (), str(zoo.SHIPPED))
    task = tasks.get(target)
    examples, items = split(task, draw, 5, test_items)
    rows = rows_for(bench.model, bench.tokenizer, task.instructions[0], examples)
    tested = rows_for(bench.model, bench.tokenizer, task.instructions[0], items)
    tested = sorted(tested, key=lambda row: row.tokens)

    def strict(weights: np.ndarray) -> float:
        return float(bench.composed_scores(weights[None], "exact", tested).strict.mean())

    started = time.process_time()
    history = adapt(
        bench.model, bench.stacks["exact"], rows, SearchConfig("greedy", 120, draw, composition="exact")
    ).history
    found = {"greedy seconds": time.process_time() - started}
    modules = len(bench.files)
    places = {rule: kept(rule, history.strict, history.objectives, modules) for rule in RULES}
    scores = {place: strict(history.weights[place]) for place in set(places.values())}
    found |= {rule: scores[place] for rule, place in places.items()}
    found["loss, 60"] = strict(history.weights[kept("loss", history.strict[:60], history.objectives[:60], modules)])
    best_five = np.argsort(history.objectives)[:5]
    found["mean of the best five"] = strict(history.weights[best_five].mean(0))
    found["two starts"] = strict(restarted(bench, rows, history, modules))
    composes = composing_generalises(bench, rows, modules)
    found["leave one out"] = scores[places["loss" if composes else "single"]]
    started = time.process_time()
    start = history.weights[places["single"]].tolist()
    by_slope = adapt(
        bench.model,
        bench.stacks["exact"],
        rows,
        SearchConfig("gradient", steps, draw, composition="exact", options={"start": start}),
    )
    found["gradient seconds"] = time.process_time() - started
    found["gradient"] = strict(by_slope.weights)
    return found


def main() -> None:
    options = common.arguments(__doc__, draws=1, test_items=80, steps=30)
    targets = tasks.names("settling")
    rows = [
        measure(target, draw, options.test_items, options.steps) for draw in range(options.draws) for target in targets
    ]
    note = f"settling targets {', '.join(targets)}; {options.draws} draws of five; {options.test_items} test items"
    found = [
        Finding(
            f"adapt_choices.{key}",
            tuple(row[key] for row in rows),
            "s" if key.endswith("seconds") else "strict exact match",
            note=f"{note}; mean {statistics.fmean(row[key] for row in rows):.3f}",
            seeds=tuple(range(options.draws)),
            model="SmolLM2-135M-Instruct",
            profile="cpu",
        )
        for key in rows[0]
    ]
    if options.save:
        results.record(found, "adapt_choices", results.committed_folder())
    print(json.dumps({f.name: round(statistics.fmean(f.values), 4) for f in found}))


if __name__ == "__main__":
    main()
